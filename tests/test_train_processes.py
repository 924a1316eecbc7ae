"""Several processes train as one does with as many slides a step."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import toy_training
from tests.toy_training import SHARED, ToySlides, toy_model, train_toy
from wsizoo.errors import NotFoundError, SpecError
from wsizoo.train.processes import start_processes
from wsizoo.train.settings import TrainSettings

pytest.importorskip("lightning_fabric")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left."""
    folder = tmp_path_factory.mktemp("two")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*run, toy_training.__file__, "share", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder


def left(folder: Path, rank: int) -> Any:
    return torch.load(folder / f"{rank}.pt", weights_only=True)


def test_two_processes_equal_one_that_accumulates_two(two: Path, tmp_path: Path) -> None:
    model = toy_model()
    alone = TrainSettings(**{**vars(SHARED), "accumulate": 2})
    trained = train_toy(tmp_path, ToySlides(5), settings=alone, model=model)
    for rank in (0, 1):
        for name, tensor in left(two, rank)["model"].items():
            torch.testing.assert_close(tensor, model.state_dict()[name])
    lines = (two / "by-0" / "epochs.csv").read_text().splitlines()
    assert len(lines) == 1 + len(trained.history)
    for line, row in zip(lines[1:], trained.history, strict=True):
        told = [float(value) for value in line.split(",")]
        assert told == pytest.approx([row[name] for name in lines[0].split(",")], rel=1e-5)


def test_every_slide_is_read_by_one_process(two: Path) -> None:
    read = [left(two, rank)["read"] for rank in (0, 1)]
    assert sorted(read[0] + read[1]) == sorted([*range(5)] * SHARED.epochs)
    assert abs(len(read[0]) - len(read[1])) == SHARED.epochs  # the last step has one slide


def test_only_the_first_process_writes(two: Path) -> None:
    assert (two / "by-0" / "checkpoints" / "best.ckpt").exists()
    assert not (two / "by-1").exists()


def test_a_loss_that_is_not_a_number_stops_all_processes(two: Path) -> None:
    told = [(two / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert told[0] == told[1]
    assert told[0].startswith("the loss of slide 's3' is nan, in epoch 1; no checkpoint")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:1"])
def test_a_device_that_has_no_meaning_is_refused(device: str) -> None:
    with pytest.raises(SpecError, match=f"device is '{device}', expected auto, cpu"):
        start_processes(device, "32-true")


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(NotFoundError, match=r"no device 'cuda:97' here; train.device=cpu"):
        start_processes("cuda:97", "32-true")


def test_half_precision_needs_a_gpu() -> None:
    with pytest.raises(SpecError, match=r"16-mixed needs a GPU; a CPU has train\.precision=bf16"):
        start_processes("cpu", "16-mixed")


def test_without_fabric_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(NotFoundError, match=r"not installed: pip install 'wsizoo\[train\]'"):
        start_processes("cpu", "32-true")
