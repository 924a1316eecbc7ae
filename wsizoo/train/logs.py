"""What a training tells: epochs.csv, log.jsonl, a line an epoch, TensorBoard and W&B."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsizoo.errors import NotFoundError
from wsizoo.files import write_csv, write_text

Row = dict[str, float]
Logger = Callable[[Mapping[str, float]], None]
TIMES = ("seconds", "waited")  # of a row; not in epochs.csv, which is the same in every repetition
NEEDED = {"tensorboard": "tensorboard", "wandb": "wandb"}


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


def open_loggers(names: Sequence[str], folder: Path, epoch: int) -> list[Logger]:
    """Each takes an epoch's row; what they told of epochs after `epoch` before counts no more."""
    makers = {"tensorboard": _tensorboard, "wandb": _wandb}
    return [makers[name](folder, epoch) for name in names]


def _imported(name: str) -> Any:
    try:
        importlib.import_module(NEEDED[name])
        if name == "tensorboard":
            return importlib.import_module("torch.utils.tensorboard")
        return importlib.import_module(name)
    except ImportError as error:
        raise NotFoundError(
            f"loggers names {name}, which is not installed: pip install {NEEDED[name]}; epochs.csv "
            "and log.jsonl are written without it"
        ) from error


def _tensorboard(folder: Path, epoch: int) -> Logger:
    writer = _imported("tensorboard").SummaryWriter(str(folder / "tensorboard"), purge_step=epoch)

    def log(row: Mapping[str, float]) -> None:
        for name, value in row.items():
            if name != "epoch":
                writer.add_scalar(name, value, int(row["epoch"]))
        writer.flush()

    return log


def _wandb(folder: Path, epoch: int) -> Logger:
    """One run of W&B a folder: its id is kept there, so that a resumed training goes on in it."""
    wandb = _imported("wandb")
    kept = folder / "wandb-id.txt"
    if not kept.exists():
        write_text(kept, wandb.util.generate_id())
    run = wandb.init(dir=str(folder), id=kept.read_text(encoding="utf-8"), resume="allow")

    def log(row: Mapping[str, float]) -> None:
        run.log(dict(row), step=int(row["epoch"]))

    return log
