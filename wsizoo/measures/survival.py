"""Measures of forecasts of survival: concordance, Brier score, AUC over time, Kaplan-Meier.

Patients who left before a time t are made up for by those who stayed: a patient counts 1 / G, with
G the Kaplan-Meier estimate of not being censored yet (IPCW).

Source: Graf et al., "Assessment and comparison of prognostic classification schemes for survival
data", Statistics in Medicine 18, 1999 (Brier score); Uno et al., "Evaluating prediction rules for
t-year survivors with censored regression models", JASA 102, 2007, and Hung and Chiang, "Estimation
methods for time-dependent AUC models with survival data", Canadian Journal of Statistics 38, 2010
(AUC over time); ties and G(t), not G(t-), as in scikit-survival.
Differs: where G is 0 at a time that counts, the measure is NaN.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from wsizoo.errors import DataError
from wsizoo.measures.times import times_and_events
from wsizoo.measures.weighted import (
    Bools,
    Floats,
    Weighted,
    area,
    cumulated,
    ratio,
    summed,
    ties,
)

SAME_RISK = 1e-8  # risks closer than that are tied
AT_ONCE = 256  # events whose pairs are counted in one product
OverTime = Callable[[Floats, Floats], Floats]  # weights (R, n), times (k,) -> (R, k)
Patients = tuple[Floats, Bools]  # times and events


def concordance(times: Floats, events: Bools, risk: Floats) -> Weighted:
    """See `wsizoo.measures.metrics.concordance_index`."""
    seen = np.flatnonzero(events)

    def measure(weights: Floats) -> Floats:
        right, pairs = np.zeros(len(weights)), np.zeros(len(weights))
        for start in range(0, len(seen), AT_ONCE):
            first = seen[start : start + AT_ONCE]
            own = times[first][:, None]
            later = (times > own) | ((times == own) & ~events)  # (k, n)
            below = risk[first][:, None] - risk
            wins = np.where(np.abs(below) <= SAME_RISK, 0.5, below > 0) * later
            right += (weights[:, first] * (weights @ wins.T)).sum(1)
            pairs += (weights[:, first] * (weights @ later.T.astype(np.float64))).sum(1)
        return ratio(right, pairs)

    return measure


def survival_curve(times: Floats, events: Bools, censored_leave: bool = False) -> OverTime:
    """Kaplan-Meier estimate (R, k) of being without event after each time; constant past the last.

    Args:
        censored_leave: estimate instead when patients are censored, G. Those with an event at that
            time are then gone already.
    """
    distinct, cell = np.unique(times, return_inverse=True)

    def curve(weights: Floats, at: Floats) -> Floats:
        died = summed(weights * events, cell, len(distinct))
        every = summed(weights, cell, len(distinct))
        present = every.sum(1, keepdims=True) - cumulated(every)[:, :-1]
        lost = every - died if censored_leave else died
        present = present - died if censored_leave else present
        stay = 1 - np.nan_to_num(ratio(lost, present))
        steps = np.concatenate([np.ones((len(weights), 1)), np.cumprod(stay, 1)], 1)
        return steps[:, np.searchsorted(distinct, at, "right")]

    return curve


def not_censored(patients: Patients, censoring: Patients | None) -> OverTime:
    """G of the resample itself, or that of other patients, which stays the same."""
    if censoring is None:
        return survival_curve(*patients, censored_leave=True)
    fixed, ones = survival_curve(*censoring, censored_leave=True), np.ones((1, len(censoring[0])))
    return lambda weights, at: np.broadcast_to(fixed(ones, at), (len(weights), len(at)))


def brier_over_time(
    patients: Patients, survival: Floats, at: Floats, censoring: Patients | None = None
) -> Weighted:
    """Brier scores (R, k) of forecasts survival (n, k) at times (k,)."""
    times, _ = patients
    not_yet = not_censored(patients, censoring)
    before, after = times[:, None] <= at, times[:, None] > at  # (n, k)

    def scores(weights: Floats) -> Floats:
        dead = _died(weights, patients, at, not_yet) @ (survival**2 * before)
        alive = ratio(weights @ ((1 - survival) ** 2 * after), not_yet(weights, at))
        return ratio(dead + alive, weights.sum(1, keepdims=True))

    return scores


def integrated_brier(
    patients: Patients, survival: Floats, at: Floats, censoring: Patients | None = None
) -> Weighted:
    """The mean of `brier_over_time` from the first of the times to the last (trapezoids)."""
    scores = brier_over_time(patients, survival, at, censoring)
    if len(at) < 2:
        return lambda weights: np.full(len(weights), np.nan)
    width = np.diff(at)

    def measure(weights: Floats) -> Floats:
        each = scores(weights)
        total: Floats = ((each[:, 1:] + each[:, :-1]) / 2) @ width / width.sum()
        return total

    return measure


def auc_over_time(
    patients: Patients, risk: Floats, at: Floats, censoring: Patients | None = None
) -> Weighted:
    """AUCs (R, k) of the risk (n,): those who died by each time against those still alive then."""
    times, _ = patients
    not_yet = not_censored(patients, censoring)
    order, first, end = ties(risk, SAME_RISK)

    def scores(weights: Floats) -> Floats:
        died = _died(weights, patients, at, not_yet)
        each = [
            area((died * (times <= t))[:, order], (weights * (times > t))[:, order], first, end)
            for t in at
        ]
        return np.stack(each, 1) if each else np.empty((len(weights), 0))

    return scores


def mean_auc(
    patients: Patients, risk: Floats, at: Floats, censoring: Patients | None = None
) -> Weighted:
    """Mean of `auc_over_time`, each time by the share that died since the one before.

    A time since which nobody died counts nothing, so its AUC, which may be NaN, is not asked for.
    """
    scores, alive = auc_over_time(patients, risk, at, censoring), survival_curve(*patients)

    def measure(weights: Floats) -> Floats:
        died = -np.diff(alive(weights, at), axis=1, prepend=1.0)
        return ratio(np.where(died > 0, scores(weights) * died, 0.0).sum(1), died.sum(1))

    return measure


def _died(weights: Floats, patients: Patients, at: Floats, not_yet: OverTime) -> Floats:
    """Weights / G (R, n) of those with an event by the last time, 0 of others; NaN where G is 0."""
    times, events = patients
    counts = weights * (events & (times <= at.max(initial=-np.inf)))
    return np.where(counts > 0, ratio(counts, not_yet(weights, times)), 0.0)


def times_to_measure_at(times: Floats, events: Bools) -> Floats:
    """Up to 17 times (k,): 10 %, 15 % ... 90 % quantiles of the times of events.

    Not the last follow-up: nobody is left after it.

    They depend on the patients, not on a model, so that models are compared at the same times.
    """
    if not events.any():
        return np.empty(0)
    found = np.quantile(times[events], np.linspace(0.1, 0.9, 17), method="inverted_cdf")
    distinct: Floats = np.unique(found[found < times.max()])
    return distinct


def survival_at(survival: ArrayLike, edges: ArrayLike, at: ArrayLike) -> Floats:
    """Forecasts (n, k) at times (k,) of a model of discrete time, constant between ends of bins.

    Args:
        survival: (n, T), at the end of each bin: the cumulated product of 1 - hazard. edges:
            (T - 1,) right ends of all bins but the last, in the unit of the times. Before the first
            it is 1; after the last, what it was there: how long the last bin is, no model says.

    Raises:
        DataError: shapes that do not fit, or a survival that is no probability or rises.
    """
    table, ends = np.asarray(survival, np.float64), np.asarray(edges, np.float64)
    if table.ndim != 2 or ends.shape != (table.shape[1] - 1,):
        raise DataError(
            f"survival is {table.shape} and edges {ends.shape}, expected (n, T) and (T - 1,): the "
            "right ends of all bins but the last"
        )
    wrong = ~((table >= 0) & (table <= 1)) | (np.diff(table, axis=1, prepend=1.0) > SAME_RISK)
    if wrong.any() or (np.diff(ends) <= 0).any():
        raise DataError(
            "survival is probabilities that do not rise from bin to bin, at edges that ascend: "
            f"row {int(wrong.any(1).argmax())} is {table[wrong.any(1).argmax()].round(4).tolist()} "
            f"at {ends.tolist()}"
        )
    steps = np.concatenate([np.ones((len(table), 1)), table[:, :-1]], 1)
    return steps[:, np.searchsorted(ends, np.asarray(at, np.float64), "right")]


@dataclass(frozen=True)
class Curve:
    """Points of a Kaplan-Meier curve, from time 0: a step down at each time of an event.

    Args:
        times, survival: (k,). low, high: the 95 % band (log-log). at_risk: patients just before.
    """

    times: list[float]
    survival: list[float]
    low: list[float]
    high: list[float]
    at_risk: list[int]


def kaplan_meier(times: ArrayLike, events: ArrayLike) -> Curve:
    """Raises DataError without patients, and where lifelines is not installed.

    Source: lifelines' KaplanMeierFitter.
    """
    known, seen = checked_patients(times, events)
    fitter = _lifelines("lifelines").KaplanMeierFitter()
    fitter.fit(known, seen)
    band = fitter.confidence_interval_survival_function_.to_numpy(np.float64)
    return Curve(
        times=[float(t) for t in fitter.survival_function_.index],
        survival=fitter.survival_function_.to_numpy(np.float64)[:, 0].tolist(),
        low=band[:, 0].tolist(),
        high=band[:, 1].tolist(),
        at_risk=[int(n) for n in fitter.event_table["at_risk"]],
    )


def log_rank(times: ArrayLike, events: ArrayLike, member: ArrayLike) -> float:
    """The p-value of two groups having one survival; NaN where one is empty or no event was seen.

    Args:
        member: (n,) True: of the one group, False: of the other.

    Source: lifelines' logrank_test.
    """
    known, seen = checked_patients(times, events)
    one = np.asarray(member).astype(bool)
    if one.shape != known.shape:
        raise DataError(f"{one.shape} says who is in a group of {len(known)} patients")
    if one.all() or not one.any() or not seen.any():
        return float("nan")
    test = _lifelines("lifelines.statistics").logrank_test
    return float(test(known[one], known[~one], seen[one], seen[~one]).p_value)


@dataclass(frozen=True)
class RiskGroups:
    """Patients split at the median of their risks, those at the median to the low group."""

    median: float
    low: Curve | None
    high: Curve | None
    p: float


def risk_groups(times: ArrayLike, events: ArrayLike, risk: ArrayLike) -> RiskGroups:
    """Kaplan-Meier curves of both halves and the log-rank p-value; None for a half without anyone.

    The median is that of the patients given, so the halves are of one size.
    """
    known, seen = checked_patients(times, events)
    scores = checked_risk(risk, known)
    high = scores > np.median(scores)
    lower, upper = (kaplan_meier(known[m], seen[m]) if m.any() else None for m in (~high, high))
    return RiskGroups(float(np.median(scores)), lower, upper, log_rank(known, seen, high))


def checked_patients(times: ArrayLike, events: ArrayLike) -> Patients:
    """Raises DataError where there are none, or times that are missing or negative."""
    known, seen = times_and_events(times, events)
    if not len(known):
        raise DataError("there are no patients to measure")
    if not (known >= 0).all() or np.isinf(known).any():
        row = int((~(known >= 0) | np.isinf(known)).argmax())
        raise DataError(f"time {known[row]:g} (row {row}), expected a number from 0 on")
    return known, seen


def checked_risk(risk: ArrayLike, times: Floats) -> Floats:
    """Raises DataError where there is not one number a time."""
    scores = np.asarray(risk, dtype=np.float64)
    if scores.shape != times.shape or np.isnan([scores, times]).any():
        raise DataError(
            f"risks are {scores.shape} for {len(times)} times, expected as many, no NaN"
        )
    return scores


def _lifelines(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            "Kaplan-Meier curves and the log-rank test need lifelines, which is not installed: "
            "pip install 'wsizoo[train]'"
        ) from error
