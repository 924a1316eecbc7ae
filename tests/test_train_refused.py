"""A run that cannot come to anything is refused before it trains, and leaves its folder free."""

from pathlib import Path

import pytest

from tests.test_train_loop import bags
from tests.toy_cohort import write_config
from wsizoo import build
from wsizoo.errors import DataError, SpecError
from wsizoo.train.config import load_config
from wsizoo.train.loop import fit
from wsizoo.train.run import run_training

COX = "overrides=['head=cox']"


def train(folder: Path, out: Path, *overrides: str, task: str = "classification") -> list[str]:
    """What is said."""
    said: list[str] = []
    run_training(load_config(write_config(folder, task), overrides), out, say=said.append)
    return said


def test_slides_that_are_compared_are_not_trained_on_one_by_one(
    cohort: Path, tmp_path: Path
) -> None:
    told = r"CoxHead, compares the slides .* train.batch_size=32 train.accumulate=1"
    with pytest.raises(SpecError, match=told):
        train(cohort, tmp_path / "run", COX, "train.accumulate=32", task="survival")
    with pytest.raises(SpecError, match="CoxHead, compares the slides"):
        fit(build("abmil-uni", "head=cox"), bags())
    said = train(cohort, tmp_path / "run", COX, "train.batch_size=8", task="survival")
    assert not any("Warning" in line for line in said)  # 8 slides: one step, with events


def test_steps_that_teach_nothing_are_told(cohort: Path, tmp_path: Path) -> None:
    table = tmp_path / "slides.csv"
    lines = (cohort / "slides.csv").read_text().splitlines()
    head, *rows = [line.split(",") for line in lines]
    event, part = head.index("event"), head.index("part")
    trained = [row for row in rows if row[part] == "train"]
    for row in trained:
        row[event] = str(int(row is trained[0]))
    table.write_text("".join(",".join(row) + "\n" for row in [head, *rows]))
    told = [f"data.table={table}", COX, "train.batch_size=2", "train.epochs=1"]
    said = train(cohort, tmp_path / "run", *told, task="survival")
    warned = [line for line in said if "taught" in line]
    assert len(warned) == 1 and "of 4 steps of epoch 1 taught nothing" in warned[0]
    assert warned[0].startswith(("Warning: 3", "Warning: 4"))  # 4: the event is the last time


def test_a_refused_start_leaves_its_folder_to_the_command_that_is_right(
    cohort: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    told = "in epoch 1; no checkpoint was written yet.* optimiser.lr=1e-5 train.clip=1.0"
    with pytest.raises(DataError, match=told):
        train(cohort, out, "optimiser.lr=1e30")
    assert (out / "run.json").is_file()
    holdout = ["split.kind=holdout", "split.fractions=[0.5,0.25,0.25]"]
    train(cohort, out, *holdout, "data.label=site")  # other data and parts, too
    with pytest.raises(DataError, match=r"is a run of another config: data.label was 'site'"):
        train(cohort, out, *holdout)
