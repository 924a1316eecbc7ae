"""train_model: epochs over slides on disk, that a kill does not change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wsizoo.model import SlideModel
from wsizoo.objectives import TaskLoss
from wsizoo.train.loading import Augment, Slides
from wsizoo.train.settings import TrainSettings

__all__ = ["TrainSettings", "Trained", "train_model"]


@dataclass(frozen=True)
class Trained:
    """What happened.

    Args:
        history: a row an epoch: epoch, lr, train_loss, val_loss, val_<metric>, seconds, waited.
        best_epoch: whose weights the model has now, from 1.
        value: of the metric in that epoch; None: nothing was chosen by.
        stopped_early: whether `patience` ended it.
    """

    history: tuple[dict[str, float], ...]
    best_epoch: int
    value: float | None
    stopped_early: bool


def train_model(
    model: SlideModel,
    train: Slides,
    val: Slides | None,
    settings: TrainSettings,
    folder: Path,
    *,
    task_loss: TaskLoss | None = None,
    augment: Augment | None = None,
    measure: Callable[[SlideModel], Mapping[str, float]] | None = None,
    say: Callable[[str], None] | None = None,
    tick: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train a model in place; it ends with the weights that were chosen, in eval mode.

    Writes folder/epochs.csv, log.jsonl and checkpoints/last.ckpt and best.ckpt; goes on from
    last.ckpt if it is there.

    Args:
        train, val: `len` and `[i] -> Bag` with its target, read when asked for, also by several
            threads at once; an attribute `names` (one a slide) names them in errors.
        task_loss: in place of the head's own loss, for training and validation.
        augment: called as (bag, generator, share of epochs done); draws from the generator alone.
        measure: called with the evaluated model after each epoch, on one process; what it returns
            becomes `val_<name>`.
        say: a line an epoch. tick: (slides shown, of all in all epochs), after each step.
    """
    raise NotImplementedError
