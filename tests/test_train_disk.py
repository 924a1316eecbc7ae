"""A disk that fills while a run is written: nothing is half there, and the command goes on."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import wsizoo
from tests.toy_cohort import write_config
from wsizoo.errors import DataError
from wsizoo.train import evaluation, one_run, run, run_folder, trainer
from wsizoo.train.config import RunConfig, load_config
from wsizoo.train.evaluation import evaluate_run
from wsizoo.train.run import run_training

resource = pytest.importorskip("resource")
SAME = ("predictions.csv", "predictions_patients.csv", "metrics.json", "split.csv", "config.yaml")
TOLD = (
    r"could not be written into \(.*File too large.*\); no file in it is half written\. Make room"
)


def full(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, while no file of this process may become larger than 20 bytes."""

    def limited(*given: Any, **named: Any) -> Any:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
        try:
            return function(*given, **named)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture(scope="module")
def config(cohort: Path) -> RunConfig:
    return load_config(write_config(cohort))


@pytest.fixture(scope="module")
def whole(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_training(config, tmp_path_factory.mktemp("whole") / "run")


def left(folder: Path) -> Iterator[str]:
    """Names of half-written files and folders."""
    return (path.name for path in folder.rglob(".*") if ".tmp-" in path.name)


@pytest.mark.parametrize(
    ("owner", "name", "absent", "there"),
    [
        (run_folder, "write_text", "config.yaml", ""),
        (one_run, "write_split", "split.csv", "config.yaml"),
        (trainer, "write_logs", "epochs.csv", "checkpoints/last.ckpt"),
        (one_run.Measuring, "write", "predictions.csv", "checkpoints/last.ckpt"),
        (one_run, "save", "model", "metrics.json"),
        (one_run, "write_report", "report.html", "model/model.safetensors"),
    ],
)
def test_room_lets_the_same_command_finish_with_the_same_bytes(
    owner: Any,
    name: str,
    absent: str,
    there: str,
    config: RunConfig,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full(getattr(owner, name)))
        with pytest.raises(DataError, match=TOLD) as caught:
            run_training(config, out)
    assert f"'{out}'" in str(caught.value) and "same command again" in str(caught.value)
    assert not (out / absent).exists() and (out / there).exists()
    assert list(left(out)) == []
    run_training(config, out)
    for file in SAME:
        assert (out / file).read_bytes() == (whole / file).read_bytes()
    ours, theirs = (wsizoo.load(folder / "model").state_dict() for folder in (out, whole))
    assert all(ours[key].equal(theirs[key]) for key in theirs)


def test_a_summary_of_several_that_finds_no_room_is_written_the_next_time(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several, out = dataclasses.replace(config, seeds=[0, 1]), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(run, "summarise", full(run.summarise))
        with pytest.raises(DataError, match=TOLD):
            run_training(several, out)
    assert not (out / "predictions.csv").exists() and list(left(out)) == []
    run_training(several, out)
    assert (out / "predictions.csv").exists() and (out / "report.html").exists()


def test_an_evaluation_that_finds_no_room_keeps_the_one_before_it(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = evaluate_run(whole, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(evaluation.Measuring, "write", full(evaluation.Measuring.write))
    with pytest.raises(DataError, match=TOLD):
        evaluate_run(whole, out, part="all", overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_folder_that_may_not_be_written_any_more_is_told_so(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, out = os.replace, tmp_path / "run"

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == "predictions.csv":
            raise PermissionError(13, "Permission denied", str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(DataError, match=r"'.*run' could not be written into \(.*Permission denied"):
        run_training(config, out)
    assert list(left(out)) == [] and not (out / "predictions.csv").exists()
