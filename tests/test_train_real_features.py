"""Feature files that other tools wrote of real slides, each run forward and backward."""

import json
import os
from pathlib import Path

import pytest
import torch

import wsizoo
from wsizoo.train.config import load_config
from wsizoo.train.run import run_training

DATA = Path(os.environ.get("WSIZOO_DATA", "")) / "features"
FILES = {  # encoder, where the file does not state it, and width of the features
    "stamp_eagle/TCGA-DC-5869-01Z-00-DX1.ca8ffa5b-3881-4741-b0e3-5084dd9df536.h5": (None, 768),
    "stamp_eagle/TCGA-QG-A5YV-01Z-00-DX1.9B7FD3EA-D1AB-44B3-B728-820939EF56EA.h5": (None, 768),
    "stamp_mopadi/TCGA-AD-6964-01Z-00-DX1.h5": ("conch", 512),
}

pytestmark = pytest.mark.skipif(
    "WSIZOO_DATA" not in os.environ or not DATA.is_dir(), reason="WSIZOO_DATA holds no features"
)


@pytest.mark.parametrize("name", FILES, ids=lambda name: name[:16])
@pytest.mark.parametrize("aggregator", ["abmil", "mean", "max"])
def test_a_real_file_is_read_and_trained_on_by_a_step(name: str, aggregator: str) -> None:
    torch.set_num_threads(1)
    encoder, dim = FILES[name]
    bag = wsizoo.read_bag(DATA / name, encoder=encoder)
    bag = bag.replace(target={"label": 1}, encoder=None)
    model = wsizoo.build(
        "abmil-uni",
        f"aggregator={aggregator}",
        f"encoder={{name: made-up, dim: {dim}}}",
        "head.classes=[MSS,MSI]",
    ).train()
    loss = model.losses(model(bag), bag)["task"]
    loss.backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)
    assert any(float(g.abs().max()) > 0 for g in gradients if g is not None)


def test_a_run_reads_the_folder_of_another_tool(tmp_path: Path) -> None:
    """The two STAMP files with made-up labels: what is trained on them is a run like any other."""
    torch.set_num_threads(1)
    stems = [Path(name).name for name in FILES if name.startswith("stamp_eagle")]
    rows = [f"{stem},{label},train\n" for stem, label in zip(stems, "ab", strict=True)]
    (tmp_path / "table.csv").write_text("slide,label,part\n" + "".join(rows))
    config = {
        "model": "abmil-uni",
        "overrides": ["encoder={name: ctranspath, dim: 768}"],
        "data": {
            "table": str(tmp_path / "table.csv"),
            "features": str(DATA / "stamp_eagle"),
        },
        "split": {"kind": "column", "column": "part", "val_fraction": 0.0},
        "selection": {"checkpoint": "last"},
        "train": {"epochs": 1, "device": "cpu"},
    }
    run = run_training(load_config(config), tmp_path / "run")
    assert json.loads((run / "run.json").read_text())["encoder"]["encoder"] == "ctranspath"
    assert wsizoo.load(run / "model").classes == ["a", "b"]
    assert not (run / "report.html").exists()  # there were no slides to measure
