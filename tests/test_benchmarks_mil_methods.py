from pathlib import Path

import numpy as np
import pytest

from benchmarks import mil_methods, mil_sets
from benchmarks._mil_sets import InstanceTable


def made_up() -> InstanceTable:
    random = np.random.default_rng(0)
    bag = np.repeat(np.arange(24), 3)
    labels = np.arange(24) % 2
    features = random.normal(5, 9, (72, 4)).astype(np.float32)
    features[::3, 0] += 90 * labels
    features[:, 3] = 2
    return InstanceTable("made-up", features, bag, labels)


def test_features_are_standardised_by_all_instances() -> None:
    found = mil_methods.standardised(made_up()).features
    assert found.mean(0) == pytest.approx(0, abs=1e-5)
    assert found.std(0) == pytest.approx([1, 1, 1, 0], abs=1e-5)


def test_methods_are_compared_on_a_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lightning_fabric")
    (tmp_path / "mil_benchmark").mkdir()
    table = made_up()
    columns = {"X": table.features, "bag": table.bag.astype(np.int32), "y": table.labels}
    np.savez(tmp_path / "mil_benchmark" / "made-up.npz", **columns)
    monkeypatch.setattr(mil_sets, "DATA", tmp_path)
    monkeypatch.setattr(mil_methods, "methods", lambda: ["abmil", "mean", "gcn"])
    mil_methods.run(("made-up", "absent"), 1, "train.epochs=3", "split.folds=2")
    told = capsys.readouterr().out
    assert "95 % interval" in told
    assert "abmil" in told
    assert "mean" in told
    assert "gcn" not in told  # needs coords
    assert "absent: left out, no absent.npz" in told


def test_a_run_that_cannot_begin_ends_with_its_reason() -> None:
    with pytest.raises(SystemExit, match="epochs"):
        mil_methods.table(made_up(), 1, "train.epochs=-1")


def test_all_methods_but_those_on_a_grid_are_asked_for_as_narrow_ones(tmp_path: Path) -> None:
    models = mil_methods.asked(made_up(), tmp_path / "table.csv")["models"]
    of = {each["name"]: each["overrides"] for each in models}
    assert {"abmil", "transmil", "knn", "mhim-dsmil"} < set(of)
    assert not {"gcn", "gat"} & set(of)
    assert of["transmil"] == ["encoder={name: made-up, dim: 4}", "aggregator.dim=64"]
    assert of["dsmil"] == ["encoder={name: made-up, dim: 4}"]
