"""A short training loop over bags in memory: one slide a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

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
    after_epoch: Callable[[int, float], None] | None = None,
) -> History:
    """Train in place with AdamW, one slide a step; the model is left in eval mode.

    The fingerprint of the training features becomes the one the model requires. The loop knows no
    method: auxiliary losses, teachers and schedules come through the interfaces.

    Args:
        bags: with `target`, e.g. `{"label": 1}`.
        seed: of the order of slides and of dropout; the global random state is left as it was.

    Raises:
        DataError: no bags, bags of different encoders, a target that does not fit, a NaN loss
            (naming the slide).
    """
    model.requires = common_fingerprint(model, bags)
    history = History()
    optimiser = torch.optim.AdamW(model.param_groups(lr), lr=lr, weight_decay=weight_decay)
    total = epochs * len(bags)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.train()
        model.start_training(total)
        step = 0
        for epoch in range(epochs):
            sum_of_losses = 0.0
            for index in torch.randperm(len(bags)).tolist():
                loss = torch.stack(
                    list(model.losses(model(bags[index]), bags[index]).values())
                ).sum()
                if not bool(torch.isfinite(loss)):
                    raise DataError(f"the loss of slide '{bags[index].slide_id}' is {float(loss)}")
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                step += 1
                model.after_step(step, total)
                sum_of_losses += float(loss.detach())
            history.losses.append(sum_of_losses / len(bags))
            if after_epoch:
                after_epoch(epoch + 1, history.losses[-1])
    model.eval()
    model.trained = True
    return history


def common_fingerprint(model: SlideModel, bags: Sequence[Bag]) -> Fingerprint:
    """The one fingerprint of all bags, checked against what the model requires.

    Raises:
        DataError: no bags. FingerprintError: bags of different encoders.
    """
    if not bags:
        raise DataError("There are no bags to train on")
    known = [bag for bag in bags if bag.encoder is not None]
    if not known:
        return model.requires
    first = known[0].encoder
    assert first is not None
    for bag in known:
        assert bag.encoder is not None
        model.requires.check_accepts(bag.encoder, f"'{model.name}'", f"slide '{bag.slide_id}'")
        first.check_accepts(bag.encoder, f"'{model.name}' in training", f"slide '{bag.slide_id}'")
    return first
