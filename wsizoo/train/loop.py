"""A short training loop over bags in memory, and what a step of any loop is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from wsizoo.bag import Bag, BagBatch
from wsizoo.errors import DataError, SpecError
from wsizoo.fingerprint import Fingerprint
from wsizoo.interfaces import SlideOutput
from wsizoo.model import SlideModel
from wsizoo.objectives import TaskLoss


@dataclass
class History:
    """Mean training loss of each epoch."""

    losses: list[float] = field(default_factory=list)


def fit(
    model: SlideModel,
    bags: Sequence[Bag],
    *,
    epochs: int = 30,
    lr: float = 1e-3,
    weight_decay: float = 1e-3,
    seed: int = 0,
    augment: Callable[[Bag, None, float], Bag] | None = None,
    after_epoch: Callable[[int, float], None] | None = None,
) -> History:
    """Train in place with AdamW, one slide a step; the model is left in eval mode.

    What the training features state is then required of features, besides what was required
    before. The loop knows no method: auxiliary losses, teachers and schedules come through the
    interfaces.

    Args:
        bags: with `target`, e.g. `{"label": 1}`.
        seed: of the order of slides, of dropout and of the augmentation; the global random state is
            left as it was.
        augment: what a slide is changed by each time it is shown: called with it, None (draw from
            the global generator) and the share of epochs that are done, as
            `wsizoo.augment.CoordinateAugmentation` is.

    Raises:
        DataError: no bags, bags of different encoders, a target that does not fit, a NaN loss
            (naming the slide).
        SpecError: a head whose loss compares slides, as here each is a step.
    """
    check_steps(model, 1)
    requires = common_fingerprint(model, bags)
    history = History()
    optimiser = torch.optim.AdamW(model.param_groups(lr), lr=lr, weight_decay=weight_decay)
    total, step = epochs * len(bags), 0
    with torch.random.fork_rng(devices=_cuda_devices()):
        torch.manual_seed(seed)
        model.train()
        try:
            model.start_training(total, bags)
            for epoch in range(epochs):
                losses = []
                for index in torch.randperm(len(bags)).tolist():
                    bag = bags[index]
                    shown = augment(bag, None, epoch / epochs) if augment else bag
                    losses.append(_step(model, shown, optimiser))
                    step += 1
                    model.after_step(step, total)
                history.losses.append(sum(losses) / len(losses))
                if after_epoch:
                    after_epoch(epoch + 1, history.losses[-1])
        finally:
            model.eval()
    model.requires, model.trained, model.facts = requires, True, {}
    return history


def _step(model: SlideModel, bag: Bag, optimiser: Optimizer) -> float:
    """One optimiser step on one slide; returns its loss."""
    loss = loss_of(model, [bag])
    value = float(loss.detach())
    if not math.isfinite(value):
        raise DataError(f"the loss of {named([bag.slide_id])} is {value}")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return value


def loss_of(model: SlideModel, slides: Sequence[Bag], task_loss: TaskLoss | None = None) -> Tensor:
    """What a step minimises, (): all that `SlideModel.losses` names; several slides are packed."""
    return shown(model, slides, task_loss)[1]


def shown(
    model: SlideModel, slides: Sequence[Bag], task_loss: TaskLoss | None = None
) -> tuple[SlideOutput, Tensor]:
    """What a model answers, of several slides packed, and `loss_of` it."""
    if len(slides) == 1:
        output = model(slides[0])
        terms = model.losses(output, slides[0], task_loss)
    else:
        batch = BagBatch.pack(slides)
        output = model.forward_packed(batch)
        terms = model.losses(output, batch, task_loss)
    return output, torch.stack(list(terms.values())).sum()


def check_steps(model: SlideModel, batch_size: int, task_loss: TaskLoss | None = None) -> None:
    """Raise SpecError where steps of so many slides have no loss that teaches anything."""
    head = model.head
    if head is not None and head.compares_slides and task_loss is None and batch_size == 1:
        raise SpecError(
            f"the head of '{model.name}', {type(head).__name__}, compares the slides of a batch "
            "with one another: of one slide it learns nothing, and accumulating adds batches up, "
            "it does not join them. Train with more at once, in a run: train.batch_size=32 "
            "train.accumulate=1"
        )


def named(slides: Sequence[str]) -> str:
    """`slide 's1'`, or `one of slides 's1', 's2'`."""
    quoted = ", ".join(f"'{name}'" for name in slides)
    return f"slide {quoted}" if len(slides) == 1 else f"one of slides {quoted}"


def common_fingerprint(model: SlideModel, bags: Sequence[Bag]) -> Fingerprint:
    """What the model and all bags together state of their features, checked to be one thing.

    Raises:
        DataError: no bags, or some that do not say who made them, among others that do.
        FingerprintError: bags of different encoders, or of another than the model requires.
    """
    if not bags:
        raise DataError("There are no bags to train on")
    made = Makers(model)
    for bag in bags:
        made.add(bag.encoder, bag.slide_id)
    return made.together()


class Makers:
    """Who made the features of the slides met so far, held to be one maker.

    Args:
        seen: the first slide of each fingerprint. unknown: the first that states none.
    """

    def __init__(self, model: SlideModel) -> None:
        self.model = model
        self.seen: dict[Fingerprint, str] = {}
        self.unknown: str | None = None

    def add(self, made: Fingerprint | None, slide: str) -> None:
        """Meet one more slide. Raises as `common_fingerprint`."""
        if made is None:
            self.unknown = self.unknown or slide
        elif made not in self.seen:
            what = f"slide '{slide}'"
            self.model.requires.check_accepts(made, f"'{self.model.name}'", what)
            for other, name in self.seen.items():
                other.check_same(made, f"slide '{name}'", what)
            self.seen[made] = slide
        if self.seen and self.unknown:
            stated, name = next(iter(self.seen.items()))
            raise DataError(
                f"slide '{self.unknown}' states no encoder, slide '{name}' states "
                f"{stated.encoder}: they may not be alike. Extract it again, or say what made it: "
                "bag.replace(encoder=wsizoo.Fingerprint(...)), in a run data.encoder=NAME"
            )

    def together(self) -> Fingerprint:
        """What the model and the slides state, as one."""
        every = [self.model.requires, *self.seen]
        stated = {key: value for one in every for key, value in one.stated().items()}
        return Fingerprint(**stated, declared=any(one.declared for one in every))


def _cuda_devices() -> list[int]:
    """GPUs whose random state manual_seed changes: those of a process that uses CUDA at all."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return list(range(torch.cuda.device_count())) if used else []
