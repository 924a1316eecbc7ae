"""How outputs are computed late, aligned with the patches that were passed in, and joined."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from wsizoo.bag import BagBatch

PER_SLIDE = ("logits", "hazards", "risk", "value", "embedding")
PER_PATCH = ("instance_logits", "selector_scores", "groups")


class OnFirstAccess:
    """A field whose value may be a function, called once, without gradients, when asked for."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.slot = "_" + name

    def __get__(self, instance: Any, owner: type) -> Tensor | None:
        if instance is None:
            return None  # the field's default
        value: Any = getattr(instance, self.slot)
        if callable(value):
            with torch.no_grad():
                value = value()
            setattr(instance, self.slot, value)
        return cast("Tensor | None", value)

    def __set__(self, instance: Any, value: Tensor | Callable[[], Tensor | None] | None) -> None:
        setattr(instance, self.slot, value)


LATE = OnFirstAccess()  # the field of a dataclass


class Scored:
    """An output with `scores`, which may be a function."""

    scores: Any

    @property
    def scores_given(self) -> Any:
        """The scores, or the function of them that nobody has asked yet; None: there are none."""
        return vars(self)["_scores"]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_scores": self.scores}  # functions do not pickle


def aligned_scores(of: Scored, kept: Tensor | None, n: int) -> Any:
    """`aligned` scores, put off where they are a function."""
    if callable(of.scores_given):
        return lambda: aligned(of.scores, kept, n)
    return aligned(of.scores, kept, n)


def aligned(values: Tensor | None, kept: Tensor | None, n: int) -> Tensor | None:
    """Values of the kept patches (K,) -> of all n that were passed in; dropped ones get 0."""
    if values is None or kept is None:
        return values
    return values.new_zeros((n, *values.shape[1:])).index_copy(0, kept, values)


def stacked(outputs: Sequence[Any], batch: BagBatch) -> Any:
    """One output of many: slide-level fields stacked, per-patch ones concatenated.

    Losses are means over the slides; predictions are renamed `name/slide`; `task_weight` is that of
    the first.
    """
    losses: dict[str, Tensor] = {}
    predictions: dict[str, Any] = {}
    for i, output in enumerate(outputs):
        for key, value in output.losses.items():
            losses[key] = losses.get(key, torch.zeros_like(value)) + value / len(outputs)
        for key, p in output.predictions.items():
            predictions[f"{key}/{i}"] = dataclasses.replace(p, slide=i)
    return type(outputs[0])(
        **{name: _joined(torch.stack, outputs, name) for name in PER_SLIDE},
        **{name: _joined(torch.cat, outputs, name) for name in PER_PATCH},
        scores=_joined_scores(outputs),
        kept=_joined_kept(outputs, batch),
        offsets=batch.offsets,
        losses=losses,
        predictions=predictions,
        task_weight=outputs[0].task_weight,
    )


def unstacked(output: Any, lengths: Sequence[int]) -> list[Any]:
    """The answers for each slide of a packed output; scores, losses and predictions stay there.

    Args:
        lengths: patches of each slide, as passed in.
    """
    slide = {name: v for name in PER_SLIDE if (v := getattr(output, name)) is not None}
    patch = {name: v for name in PER_PATCH if (v := getattr(output, name)) is not None}
    found, start = [], 0
    for i, n in enumerate(lengths):
        stop, kept = start + n, output.kept
        if kept is not None:
            kept = kept[(kept >= start) & (kept < stop)] - start
        own = {name: value[i] for name, value in slide.items()}
        rows = {name: value[start:stop] for name, value in patch.items()}
        found.append(type(output)(**own, **rows, kept=kept))
        start = stop
    return found


def _joined(how: Callable[..., Tensor], outputs: Sequence[Any], name: str) -> Tensor | None:
    values = [getattr(output, name) for output in outputs]
    return None if any(value is None for value in values) else how(values)


def _joined_scores(outputs: Sequence[Any]) -> Any:
    if any(callable(output.scores_given) for output in outputs):
        return lambda: _joined(torch.cat, outputs, "scores")
    return _joined(torch.cat, outputs, "scores")


def _joined_kept(outputs: Sequence[Any], batch: BagBatch) -> Tensor | None:
    """Rows of the batch that were kept; a slide of which all were (None) counts in full."""
    if all(output.kept is None for output in outputs):
        return None
    rows = []
    for output, bag, start in zip(outputs, batch, batch.offsets.tolist(), strict=False):
        every = torch.arange(len(bag), device=batch.offsets.device)
        rows.append((every if output.kept is None else output.kept) + start)
    return torch.cat([row.to(rows[0].device) for row in rows])
