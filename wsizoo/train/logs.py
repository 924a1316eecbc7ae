"""What a training tells: epochs.csv, log.jsonl, a line an epoch, TensorBoard and W&B."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from wsizoo.errors import NotFoundError
from wsizoo.files import write_csv, write_text

Row = dict[str, float]
TIMES = ("seconds", "waited")  # of a row; not in epochs.csv, which is the same in every repetition


def write_logs(folder: Path, history: Sequence[Row]) -> None:
    """Write epochs.csv and log.jsonl, a row an epoch; a value that is no number is empty, null."""
    columns = list(dict.fromkeys(k for row in history for k in row))
    told = [{k: v for k, v in row.items() if math.isfinite(v)} for row in history]
    plain = [{k: v for k, v in row.items() if k not in TIMES} for row in told]
    write_csv(folder / "epochs.csv", plain, [name for name in columns if name not in TIMES])
    lines = [json.dumps({name: row.get(name) for name in columns}) for row in told]
    write_text(folder / "log.jsonl", "".join(line + "\n" for line in lines))


def line_of(row: Row, epochs: int) -> str:
    """An epoch in a line of plain text."""
    shown = [
        f"{name} {value:.3g}" if name == "lr" else f"{name} {value:.4f}"
        for name, value in row.items()
        if name not in ("epoch", *TIMES)
    ]
    times = f"{row['seconds']:.1f} s"
    return "  ".join([f"epoch {row['epoch']}/{epochs}", *shown, times])


def check_loggers(names: Sequence[str]) -> None:
    """Raise NotFoundError unless what these loggers need can be imported."""
    for name in names:
        _imported(name)


def open_loggers(names: Sequence[str], folder: Path, epochs: int) -> list[Logger]:
    """Loggers that go on after so many epochs; what they hold of later ones counts no more."""
    kinds: dict[str, Callable[[Path, int], Logger]] = {"tensorboard": _TensorBoard, "wandb": _WandB}
    return [kinds[name](folder, epochs) for name in names]


class Logger(Protocol):
    """Takes an epoch's row each time."""

    def log(self, row: Row) -> None: ...
    def close(self) -> None: ...


def _imported(name: str) -> Any:
    try:
        module = importlib.import_module(name)
        if name == "tensorboard":
            module = importlib.import_module("torch.utils.tensorboard")
    except ImportError as error:
        raise NotFoundError(
            f"train.loggers names {name}, which is not installed: pip install {name}, or leave it "
            "out: train.loggers=[]; epochs.csv and log.jsonl are written without it"
        ) from error
    return module


class _TensorBoard:
    def __init__(self, folder: Path, epochs: int) -> None:
        library = _imported("tensorboard")
        self.writer = library.SummaryWriter(str(folder / "tensorboard"), purge_step=epochs + 1)

    def log(self, row: Row) -> None:
        for name, value in row.items():
            if name != "epoch":
                self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _WandB:
    """One run of W&B a folder: its id is kept there, and a training that goes on goes on in it."""

    def __init__(self, folder: Path, epochs: int) -> None:
        library = _imported("wandb")
        kept = folder / "wandb-id.txt"
        if not kept.exists():
            write_text(kept, library.util.generate_id())
        run = kept.read_text(encoding="utf-8")
        self.run = library.init(dir=str(folder), id=run, resume="allow")

    def log(self, row: Row) -> None:
        self.run.log(dict(row), step=row["epoch"])

    def close(self) -> None:
        self.run.finish()
