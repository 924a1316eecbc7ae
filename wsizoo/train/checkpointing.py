"""Checkpoints of a training: written whole or not at all, read as data."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from wsizoo.checkpoints import read_pickle
from wsizoo.errors import DataError
from wsizoo.files import is_alive, replacing
from wsizoo.model import SlideModel
from wsizoo.train.settings import CHANGE_NO_NUMBER, TrainSettings

FORMAT = 1


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a checkpoint; the old one stays until the new one is on the disk.

    Raises:
        DataError: there is no room, or no right, to write it.
    """
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
    except (OSError, RuntimeError) as error:  # torch wraps the first into the second
        reason = error if isinstance(error, OSError) else error.__context__ or error
        raise DataError(
            f"'{path}' could not be written ({reason}); the one before it is as it was. Make room, "
            "then start the same training again: it goes on from there"
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `write_checkpoint` wrote.

    Raises:
        WeightsError: damaged, or more than data. DataError: of another version.
    """
    content = read_pickle(path)
    told = content.get("format") if isinstance(content, dict) else None
    if told != FORMAT:
        raise DataError(
            f"'{path}' is no checkpoint of a training that this version goes on with (format "
            f"{told}, expected {FORMAT}). Train into another folder"
        )
    return dict(content)


def identity(
    model: SlideModel, settings: TrainSettings, slides: int, validated: int, processes: int
) -> dict[str, Any]:
    """What the numbers of a training depend on, beside what its slides hold."""
    told = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(settings).items()
        if name not in CHANGE_NO_NUMBER
    }
    tensors = [f"{name} {tuple(tensor.shape)}" for name, tensor in model.state_dict().items()]
    digest = hashlib.sha256("\n".join(tensors).encode()).hexdigest()[:12]
    whose = {"model": model.name, "tensors of the model": digest}
    counts = {"slides": slides, "validated": validated, "processes": processes}
    return {**whose, **counts, **told}


def check_same(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise DataError unless a checkpoint is of this very training."""
    for name, mine in here.items():
        if there.get(name) != mine:
            raise DataError(
                f"'{path}' is of another training: {name} was {there.get(name)}, now {mine}. Train "
                "into another folder, or delete that one to begin anew"
            )


def remove_halves(folder: Path) -> None:
    """Delete what writers that were killed left half written."""
    for path in folder.glob(".*.tmp-*"):
        pid = path.name.rpartition("-")[2]
        if pid.isdecimal() and not is_alive(int(pid)):
            path.unlink(missing_ok=True)
