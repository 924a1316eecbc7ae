"""A short training loop over bags in memory: one slide a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch.optim import Optimizer

from wsizoo.bag import Bag
from wsizoo.errors import DataError
from wsizoo.fingerprint import Fingerprint
from wsizoo.model import SlideModel


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
    """
    requires = common_fingerprint(model, bags)
    history = History()
    optimiser = torch.optim.AdamW(model.param_groups(lr), lr=lr, weight_decay=weight_decay)
    total, step = epochs * len(bags), 0
    with torch.random.fork_rng(devices=_cuda_devices()):
        torch.manual_seed(seed)
        model.train()
        try:
            model.start_training(total)
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
    loss = torch.stack(list(model.losses(model(bag), bag).values())).sum()
    value = float(loss.detach())
    if not math.isfinite(value):
        raise DataError(f"the loss of slide '{bag.slide_id}' is {value}")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return value


def common_fingerprint(model: SlideModel, bags: Sequence[Bag]) -> Fingerprint:
    """What the model and all bags together state of their features, checked to be one thing.

    Raises:
        DataError: no bags, or some that do not say who made them, among others that do.
        FingerprintError: bags of different encoders, or of another than the model requires.
    """
    if not bags:
        raise DataError("There are no bags to train on")
    seen: dict[Fingerprint, str] = {}
    unknown = [f"slide '{bag.slide_id}'" for bag in bags if bag.encoder is None]
    for bag in bags:
        if bag.encoder is None or bag.encoder in seen:
            continue
        slide = f"slide '{bag.slide_id}'"
        model.requires.check_accepts(bag.encoder, f"'{model.name}'", slide)
        for other, name in seen.items():
            other.check_same(bag.encoder, name, slide)
        seen[bag.encoder] = slide
    if seen and unknown:
        made, name = next(iter(seen.items()))
        raise DataError(
            f"{unknown[0]} states no encoder, {name} states {made.encoder}: they may not be alike. "
            "Extract it again, or say what made it: bag.replace(encoder=wsizoo.Fingerprint(...))"
        )
    all_stated = [model.requires, *seen]
    stated = {key: value for one in all_stated for key, value in one.stated().items()}
    return Fingerprint(**stated, declared=any(one.declared for one in all_stated))


def _cuda_devices() -> list[int]:
    """GPUs whose random state manual_seed changes: those of a process that uses CUDA at all."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return list(range(torch.cuda.device_count())) if used else []
