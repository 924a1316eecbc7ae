"""A training that is killed and started again ends as one that never stopped."""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import toy_training
from tests.toy_training import SETTINGS, ToySlides, toy_model, train_toy
from wsizoo.errors import DataError, WeightsError
from wsizoo.train.checkpointing import read_checkpoint
from wsizoo.train.settings import TrainSettings

pytest.importorskip("lightning_fabric")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with torch.random.fork_rng():
        train_toy(folder, ToySlides(7))
    return folder


def killed(folder: Path, when: str) -> None:
    command = [sys.executable, toy_training.__file__, "die", str(folder), when]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr


def content(folder: Path, name: str) -> dict[str, Any]:
    """A checkpoint without the times of its epochs."""
    found = read_checkpoint(folder / "checkpoints" / name)
    for row in found.get("history", []):
        del row["seconds"], row["waited"]
    return found


def assert_same(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def test_killed_twice_it_ends_with_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    killed(tmp_path, "16")  # in epoch 3, reading ahead
    before = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    killed(tmp_path, "write-2")
    halves = [path.name for path in (tmp_path / "checkpoints").glob(".*")]
    assert len(halves) == 1
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["stepper"]["done"] > 8
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() != before
    said: list[str] = []
    model = toy_model()
    train_toy(tmp_path, ToySlides(7), model=model, say=said.append)
    assert said[0].startswith("goes on after epoch 2/4 and ")
    assert (tmp_path / "epochs.csv").read_bytes() == (whole / "epochs.csv").read_bytes()
    for name in ("last.ckpt", "best.ckpt"):
        assert_same(content(tmp_path, name), content(whole, name))
    best = read_checkpoint(whole / "checkpoints" / "best.ckpt")["model"]
    assert_same(dict(model.state_dict()), dict(best))
    assert [path.name for path in (tmp_path / "checkpoints").glob(".*")] == []


def test_a_finished_training_is_not_done_again(whole: Path) -> None:
    slides, model = ToySlides(7), toy_model()
    kept = (whole / "epochs.csv").read_bytes()
    trained = train_toy(whole, slides, model=model)
    assert slides.read == []
    assert len(trained.history) == SETTINGS.epochs
    assert model.trained and model.requires.encoder == "uni"
    assert (whole / "epochs.csv").read_bytes() == kept


def test_a_checkpoint_of_another_training_is_refused(whole: Path) -> None:
    other = TrainSettings(**{**vars(SETTINGS), "lr": 0.5})
    with pytest.raises(DataError, match=r"another training: lr was 0\.03, now 0\.5\. Train into"):
        train_toy(whole, ToySlides(7), settings=other)
    with pytest.raises(DataError, match="another training: slides was 7, now 6"):
        train_toy(whole, ToySlides(6))
    wider = toy_model()
    wider.aggregator.extra = torch.nn.Linear(2, 2)
    with pytest.raises(DataError, match="another training: tensors of the model was"):
        train_toy(whole, ToySlides(7), model=wider)


def test_what_changes_no_number_may_change(whole: Path) -> None:
    other = TrainSettings(**{**vars(SETTINGS), "workers": 0, "checkpoint_steps": None})
    train_toy(whole, ToySlides(7), settings=other)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsError, match=r"last\.ckpt cannot be read|holds more than tensors"):
        train_toy(tmp_path, ToySlides(7))
    torch.save({"format": 9}, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(DataError, match=r"no checkpoint of .* \(format 9, expected 1\)"):
        train_toy(tmp_path, ToySlides(7))


def test_a_full_disk_leaves_the_checkpoint_that_was_there(whole: Path, tmp_path: Path) -> None:
    """A limit on the size of files makes writes fail as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    last = tmp_path / "checkpoints" / "last.ckpt"

    def fill(line: str) -> None:
        if line.startswith("epoch 2"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))

    try:
        with pytest.raises(DataError, match=r"last\.ckpt' could not be written \(.*File too large"):
            train_toy(tmp_path, ToySlides(7), say=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(content(tmp_path, "last.ckpt")["history"]) == 2
    assert [path.name for path in last.parent.iterdir() if path.name.startswith(".")] == []
    train_toy(tmp_path, ToySlides(7))
    assert (tmp_path / "epochs.csv").read_bytes() == (whole / "epochs.csv").read_bytes()
