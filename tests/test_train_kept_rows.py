"""An evaluation that is interrupted goes on with the slides that are left."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toy_cohort import read_table, write_cohort, write_config
from wsizoo.errors import DataError
from wsizoo.model import SlideModel
from wsizoo.train import evaluation
from wsizoo.train.cohort import Cohort, read_cohort
from wsizoo.train.config import load_config
from wsizoo.train.evaluation import evaluate_run
from wsizoo.train.kept_rows import FILE, KeptRows
from wsizoo.train.run import run_training
from wsizoo.train.samples import Samples

SAME = ("predictions.csv", "predictions_patients.csv", "metrics.json")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of 16 slides and its run."""
    folder = tmp_path_factory.mktemp("source")
    write_cohort(folder)
    torch.set_num_threads(1)
    run_training(load_config(write_config(folder), ["train.epochs=1"]), folder / "run")
    return folder


def stop_after(slides: int) -> Callable[[str, int, int], None]:
    """What raises, as Ctrl-C does, when so many slides of the first part are predicted."""

    def tick(what: str, done: int, total: int) -> None:
        if done == slides:
            raise KeyboardInterrupt

    return tick


def interrupted(source: Path, out: Path, slides: int = 3) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(source / "run", out, part="all", tick=stop_after(slides))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Names of the slides that a model is shown from now on."""
    names: list[str | None] = []
    forward = SlideModel.forward

    def counted(self: SlideModel, bag: Any) -> Any:
        names.append(bag.slide_id)
        return forward(self, bag)

    monkeypatch.setattr(SlideModel, "forward", counted)
    return names


def test_it_goes_on_with_the_slides_that_are_left(
    source: Path, tmp_path: Path, shown: list[str | None]
) -> None:
    evaluate_run(source / "run", tmp_path / "whole", part="all")
    shown.clear()
    interrupted(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [FILE]
    before = shown.copy()
    told: list[str] = []
    evaluate_run(source / "run", tmp_path / "out", part="all", say=told.append)
    assert told[0] == "Going on: 3 slides were predicted before the interruption"
    assert len(before) == 3 and len(shown) == 16 == len(set(shown))
    for name in SAME:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "out" / FILE).exists()


def test_a_line_that_a_kill_cut_short_does_not_count(
    source: Path, tmp_path: Path, shown: list[str | None]
) -> None:
    interrupted(source, tmp_path / "out")
    file = tmp_path / "out" / FILE
    file.write_text(file.read_text()[:-9])
    shown.clear()
    evaluate_run(source / "run", tmp_path / "out", part="all")
    assert len(shown) == 14


def test_a_slide_whose_file_changed_is_predicted_again(
    source: Path, tmp_path: Path, shown: list[str | None]
) -> None:
    interrupted(source, tmp_path / "out")
    first = str(shown[0])
    os.utime(source / "features" / f"{first}.h5", (1, 1))
    shown.clear()
    evaluate_run(source / "run", tmp_path / "out", part="all")
    assert len(shown) == 14 and first in shown


def test_rows_of_another_model_do_not_count(
    source: Path, tmp_path: Path, shown: list[str | None]
) -> None:
    interrupted(source, tmp_path / "out")
    run_training(
        load_config(source / "train.yaml", ["seeds=[7]", "train.epochs=1"]), tmp_path / "r"
    )
    shown.clear()
    evaluate_run(tmp_path / "r", tmp_path / "out", part="all")
    assert len(shown) == 16


def test_a_run_that_is_stopped_while_it_predicts_goes_on_there(
    source: Path, tmp_path: Path, shown: list[str | None]
) -> None:
    def tick(what: str, done: int, total: int) -> None:
        if what == "test slides predicted" and done == 2:
            raise KeyboardInterrupt

    config = load_config(source / "train.yaml", ["train.epochs=1"])
    with pytest.raises(KeyboardInterrupt):
        run_training(config, tmp_path / "run", tick=tick)
    shown.clear()
    run_training(config, tmp_path / "run")
    tested = [row["slide"] for row in read_table(source / "slides.csv") if row["part"] == "test"]
    assert sorted(map(str, set(shown) & set(tested))) == tested[2:]
    for name in SAME:
        assert (tmp_path / "run" / name).read_bytes() == (source / "run" / name).read_bytes()


def test_slides_are_read_by_the_threads_that_the_command_asks_for(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: set[str] = set()
    read = Cohort.bag

    def bag(self: Cohort, index: int) -> Any:
        names.add(threading.current_thread().name.partition("_")[0])
        return read(self, index)

    monkeypatch.setattr(Cohort, "bag", bag)
    evaluate_run(source / "run", tmp_path / "out", ["train.workers=2"])
    assert names == {"wsizoo-reading"}


def test_each_tenth_of_many_slides_is_told(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "MANY", 4)
    told: list[str] = []
    evaluate_run(source / "run", tmp_path / "out", say=told.append)
    assert told[:-1] == [f"{i} of 4 test slides predicted" for i in (1, 2, 3)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is full")
def test_a_row_that_cannot_be_kept_stops_it(source: Path) -> None:
    config = load_config(source / "train.yaml")
    cohort = read_cohort(config.data, task="classification")
    sample = Samples(cohort, [0]).samples[0]
    full = r"'/dev/full' cannot be written: .*No space left"
    with open("/dev/full", "ab", buffering=0) as file, pytest.raises(DataError, match=full):
        KeptRows(cohort, file, {}).add("test", sample, {"slide": "s00"}, 0.1)
