"""train_model: epochs over slides on disk, which a kill interrupts and does not change."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wsizoo.bag import Bag
from wsizoo.errors import DataError
from wsizoo.measures.names import LOWER_IS_BETTER
from wsizoo.model import SlideModel
from wsizoo.objectives import TaskLoss
from wsizoo.train.checkpointing import (
    check_same,
    identity,
    read_checkpoint,
    remove_halves,
    write_checkpoint,
)
from wsizoo.train.loading import Augment, EachOf, Slides, Step, read_ahead, some_patches, steps_of
from wsizoo.train.logs import Logger, Row, check_loggers, line_of, open_loggers, write_logs
from wsizoo.train.loop import check_steps
from wsizoo.train.randomness import For, generator_for, random_states_kept
from wsizoo.train.run_folder import writing
from wsizoo.train.settings import TrainSettings
from wsizoo.train.steps import Note, Stepper

__all__ = ["TrainSettings", "Trained", "train_model"]

Measure = Callable[[SlideModel, Sequence[Any]], Mapping[str, float]]


@dataclass(frozen=True)
class Trained:
    """What happened.

    Args:
        history: a row an epoch: epoch, lr (of its last step), train_loss, val_loss, what `measure`
            gave as val_<name>, seconds, waited (s that training stood still for slides).
        best_epoch: the best by the metric, from 1; None: there was none to choose by.
        epoch: whose weights the model has now.
        stopped_early: whether `patience` ended it.
    """

    history: tuple[Row, ...]
    best_epoch: int | None
    epoch: int
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
    note: Note | None = None,
    measure: Measure | None = None,
    say: Callable[[str], None] | None = None,
    tick: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train a model in place; it ends with the weights that were chosen, in eval mode.

    Writes `epochs.csv`, `log.jsonl`, `checkpoints/last.ckpt` and `checkpoints/best.ckpt` into the
    folder. Where `last.ckpt` is there it goes on from it, and comes to the same numbers as if it
    had never stopped: every pass draws its random numbers from seed, epoch and slide alone.

    Started by torchrun, the processes share the slides of each step, and the first of them writes.

    Args:
        train, val: with targets, read when they are wanted, also by several threads at once.
        task_loss: in place of the head's own loss, in training and validation.
        augment: called with a slide, a generator to draw from, and the share of epochs done.
        note: called with the evaluated model, the index of a validation slide, the slide and what
            the model answers, by the process that shows it; returns plain data.
        measure: called with the model that is evaluated after each epoch and the notes of all
            validation slides in their order, by the first process; what it returns becomes
            `val_<name>`.
        say: gets a line an epoch. tick: (slides shown, slides in all epochs), after each step.

    Raises:
        DataError: no slides, a slide that cannot be read, a loss or gradient that is not finite
            (naming the slides; the last checkpoint stays), a checkpoint of another training, no
            room for one, nothing to choose the best epoch by.
        NotFoundError: Lightning Fabric, a logger or the device is not there.
        SpecError: a head whose loss compares slides, and steps of one.
        FingerprintError: features of different encoders, or of another than the model requires.
    """
    check_steps(model, settings.batch_size, task_loss)
    _check(train, val, settings, measure)
    with random_states_kept():
        model.train()
        try:
            stepper = Stepper(model, settings, len(train), task_loss)
            training = _Training(stepper, train, val, Path(folder), augment)
            training.note, training.measure = note, measure
            if stepper.first:
                training.say, training.tick = say or _nothing, tick or _nothing
            training.begin()
            try:
                training.run()
            finally:
                for logger in training.loggers:
                    logger.close()
            return training.finish()
        finally:
            model.eval()


def _check(
    train: Slides, val: Slides | None, settings: TrainSettings, measure: Measure | None
) -> None:
    """Raise before anything is read what would else show itself after an epoch."""
    if not len(train):
        raise DataError("There are no slides to train on")
    if settings.chooses and settings.metric == "loss" and not val:
        raise DataError(
            "There are no validation slides to choose the best epoch by. Give some, or train with "
            "checkpoint=last and without patience"
        )
    if settings.chooses and settings.metric != "loss" and measure is None:
        raise DataError(f"Nothing measures '{settings.metric}' to choose the best epoch by")
    check_loggers(settings.loggers)


def _nothing(*_: object) -> None: ...


class _Training:
    """The epochs of one training, and how far it is.

    Attributes:
        history: finished epochs. loss_sum: of the slides shown in the one under way.
    """

    say: Callable[[str], None] = staticmethod(_nothing)
    tick: Callable[[int, int], None] = staticmethod(_nothing)
    note: Note | None = None
    measure: Measure | None = None

    def __init__(
        self,
        stepper: Stepper,
        train: Slides,
        val: Slides | None,
        folder: Path,
        augment: Augment | None,
    ) -> None:
        self.stepper, self.train, self.val = stepper, train, val or None
        self.settings, self.folder = stepper.settings, folder
        self.augment = augment
        self.history: list[Row] = []
        self.loss_sum = 0.0
        self.best_epoch: int | None = None
        self.loggers: list[Logger] = []
        self.last = folder / "checkpoints" / "last.ckpt"
        self.best = folder / "checkpoints" / "best.ckpt"
        counts = len(train), len(val or ()), stepper.fabric.world_size
        self.identity = identity(stepper.model, self.settings, *counts)

    def begin(self) -> None:
        """Be where the last checkpoint was, if there is one."""
        content = None
        if self.stepper.first:
            remove_halves(self.last.parent)
            content = read_checkpoint(self.last) if self.last.exists() else None
        content = self.stepper.fabric.broadcast(content)
        if content is None:
            self.stepper.start(EachOf(self.train))
        else:
            self._go_on(content)
        if self.stepper.first:
            self.loggers = open_loggers(self.settings.loggers, self.folder, len(self.history))

    def _go_on(self, content: Mapping[str, Any]) -> None:
        check_same(self.last, content["identity"], self.identity)
        self.history, self.best_epoch = list(content["history"]), content["best_epoch"]
        self.loss_sum = content["loss_sum"]
        self.stepper.go_on(content["stepper"])
        if self.stepper.first and self.history:
            write_logs(self.folder, self.history)
        steps = self.stepper.done - len(self.history) * self.stepper.per_epoch
        inside = f" and {steps} of {self.stepper.per_epoch} steps" if steps else ""
        self.say(f"goes on after epoch {len(self.history)}/{self.settings.epochs}{inside}")

    def run(self) -> None:
        """All epochs that are left."""
        for epoch in range(len(self.history), self.settings.epochs):
            if self._patience_is_over():
                break
            start, self.stepper.waited, self.stepper.idle = time.perf_counter(), 0.0, 0
            self._show_all(epoch)
            if idle := self.stepper.idle:
                self.say(
                    f"Warning: {idle} of {self.stepper.per_epoch} steps of epoch {epoch + 1} "
                    "taught nothing, their gradient is 0: for instance no event among slides that "
                    "are compared. Look at the targets, or take more at once: train.batch_size"
                )
            row = {
                "epoch": epoch + 1,
                "lr": self.stepper.lr,
                "train_loss": self.loss_sum / len(self.train),
                **self._evaluate(epoch),
            }
            times = {"seconds": time.perf_counter() - start, "waited": self.stepper.waited}
            self._end_epoch({**row, **times})

    def _show_all(self, epoch: int) -> None:
        """The steps of an epoch that are not yet done."""
        s, count = self.settings, len(self.train)
        steps = self._steps(epoch)
        done = self.stepper.done - epoch * self.stepper.per_epoch
        shown = epoch * count + sum(step.total for step in steps[:done])
        wanted = [i for step in steps[done:] for one in step.passes for i in one]

        def change(bag: Bag, index: int) -> Bag:
            generator = generator_for(s.seed, For.READING, epoch, index)
            if s.max_patches is not None:
                bag = some_patches(bag, s.max_patches, generator)
            return bag if self.augment is None else self.augment(bag, generator, epoch / s.epochs)

        with closing(read_ahead(self.train, wanted, s.workers, change)) as reader:
            for step in steps[done:]:
                self.loss_sum += self.stepper.do(step, reader, epoch)
                shown += step.total
                self.tick(shown, count * s.epochs)
                if s.checkpoint_steps and self.stepper.done % s.checkpoint_steps == 0:
                    self._save()

    def _steps(self, epoch: int) -> list[Step]:
        s, fabric = self.settings, self.stepper.fabric
        generator = generator_for(s.seed, For.ORDER, epoch)
        order = torch.randperm(len(self.train), generator=generator).tolist()
        return steps_of(order, s.batch_size, s.accumulate, fabric.global_rank, fabric.world_size)

    def _evaluate(self, epoch: int) -> Row:
        """Validation loss, and what `measure` gives."""
        stepper, row = self.stepper, {}
        notes: list[Any] = []
        stepper.share_makers()
        stepper.evaluated.eval()
        if self.val is not None:
            row["val_loss"], notes = stepper.validate(self.val, epoch, self.note)
        if self.measure is not None:
            found = dict(self.measure(stepper.evaluated, notes)) if stepper.first else {}
            found = stepper.fabric.broadcast(found)
            row |= {f"val_{name}": float(value) for name, value in found.items()}
        stepper.evaluated.train()
        return row

    def _end_epoch(self, row: Row) -> None:
        self.history.append(row)
        self.loss_sum = 0.0
        if self._may_be_best() and self._is_better(row):
            self.best_epoch = len(self.history)
            if self.stepper.first:
                weights = self.stepper.evaluated.state_dict()
                write_checkpoint(self.best, {"epoch": self.best_epoch, "model": weights})
        self._save()
        if self.stepper.first:
            with writing(self.folder):
                write_logs(self.folder, self.history)
        for logger in self.loggers:
            logger.log(row)
        self.say(line_of(row, self.settings.epochs))

    def _may_be_best(self) -> bool:
        parts = self.stepper.evaluated.parts()
        return self.settings.chooses and all(part.ready for _, part in parts)

    def _is_better(self, row: Row) -> bool:
        metric = self.settings.metric
        name = f"val_{metric}"
        if name not in row:
            told = ", ".join(key[4:] for key in row if key.startswith("val_"))
            raise DataError(f"No '{metric}' to choose the best epoch by; measured: {told}")
        if not math.isfinite(row[name]):
            raise DataError(
                f"{name} is {row[name]} after epoch {row['epoch']}, so no epoch is the best. "
                "Choose by another metric, or look at the validation part: has it all classes?"
            )
        if self.best_epoch is None:
            return True
        before = self.history[self.best_epoch - 1][name]
        return row[name] < before if metric in {"loss", *LOWER_IS_BETTER} else row[name] > before

    def _patience_is_over(self) -> bool:
        patience = self.settings.patience
        early = len(self.history) < self.settings.min_epochs
        if patience is None or self.best_epoch is None or early:
            return False
        return len(self.history) - self.best_epoch >= patience

    def _save(self) -> None:
        if self.stepper.first:
            content = {
                "identity": self.identity,
                "history": self.history,
                "best_epoch": self.best_epoch,
                "loss_sum": self.loss_sum,
                "stepper": self.stepper.state(),
            }
            write_checkpoint(self.last, content)

    def finish(self) -> Trained:
        """The model gets the weights that were chosen."""
        stepper, epoch = self.stepper, len(self.history)
        if self.settings.checkpoint == "best":
            content = read_checkpoint(self.best) if stepper.first else {}
            content = stepper.fabric.broadcast(content)
            epoch = content["epoch"]
            stepper.model.load_state_dict(content["model"])
        else:
            stepper.model.load_state_dict(stepper.evaluated.state_dict())
        stepper.model.requires, stepper.model.trained = stepper.makers.together(), True
        stepper.model.facts = {}
        early = len(self.history) < self.settings.epochs
        return Trained(tuple(self.history), self.best_epoch, epoch, early)
