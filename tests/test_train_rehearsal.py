"""What can be measured and chosen by is known before anything is trained."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmark_cells import calls, pretend
from tests.toy_cohort import read_table, write_config, write_table
from wsizoo.benchmark.run import run_benchmark
from wsizoo.errors import DataError, SpecError
from wsizoo.registry import default
from wsizoo.train.cohort import read_cohort
from wsizoo.train.config import load_config
from wsizoo.train.making import classes_of, has_bins, task_of
from wsizoo.train.rehearsal import rehearsed
from wsizoo.train.run import run_training

TASKS = ("classification", "survival", "regression", "segmentation")


@pytest.mark.parametrize("task", TASKS)
def test_what_will_be_measured_is_known_by_name(task: str, cohort: Path, tmp_path: Path) -> None:
    config = load_config(write_config(cohort, task), ["train.epochs=1"])
    registry = default()
    slides = read_cohort(
        config.data, task_of(config, registry), classes_of(config, registry) or None
    )
    known = rehearsed(config, slides, range(len(slides)), has_bins(config, registry))
    metrics = json.loads((run_training(config, tmp_path / "run") / "metrics.json").read_text())
    assert list(known) == list(metrics["test"])


@pytest.mark.parametrize("task", TASKS)
def test_a_measure_of_another_task_is_refused_before_the_start(
    task: str, cohort: Path, tmp_path: Path
) -> None:
    wrong = {"classification": "c_index"}.get(task, "auc")
    told = f"selection.metric is '{wrong}', which {task} lacks"
    with pytest.raises(SpecError, match=told):
        train(cohort, tmp_path / "run", f"selection.metric={wrong}", task=task)
    assert not (tmp_path / "run").exists()


def test_a_benchmark_refuses_it_before_its_first_cell(cohort: Path, tmp_path: Path) -> None:
    content = {
        "model": "mean-uni", "models": ["mean"], "features": {"one": str(cohort / "features")},
        "data": {"table": str(cohort / "slides.csv")}, "selection": {"metric": "aucc"},
    }  # fmt: skip
    with pytest.raises(SpecError, match=r"'aucc', which classification lacks. Did you mean"):
        run_benchmark(content, tmp_path, run_one=pretend)
    assert calls(tmp_path) == []


def test_an_epoch_needs_slides_to_be_chosen_by(own_cohort: Path) -> None:
    rows = read_table(own_cohort / "slides.csv")
    write_table(
        own_cohort / "slides.csv", [r | {"part": r["part"].replace("val", "train")} for r in rows]
    )
    asked = ["split.val_fraction=0"]
    told = "fold 0 has no validation slides .* selection.checkpoint=last train.patience=null"
    with pytest.raises(DataError, match=told):
        train(own_cohort, own_cohort / "run", *asked)
    train(own_cohort, own_cohort / "run", *asked, "selection.checkpoint=last")


def test_a_part_that_cannot_be_measured_is_told_before_and_after(own_cohort: Path) -> None:
    said, out = train_unmeasured(own_cohort, "test"), own_cohort / "run"
    told = "of no two patients is it known who had the event first"
    (warned,) = [line for line in said if "Warning" in line]
    assert warned.startswith("Warning: the C-index of the test part of fold 0 (4 slides) will")
    assert warned.endswith(f" not be defined: {told}. Give it more patients")
    assert said[-1].startswith(f"run: test C-index is not defined, {told}")
    assert f"C-index is not defined (n/a): {told}." in (out / "report.html").read_text()


def test_an_epoch_is_not_chosen_by_what_is_not_defined(own_cohort: Path) -> None:
    told = r"'c_index', which is not defined of the validation part of fold 0 \(4 slides\): of no"
    with pytest.raises(DataError, match=told):
        train_unmeasured(own_cohort, "val", "selection.metric=c_index")
    assert not (own_cohort / "run").exists()
    train_unmeasured(own_cohort, "val", "selection.metric=c_index", "selection.checkpoint=last")


def train_unmeasured(folder: Path, part: str, *overrides: str) -> list[str]:
    """Of the part only the last patient has had the event."""
    rows: list[dict[str, Any]] = list(read_table(folder / "slides.csv"))
    inside = [row for row in rows if row["part"] == part]
    last = max(inside, key=lambda row: float(row["time"]))
    for row in inside:
        row["event"] = int(row is last)
    write_table(folder / "slides.csv", rows)
    return train(folder, folder / "run", *overrides, task="survival")


def train(folder: Path, out: Path, *overrides: str, task: str = "classification") -> list[str]:
    """What is said."""
    said: list[str] = []
    asked = load_config(write_config(folder, task), ["train.epochs=1", *overrides])
    run_training(asked, out, say=said.append)
    return said
