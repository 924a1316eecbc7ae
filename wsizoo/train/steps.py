"""What happens to a model in one optimiser step, and in one validation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, NoReturn, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from wsizoo.bag import Bag
from wsizoo.errors import DataError
from wsizoo.fingerprint import Fingerprint
from wsizoo.interfaces import SlideOutput
from wsizoo.model import SlideModel
from wsizoo.objectives import TaskLoss
from wsizoo.outputs import unstacked
from wsizoo.train.loading import Slides, Step, read_ahead, steps_of
from wsizoo.train.loop import Makers, loss_of, named, shown
from wsizoo.train.processes import (
    alike_everywhere,
    gathered,
    start_processes,
    sum_gradients,
    sums,
)
from wsizoo.train.randomness import For, seed_all
from wsizoo.train.schedules import lr_factor, make_optimiser, set_lr
from wsizoo.train.settings import TrainSettings

# (model, index of the slide, slide, what the model answers) -> plain data
Note = Callable[[SlideModel, int, Bag, SlideOutput], Any]


class Stepper:
    """A model with its optimiser, and how many steps it has done.

    Args:
        slides: in an epoch.

    Attributes:
        done: optimiser steps. of: in all epochs. per_epoch: in one.
        idle: steps, since it was last set to 0, whose gradient was 0.
        waited: s that `do` and `validate` stood still for slides.
    """

    def __init__(
        self, model: SlideModel, settings: TrainSettings, slides: int, task_loss: TaskLoss | None
    ) -> None:
        self.model, self.settings, self.task_loss = model, settings, task_loss
        self.fabric = start_processes(settings.device, settings.precision)
        self.first = self.fabric.is_global_zero
        together = settings.batch_size * settings.accumulate * self.fabric.world_size
        self.per_epoch = math.ceil(slides / together)
        self.of = self.per_epoch * settings.epochs
        self.done, self.idle, self.waited = 0, 0, 0.0
        self.makers = Makers(model)
        self.fabric.to_device(model)
        self.optimiser = make_optimiser(model, settings)
        self.ema = None
        if settings.ema is not None:
            mean = get_ema_multi_avg_fn(settings.ema)  # type: ignore[no-untyped-call]
            self.ema = AveragedModel(model, multi_avg_fn=mean)

    @property
    def evaluated(self) -> SlideModel:
        """The model whose weights are evaluated and kept."""
        return self.model if self.ema is None else cast(SlideModel, self.ema.module)

    @property
    def lr(self) -> float:
        """Of the last step, of groups without an own one."""
        return self.settings.lr * lr_factor(self.settings, self.done - 1, self.per_epoch)

    def start(self, slides: Iterable[Bag]) -> None:
        """Tell the parts that it begins; `slides`: the training part."""
        seed_all(self.settings.seed, For.START)
        self.model.start_training(self.of, slides)
        alike_everywhere(self.fabric, self.model)

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Be where `state` was given."""
        self.done = state["done"]
        for stated, declared, slide in state["makers"]:
            self.makers.add(Fingerprint(**stated, declared=declared), slide)
        self.makers.unknown = state["unknown"]
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        alike_everywhere(self.fabric, self.model)

    def state(self) -> dict[str, Any]:
        """All that later steps depend on; tensors and plain data."""
        return {
            "done": self.done,
            "makers": [[m.stated(), m.declared, name] for m, name in self.makers.seen.items()],
            "unknown": self.makers.unknown,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
        }

    def do(self, step: Step, reader: Iterator[Bag], epoch: int) -> float:
        """One step along the mean loss of its slides, whichever process shows them; their sum."""
        set_lr(self.optimiser, lr_factor(self.settings, self.done, self.per_epoch))
        self.optimiser.zero_grad(set_to_none=True)
        names_shown: list[str] = []
        losses, bad = 0.0, ""
        for indices in step.passes:
            slides = self._take(reader, len(indices))
            names = [bag.slide_id for bag in slides]
            names_shown += names
            seed_all(self.settings.seed, For.PASS, epoch, indices[0])
            with self.fabric.autocast():
                loss = loss_of(self.model, slides, self.task_loss)
            value = float(loss.detach())
            losses += value * len(indices)
            if not math.isfinite(value):
                bad = f"the loss of {named(names)} is {value}"
                break
            self.fabric.backward(loss * (len(indices) / step.total))
        total = self._of_all(losses, bad, epoch)
        sum_gradients(self.fabric, self.model.parameters())
        self._clip(names_shown, epoch)
        self.fabric.strategy.optimizer_step(self.optimiser)
        self._after()
        return total

    def _after(self) -> None:
        self.done += 1
        seed_all(self.settings.seed, For.AFTER_STEP, self.done)
        self.model.after_step(self.done, self.of)
        alike_everywhere(self.fabric, self.model, buffers_only=True)
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def validate(
        self, slides: Slides, epoch: int, note: Note | None = None
    ) -> tuple[float, list[Any]]:
        """Mean loss of the evaluated model, in passes of the size of training's, and all notes.

        Args:
            note: called with each slide, by the process that shows it.
        """
        s, fabric = self.settings, self.fabric
        every = range(len(slides))
        steps = steps_of(every, s.batch_size, 1, fabric.global_rank, fabric.world_size)
        passes = [one for step in steps for one in step.passes]
        wanted = [i for one in passes for i in one]
        losses, bad = 0.0, ""
        notes: list[tuple[int, Any]] = []
        with closing(read_ahead(slides, wanted, s.workers, lambda bag, _: bag)) as reader:
            for indices in passes:
                taken = self._take(reader, len(indices))
                with torch.no_grad(), fabric.autocast():
                    output, loss = shown(self.evaluated, taken, self.task_loss)
                value = float(loss)
                losses += value * len(indices)
                if not bad and not math.isfinite(value):
                    names = [bag.slide_id for bag in taken]
                    bad = f"the validation loss of {named(names)} is {value}"
                if note is not None and not bad:
                    each = _of_each(output, taken)
                    for index, bag, own in zip(indices, taken, each, strict=True):
                        notes.append((index, note(self.evaluated, index, bag, own)))
        mean = self._of_all(losses, bad, epoch) / len(slides)
        every_note = [one for own in gathered(fabric, notes) for one in own]
        return mean, [found for _, found in sorted(every_note, key=lambda one: one[0])]

    def share_makers(self) -> None:
        """Hold the slides of all processes to be of one maker."""
        for seen in gathered(self.fabric, list(self.makers.seen.items())):
            for made, slide in seen:
                self.makers.add(made, slide)

    def _take(self, reader: Iterator[Bag], count: int) -> list[Bag]:
        """The next slides, their makers checked."""
        start = time.perf_counter()
        slides = [next(reader) for _ in range(count)]
        self.waited += time.perf_counter() - start
        for bag in slides:
            self.makers.add(bag.encoder, bag.slide_id)
        return slides

    def _of_all(self, losses: float, bad: str, epoch: int) -> float:
        """Sum over the processes; they stop together where one has a loss that is not finite."""
        total, any_bad = sums(self.fabric, [losses, float(bool(bad))])
        if any_bad:
            self._stop("; ".join(one for one in gathered(self.fabric, bad) if one), epoch)
        return total

    def _clip(self, shown: list[str], epoch: int) -> None:
        """Clip; stop where a gradient is not finite (16-mixed leaves out such a step itself)."""
        most = self.settings.clip or math.inf
        norm = self.fabric.clip_gradients(
            self.model, self.optimiser, max_norm=most, error_if_nonfinite=False
        )
        value = float(cast(Tensor, norm))
        self.idle += value == 0
        if self.settings.precision != "16-mixed" and not math.isfinite(value):
            everywhere = [name for names in gathered(self.fabric, shown) for name in names]
            self._stop(f"the gradient of {named(everywhere)} is {value}", epoch)

    def _stop(self, why: str, epoch: int) -> NoReturn:
        every = self.settings.checkpoint_steps
        kept = epoch > 0 or (every is not None and self.done >= every)
        left = "the last checkpoint is as it was" if kept else "no checkpoint was written yet"
        raise DataError(
            f"{why}, in epoch {epoch + 1}; {left}. Look at the features and the target, else train "
            "with a smaller step: in a run optimiser.lr=1e-5 train.clip=1.0"
        )


def _of_each(output: SlideOutput, slides: Sequence[Bag]) -> list[SlideOutput]:
    if len(slides) == 1:
        return [output]
    return unstacked(output, [len(bag) for bag in slides])
