"""Heads: from a slide vector (or one a patch) to classes, hazards, a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wsizoo.errors import DataError, SpecError
from wsizoo.interfaces import Head, as_tensor
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
        label = as_tensor(wanted(target, "label", self), raw, torch.int64)
        return cross_entropy(rows, label.expand(len(rows)))


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
        if bins < 1:
            raise SpecError(f"head.bins is {bins}, expected at least 1 time bin")
        super().__init__(in_dim, bins)

    def outputs(self, raw: Tensor) -> dict[str, Tensor]:
        hazards = torch.sigmoid(raw)
        survival = torch.cumprod(1 - hazards, dim=-1)  # (..., T)
        return {"logits": raw, "hazards": hazards, "risk": -survival.sum(-1)}

    def loss(self, raw: Tensor, target: Mapping[str, Any]) -> Tensor:
        rows = raw.reshape(-1, self.n_outputs)  # (n, T)
        time_bin = as_tensor(wanted(target, "time", self), raw, torch.int64).expand(len(rows))
        event = as_tensor(wanted(target, "event", self), raw, torch.bool).expand(len(rows))
        if bool((time_bin < 0).any() | (time_bin >= self.n_outputs).any()):
            raise DataError(
                f"target 'time' holds bin {time_bin.tolist()}, expected 0 to {self.n_outputs - 1}: "
                "times are given to the head as bins"
            )
        return discrete_time_nll(rows, time_bin, event)


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
        labels = as_tensor(wanted(target, "instances", self), raw, torch.int64)  # (N,), -1: unknown
        if labels.shape != raw.shape[:1]:
            raise DataError(
                f"target 'instances' is {tuple(labels.shape)}, expected one label for each of "
                f"{raw.shape[0]} patches"
            )
        return cross_entropy(raw, labels)


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
        value = as_tensor(wanted(target, "value", self), raw, raw.dtype)
        return mean_squared_error(rows, value.expand(len(rows)))


def check_classes(classes: Sequence[str]) -> None:
    """Raise SpecError unless there are two or more classes."""
    if isinstance(classes, str) or len(classes) < 2:
        raise SpecError(
            f"head.classes is {classes!r}, expected two or more names: head.classes=[normal,tumour]"
        )


def wanted(target: Mapping[str, Any], name: str, head: Head) -> Any:
    """A field of a training target. Raises DataError when it is not there."""
    if name not in target:
        raise DataError(
            f"a {head.task} head trains on target['{name}'], this target has {sorted(target)}"
        )
    return target[name]
