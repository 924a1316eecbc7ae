"""Heads: from a slide vector (or one a patch) to classes, hazards, a value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from wsizoo.errors import DataError, SpecError
from wsizoo.interfaces import Head
from wsizoo.losses import (
    bce_dice,
    ce_dice,
    check_ties,
    cox_partial_likelihood,
    cross_entropy,
    discrete_time_nll,
    mean_squared_error,
    one_vs_rest,
    smooth_l1,
)


class ClassificationHead(Head):
    """A linear map to one logit a class, or to one logit for two.

    Args:
        in_dim: width E of the slide vector; None: the aggregator owns the classifier.
        classes: names, in the order of the logits; of one logit: [negative, positive].
        one_logit: its sigmoid is the probability of the second class.
        threshold: of one logit: a slide is called positive from this probability on. Default 0.5.
        one_vs_rest: the loss is binary cross entropy, one question a class (DSMIL); one logit's
            always is. A class's probability is then its sigmoid, by the sum of all of them.

    Returns (forward): `logits` (C,), or (1,).
    """

    task = "classification"

    def __init__(
        self,
        in_dim: int | None,
        classes: Sequence[str],
        one_logit: bool = False,
        threshold: float | None = None,
        one_vs_rest: bool = False,
    ) -> None:
        check_classes(classes)
        check_share("threshold", 0.5 if threshold is None else threshold)
        check_one_logit(one_logit, classes, {"threshold": threshold})
        super().__init__(in_dim, 1 if one_logit else len(classes))
        self.classes = tuple(str(name) for name in classes)
        self.threshold = (0.5 if threshold is None else threshold) if one_logit else None
        self.one_vs_rest = one_vs_rest or one_logit

    def outputs(self, raw: Tensor) -> dict[str, Tensor]:
        return {"logits": raw}

    def loss(self, raw: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        label = indices(targets, "label", self, raw, -1, len(self.classes))
        return one_vs_rest(raw, label) if self.one_vs_rest else cross_entropy(raw, label)


class SurvivalHead(Head):
    """Discrete-time survival: one conditional hazard a time bin.

    Args:
        in_dim: width E of the slide vector; None: the aggregator owns the classifier.
        bins: number of time bins T; default one more than `edges`, or 4.
        edges: right ends of all bins but the last, ascending, in the time unit of the table. Bin t
            holds times in (edges[t-1], edges[t]]; targets are given as bins. They say what the
            bins of a published model mean; None: unknown.
        alpha, floor: of the loss, see `wsizoo.losses.discrete_time_nll`.

    Returns (forward): `logits` (T,), `hazards` (T,) = sigmoid, `risk` () = minus the sum of the
    survival function over the bins (larger is worse).

    Source: Zadeh and Schmid 2021; the risk as in MCAT and later slide survival models.
    """

    task = "survival"

    def __init__(
        self,
        in_dim: int | None,
        bins: int | None = None,
        edges: Sequence[float] | None = None,
        alpha: float = 0.0,
        floor: float | None = None,
    ) -> None:
        ends = None if edges is None else check_edges(edges)
        if bins is None:
            bins = 4 if ends is None else len(ends) + 1
        if not isinstance(bins, int) or bins < 1:
            raise SpecError(f"head.bins is {bins!r}, expected at least 1 time bin")
        if ends is not None and len(ends) != bins - 1:
            raise SpecError(
                f"head.edges has {len(ends)} numbers for {bins} bins, expected {bins - 1}: the "
                "right end of each bin but the last"
            )
        check_share("alpha", alpha)
        check_share("floor", 0.0 if floor is None else floor, most=0.5)
        super().__init__(in_dim, bins)
        self.edges = ends
        self.alpha, self.floor = alpha, floor or None

    def outputs(self, raw: Tensor) -> dict[str, Tensor]:
        hazards = torch.sigmoid(raw)
        survival = torch.cumprod(1 - hazards, dim=-1)  # (..., T)
        return {"logits": raw, "hazards": hazards, "risk": -survival.sum(-1)}

    def loss(self, raw: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        event = indices(targets, "event", self, raw, 0, 2)
        time_bin = indices(targets, "time", self, raw, 0, self.n_outputs)
        return discrete_time_nll(raw, time_bin, event.bool(), self.alpha, self.floor)


class CoxHead(Head):
    """Proportional hazards: one log relative hazard, learnt by who of a batch had the event first.

    Batches are of several slides with an event among them: of one slide there is nothing to learn.

    Args:
        in_dim: width E of the slide vector; None: the aggregator owns it.
        ties: of the loss, see `wsizoo.losses.cox_partial_likelihood`.

    Targets: `time` in any unit, not a bin, and `event`.

    Returns (forward): `logits` (1,), `risk` () = the log relative hazard (larger is worse).

    Source: Cox, "Regression models and life-tables", JRSS B 34, 1972; of networks, Katzman et al.,
    "DeepSurv", BMC Medical Research Methodology 18, 2018.
    """

    task = "survival"
    compares_slides = True
    conformance_exceptions: ClassVar[dict[str, str]] = {
        "loss_of_rows": "the partial likelihood compares the slides of a batch"
    }

    def __init__(self, in_dim: int | None, ties: str = "efron") -> None:
        check_ties(ties)
        super().__init__(in_dim, 1)
        self.ties = ties

    def outputs(self, raw: Tensor) -> dict[str, Tensor]:
        return {"logits": raw, "risk": raw[..., 0]}

    def loss(self, raw: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        event = indices(targets, "event", self, raw, 0, 2)
        time = numbers(targets, "time", self, raw)
        if not bool((time >= 0).all()):
            row = int((~(time >= 0)).nonzero()[0])
            raise DataError(
                f"target 'time' holds {time[row].item():g} (row {row}), expected a time from 0 on"
            )
        return cox_partial_likelihood(raw[:, 0], time, event.bool(), self.ties)


class SegmentationHead(Head):
    """A linear map of every patch's vector to one logit a class, or to one logit for two.

    Args:
        in_dim: width E of `instances`; None: the aggregator fills per-patch logits itself.
        classes: names, in the order of the logits; of one logit: [negative, positive].
        one_logit: its sigmoid is the probability of the second class.
        threshold: of one logit. A patch is called positive from this probability on, and its label
            is positive from this value of `instances` on, which may be any share in [0, 1].
            Default 0.5; SPAN: 0.2.
        dice_weight: of the Dice term in the loss; 0: cross entropy alone; SPAN: 0.75.
        pos_weight: of one logit: factor of the cross entropy of positive patches; SPAN: negative
            training patches for each positive one, `wsizoo.losses.positive_weight`.

    Returns (forward): `instance_logits` (N, C), or (N, 1).

    Source of the options: SPAN (2026), appendix.
    """

    task = "segmentation"
    reads = "instances"

    def __init__(
        self,
        in_dim: int | None,
        classes: Sequence[str],
        one_logit: bool = False,
        threshold: float | None = None,
        dice_weight: float = 0.0,
        pos_weight: float | None = None,
    ) -> None:
        check_classes(classes)
        check_share("threshold", 0.5 if threshold is None else threshold)
        check_share("dice_weight", dice_weight)
        check_share("pos_weight", 1.0 if pos_weight is None else pos_weight, most=math.inf)
        given = {"threshold": threshold, "pos_weight": pos_weight}
        check_one_logit(one_logit, classes, given)
        super().__init__(in_dim, 1 if one_logit else len(classes))
        self.classes = tuple(str(name) for name in classes)
        self.threshold = (0.5 if threshold is None else threshold) if one_logit else None
        self.dice_weight, self.pos_weight = dice_weight, 1.0 if pos_weight is None else pos_weight

    def outputs(self, raw: Tensor) -> dict[str, Tensor]:
        return {"instance_logits": raw}

    def loss(self, raw: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        if self.threshold is not None:
            share = shares(targets, "instances", self, raw)
            label = torch.where(share < 0, -1, (share >= self.threshold).long())
            return bce_dice(raw[:, 0], label, self.pos_weight, self.dice_weight)
        label = indices(targets, "instances", self, raw, -1, self.n_outputs)
        return (
            ce_dice(raw, label, self.dice_weight) if self.dice_weight else cross_entropy(raw, label)
        )


class RegressionHead(Head):
    """A linear map to one number.

    Args:
        in_dim: width E of the slide vector; None: the aggregator owns it.
        smooth_l1: distance from which on an error counts linearly, `wsizoo.losses.smooth_l1`;
            None: all are squared.

    Returns (forward): `logits` (1,), `value` ().
    """

    task = "regression"

    def __init__(self, in_dim: int | None, smooth_l1: float | None = None) -> None:
        check_share("smooth_l1", 1.0 if smooth_l1 is None else smooth_l1, most=math.inf)
        super().__init__(in_dim, 1)
        self.smooth_l1 = smooth_l1

    def outputs(self, raw: Tensor) -> dict[str, Tensor]:
        return {"logits": raw, "value": raw[..., 0]}

    def loss(self, raw: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        value = numbers(targets, "value", self, raw).to(raw.dtype)
        if self.smooth_l1 is None:
            return mean_squared_error(raw[:, 0], value)
        return smooth_l1(raw[:, 0], value, self.smooth_l1)


def check_classes(classes: Sequence[str]) -> None:
    """Raise SpecError unless there are two or more classes."""
    if isinstance(classes, str) or len(classes) < 2:
        raise SpecError(
            f"head.classes is {classes!r}, expected two or more names: head.classes=[normal,tumour]"
        )


def check_one_logit(
    one_logit: bool, classes: Sequence[str], needing: Mapping[str, float | None]
) -> None:
    """Raise SpecError for one logit of other than two classes, or options that need one logit."""
    if one_logit and len(classes) != 2:
        raise SpecError(
            f"head.one_logit tells two classes apart, head.classes names {len(classes)}"
        )
    if not one_logit and any(value is not None for value in needing.values()):
        needy = " and ".join(f"head.{name}" for name in needing)
        raise SpecError(f"{needy} need{'s' * (len(needing) == 1)} head.one_logit=true")


def check_share(name: str, value: float, most: float = 1.0) -> None:
    """Raise SpecError unless the option of a head is a number from 0 to `most`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= most:
        raise SpecError(f"head.{name} is {value!r}, expected a number from 0 to {most:g}")


def check_edges(edges: Sequence[float]) -> tuple[float, ...]:
    """The edges as numbers. Raises SpecError unless they are finite and ascend."""
    try:
        ends = tuple(float(edge) for edge in edges)
    except (TypeError, ValueError):
        ends = (math.nan,)
    if not all(map(math.isfinite, ends)) or list(ends) != sorted(set(ends)):
        raise SpecError(f"head.edges is {edges!r}, expected ascending times: head.edges=[12,24,36]")
    return ends


def numbers(targets: Mapping[str, Tensor], name: str, head: Head, raw: Tensor) -> Tensor:
    """The targets (n,) of that name, one a row of the raw outputs.

    Raises:
        DataError: not there, or not one number a row.
    """
    if name not in targets:
        raise DataError(
            f"a {head.task} head trains on target['{name}'], this target has {sorted(targets)}"
        )
    values, n = targets[name], len(raw)
    if values.shape != (n,):
        rows = "patch" if head.reads == "instances" else "slide"
        raise DataError(
            f"target '{name}' is {tuple(values.shape)}, expected ({n},), one number a {rows}"
        )
    return values


def indices(
    targets: Mapping[str, Tensor], name: str, head: Head, raw: Tensor, least: int, end: int
) -> Tensor:
    """As `numbers`, int64. Raises DataError for fractions, and for those not in [least, end)."""
    values = numbers(targets, name, head, raw)
    whole = values.to(torch.int64)
    wrong = (whole != values) | (whole < least) | (whole >= end)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        hint = {-1: ", or -1 for unknown"}.get(least, "")
        hint = ": times are given to the head as bins" if name == "time" else hint
        raise DataError(
            f"target '{name}' holds {values[row].item():g} (row {row}), expected a whole number "
            f"from 0 to {end - 1} for a {head.task} head of {head.n_outputs} outputs{hint}"
        )
    return whole


def shares(targets: Mapping[str, Tensor], name: str, head: Head, raw: Tensor) -> Tensor:
    """As `numbers`. Raises DataError for those that are neither in [0, 1] nor -1."""
    values = numbers(targets, name, head, raw)
    wrong = ~((values == -1) | ((values >= 0) & (values <= 1)))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise DataError(
            f"target '{name}' holds {values[row].item():g} (row {row}), expected the share "
            f"of a patch that is positive, 0 to 1, or -1 for unknown, for a {head.task} head of "
            "one logit"
        )
    return values
