"""Several folds as one result: measured on one part, and survival as in each run."""

import json
from pathlib import Path

import pytest

from tests.toy_cohort import read_table, write_config
from wsizoo.errors import DataError
from wsizoo.prediction_files import read_rows
from wsizoo.train.config import load_config
from wsizoo.train.measuring import measure_rows
from wsizoo.train.run import run_training

PART = {"t": "train", "v": "val", "e": "test"}


def train_folds(cohort: Path, folder: Path, task: str, folds: list[str], *more: str) -> Path:
    """A run of a file of folds; each is a letter a slide: t(rain), v(al), (t)e(st), or none."""
    names = ",".join(f"fold_{k}" for k in range(len(folds)))
    rows = [",".join([f"s{i:02}", *(PART.get(fold[i], "") for fold in folds)]) for i in range(16)]
    split = folder / "folds.csv"
    split.write_text("\n".join([f"slide,{names}", *rows]) + "\n")
    asked = [
        f"split={{kind: file, file: {split}, val_fraction: 0}}",
        "train.epochs=1",
        "selection.checkpoint=last",
    ]
    return run_training(load_config(write_config(cohort, task), [*asked, *more]), folder / "run")


@pytest.mark.parametrize(
    ("folds", "told"),
    [
        (["ttttttttttttvvvv", "tttttttttttteeee"], "fold 0 has no slides in its test part, fold 1"),
        (["ttttttttvvvveeee", "ttttttttttttvvvv"], "fold 1 has no slides in its test part, fold 0"),
        (["ttttttttttttvvvv", "tttttttttttttttt"], "fold 1 has no slides in its val part, fold 0"),
    ],
)
def test_folds_without_a_common_part_are_refused_before_they_are_trained(
    folds: list[str], told: str, cohort: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"{told} has: folds are measured on the same part"):
        train_folds(cohort, tmp_path, "classification", folds)
    assert not (tmp_path / "run").exists()


def test_folds_may_lack_what_is_not_measured(cohort: Path, tmp_path: Path) -> None:
    run = train_folds(cohort, tmp_path, "classification", ["ttttttttvvvveeee", "tttttttttttteeee"])
    summary = json.loads((run / "metrics.json").read_text())
    assert summary["part"] == "test" and summary["pooled"]["auc"]["n"] == 8


@pytest.mark.parametrize("bins", ["train", "whole_cohort"])
def test_pooled_survival_is_weighted_by_the_training_parts(
    bins: str, cohort: Path, tmp_path: Path
) -> None:
    folds = ["eeeeeetttttttttt", "tttttteeeeeetttt"]
    run = train_folds(cohort, tmp_path, "survival", folds, f"data.bins_from={bins}")
    pooled = json.loads((run / "metrics.json").read_text())["pooled"]
    cells = [run / f"fold{k}-seed0" for k in (0, 1)]
    edges = [json.loads((cell / "run.json").read_text())["edges"] for cell in cells]
    same = edges[0] if bins == "whole_cohort" else None
    assert (edges[0] == edges[1]) == (same is not None)
    table = read_table(cohort / "slides.csv")
    train = [table[i] for fold in folds for i in range(16) if fold[i] == "t"]
    censoring = [float(row["time"]) for row in train], [int(row["event"]) for row in train]
    rows = [row for cell in cells for row in read_rows(cell / "predictions.csv", "survival")]
    found = measure_rows(rows, "survival", edges=same, censoring=censoring, resamples=0)
    for name in ("c_index", "time_dependent_auc", *(["integrated_brier"] if same else [])):
        assert pooled[name]["value"] == pytest.approx(found[name].value)
    assert ("integrated_brier" in pooled) == (same is not None)
    alone = measure_rows(rows, "survival", edges=same, resamples=0)
    assert alone["time_dependent_auc"].value != found["time_dependent_auc"].value
