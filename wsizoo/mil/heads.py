"""Heads: from a slide vector (or one a patch) to classes, hazards, a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wsizoo.errors import DataError, SpecError
from wsizoo.interfaces import Head
from wsizoo.losses import cross_entropy, discrete_time_nll, mean_squared_error


class ClassificationHead(Head):
    """A linear map to one logit a class.

    Args:
        in_dim: width E of the slide vector; None: the aggregator owns the classifier.
        classes: names, in the order of the logits.

    Returns (forward): `logits` (C,).
    """

    task = "classification"

    def __init__(self, in_dim: int | None, classes: Sequence[str]) -> None:
        check_classes(classes)
        super().__init__(in_dim, len(classes))
        self.classes = tuple(str(name) for name in classes)

    def outputs(self, raw: Tensor) -> dict[str, Tensor]:
        return {"logits": raw}

    def loss(self, raw: Tensor, target: Mapping[str, Any]) -> Tensor:
        rows = raw.reshape(-1, self.n_outputs)  # (n, C)
        label = whole_numbers(target, "label", self, rows)
        return cross_entropy(rows, check_range(label, "label", self, unknown=True))


class SurvivalHead(Head):
    """Discrete-time survival: one conditional hazard a time bin.

    Args:
        in_dim: width E of the slide vector; None: the aggregator owns the classifier.
        bins: number of time bins T.

    Returns (forward): `logits` (T,), `hazards` (T,) = sigmoid, `risk` () = minus the sum of the
    survival function over the bins (larger is worse).

    Source: Zadeh and Schmid 2021; the risk as in MCAT and later slide survival models.
    """

    task = "survival"

    def __init__(self, in_dim: int | None, bins: int = 4) -> None:
        if not isinstance(bins, int) or bins < 1:
            raise SpecError(f"head.bins is {bins!r}, expected at least 1 time bin")
        super().__init__(in_dim, bins)

    def outputs(self, raw: Tensor) -> dict[str, Tensor]:
        hazards = torch.sigmoid(raw)
        survival = torch.cumprod(1 - hazards, dim=-1)  # (..., T)
        return {"logits": raw, "hazards": hazards, "risk": -survival.sum(-1)}

    def loss(self, raw: Tensor, target: Mapping[str, Any]) -> Tensor:
        rows = raw.reshape(-1, self.n_outputs)  # (n, T)
        event = whole_numbers(target, "event", self, rows).bool()
        time_bin = whole_numbers(target, "time", self, rows)
        return discrete_time_nll(rows, check_range(time_bin, "time", self), event)


class SegmentationHead(Head):
    """A linear map of every patch's vector to one logit a class.

    Args:
        in_dim: width E of `instances`; None: the aggregator fills per-patch logits itself.
        classes: names, in the order of the logits.

    Returns (forward): `instance_logits` (N, C).
    """

    task = "segmentation"
    reads = "instances"

    def __init__(self, in_dim: int | None, classes: Sequence[str]) -> None:
        check_classes(classes)
        super().__init__(in_dim, len(classes))
        self.classes = tuple(str(name) for name in classes)

    def outputs(self, raw: Tensor) -> dict[str, Tensor]:
        return {"instance_logits": raw}

    def loss(self, raw: Tensor, target: Mapping[str, Any]) -> Tensor:
        labels = whole_numbers(target, "instances", self, raw)  # (N,), -1: unknown
        return cross_entropy(raw, check_range(labels, "instances", self, unknown=True))


class RegressionHead(Head):
    """A linear map to one number.

    Args:
        in_dim: width E of the slide vector; None: the aggregator owns it.

    Returns (forward): `logits` (1,), `value` ().
    """

    task = "regression"

    def __init__(self, in_dim: int | None) -> None:
        super().__init__(in_dim, 1)

    def outputs(self, raw: Tensor) -> dict[str, Tensor]:
        return {"logits": raw, "value": raw[..., 0]}

    def loss(self, raw: Tensor, target: Mapping[str, Any]) -> Tensor:
        rows = raw.reshape(-1)  # (n,)
        return mean_squared_error(rows, numbers(target, "value", self, rows).to(raw.dtype))


def check_classes(classes: Sequence[str]) -> None:
    """Raise SpecError unless there are two or more classes."""
    if isinstance(classes, str) or len(classes) < 2:
        raise SpecError(
            f"head.classes is {classes!r}, expected two or more names: head.classes=[normal,tumour]"
        )


def numbers(target: Mapping[str, Any], name: str, head: Head, rows: Tensor) -> Tensor:
    """One number a row (n,) from a training target, which may state one for all.

    Raises:
        DataError: not there, not numbers, or not as many as rows.
    """
    if name not in target:
        raise DataError(
            f"a {head.task} head trains on target['{name}'], this target has {sorted(target)}"
        )
    n, one_for_all = len(rows), head.reads == "slide"
    try:
        values: Tensor | None = torch.as_tensor(target[name], device=rows.device)
    except (TypeError, ValueError, RuntimeError):
        values = None
    if values is not None and one_for_all and values.numel() == 1:
        values = values.reshape(1).expand(n)
    if values is None or values.shape != (n,):
        raise DataError(
            f"target '{name}' is {_brief(target[name])}, expected {n} numbers"
            + (" or one for all" if one_for_all else ", one a patch")
        )
    return values


def whole_numbers(target: Mapping[str, Any], name: str, head: Head, rows: Tensor) -> Tensor:
    """As `numbers`, int64. Raises DataError for fractions, which would be cut off."""
    values = numbers(target, name, head, rows)
    whole = values.to(torch.int64)
    if bool((whole != values).any()):
        raise DataError(f"target '{name}' is {_brief(target[name])}, expected whole numbers")
    return whole


def check_range(values: Tensor, name: str, head: Head, unknown: bool = False) -> Tensor:
    """The values, if each is an output's index (or -1, `unknown`). Raises DataError."""
    least = -1 if unknown else 0
    wrong = values[(values < least) | (values >= head.n_outputs)]
    if len(wrong):
        hint = ", or -1 for unknown" if unknown else ": times are given to the head as bins"
        raise DataError(
            f"target '{name}' holds {int(wrong[0])}, expected 0 to {head.n_outputs - 1} for a "
            f"{head.task} head of {head.n_outputs} outputs{hint}"
        )
    return values


def _brief(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:60]
