"""`wsizoo diagnose selector` on runs with each selector of this plugin."""

import json

import pytest
import torch
import yaml

import wsizoo
from wsizoo.errors import DataError

pytest.importorskip("lightning_fabric")
diagnosis = pytest.importorskip("wsizoo.diagnosis.selector")
DIM, K = 6, 3


@pytest.fixture
def trained(tmp_path):
    """A function: the run with a selector."""
    from wsizoo.train.config import load_config
    from wsizoo.train.run import run_training

    rows = ["slide,label,part"]
    for i in range(24):
        generator = torch.Generator().manual_seed(i)
        features = torch.randn(20, DIM, generator=generator) * 0.3
        features[: K - 1, i % 2] += 4.0
        coords = torch.stack([torch.arange(20) % 5, torch.arange(20) // 5], 1) * 224
        made = wsizoo.Fingerprint("uni")
        bag = wsizoo.Bag(features, coords, spacing=224.0, mpp=0.5, encoder=made)
        wsizoo.write_bag(bag, tmp_path / "features" / f"s{i}.h5")
        rows.append(f"s{i},{'ab'[i % 2]},{'train' if i < 12 else 'val' if i < 16 else 'test'}")
    (tmp_path / "slides.csv").write_text("\n".join(rows) + "\n")

    def train(selector, *options):
        sizes = f"encoder.dim={DIM}", "aggregator.dim=5", "aggregator.attention=4"
        config = {
            "model": "abmil-uni",
            "data": {"table": "slides.csv", "features": "features"},
            "split": {"kind": "column", "column": "part"},
            "overrides": [*sizes, f"selector={selector}", f"selector.k={K}", *options],
            "optimiser": {"lr": 1e-2},
            "train": {"epochs": 6, "workers": 0, "device": "cpu"},
            "selection": {"checkpoint": "last"},
        }
        (tmp_path / "train.yaml").write_text(yaml.safe_dump(config))
        return run_training(load_config(tmp_path / "train.yaml"), tmp_path / selector)

    return train


@pytest.mark.parametrize(
    ("selector", "options"),
    [
        ("sparselearn", ["selector.stats=channel-running"]),
        ("straight-through", []),
        ("gumbel-topk", []),
    ],
)
def test_one_that_learns_softly_is_diagnosed(trained, selector, options):
    run = trained(selector, *options)
    told = diagnosis.diagnose_selector(run, probe_slides=36, maps=1, without_parts=True)
    (one,) = told["runs"]
    assert one["selector"] == selector and not one["missing"]
    assert set(one["answers"]) == {"soft", "hard", "random", "full"}
    assert 0 < one["gates"]["overlap"] <= 1 and one["temperature"] == pytest.approx(0.1)
    leak = one["probes"]["measured"]["all gates 0"]
    assert leak["low"] <= one["probes"]["chance"], "nothing passes where all gates are 0"
    names = [each["name"] for each in one["ablations"]]
    assert names == (["without denoiser"] if selector == "sparselearn" else [])
    file = run / "diagnosis" / "selector.json"
    assert json.loads(file.read_text(encoding="utf-8")) == json.loads(json.dumps(told))


def test_noise_of_the_slides_own_mean_leaks_and_the_verdict_tells(trained):
    """Of so few patches the mean alone tells the class."""
    told = diagnosis.diagnose_selector(trained("sparselearn"), probe_slides=120, maps=0)
    (one,) = told["runs"]
    assert one["probes"]["measured"]["all gates 0"]["low"] > one["probes"]["chance"]
    assert "selector.stats=channel-running" in one["verdict"]["told"][-1]


def test_random_patches_have_nothing_to_transfer(trained):
    with pytest.raises(DataError, match=r"the selector 'random' of .* learns nothing softly"):
        diagnosis.diagnose_selector(trained("random"))
