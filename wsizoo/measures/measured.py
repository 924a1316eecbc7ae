"""A measure with its interval: by bootstrap, or what stands in where all resamples are alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from wsizoo.errors import DataError
from wsizoo.measures.bootstrap import LEVEL, RESAMPLES, Resamples, interval
from wsizoo.measures.metrics import auc_interval, share_interval
from wsizoo.measures.names import is_share
from wsizoo.measures.weighted import Weighted, value_of

BOOTSTRAP, NEWCOMBE, EXACT = "bootstrap", "Newcombe", "Clopper-Pearson"
ALIKE = "all resamples alike"
ROUNDING = 1e-12  # by which resamples that are alike may differ


@dataclass(frozen=True)
class Measured:
    """A measure and how far it would move with other patients.

    Args:
        value: NaN where it is not defined. low, high: of the interval; NaN where there is none.
        n: rows measured. patients: that were resampled. level: of the interval.
        resamples: drawn; 0: the interval is of none. undefined: of them left out, because they do
            not define the measure.
        method: where low and high are from, `BOOTSTRAP`, `NEWCOMBE` or `EXACT`; or `ALIKE`: there
            are none, since all resamples are alike, which says nothing of other patients.
    """

    value: float
    low: float
    high: float
    n: int
    patients: int
    level: float = LEVEL
    resamples: int = RESAMPLES
    undefined: int = 0
    method: str = BOOTSTRAP

    def __str__(self) -> str:
        """`0.912 (0.871-0.950)`."""
        if self.method == ALIKE:
            return f"{self.value:.3f} ({ALIKE})"
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


def to_json(measures: Mapping[str, Measured]) -> dict[str, dict[str, Any]]:
    """As data for a JSON file; NaN is None there."""
    return {
        name: {
            k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(one).items()
        }
        for name, one in measures.items()
    }


def from_json(told: Mapping[str, Mapping[str, Any]]) -> dict[str, Measured]:
    """What `to_json` was given.

    Raises:
        DataError: an entry that is no measure with its interval.
    """
    found = {}
    for name, one in told.items():
        try:
            known: dict[str, Any] = {k: math.nan if v is None else v for k, v in one.items()}
            found[name] = Measured(**known)
        except (TypeError, AttributeError) as error:
            raise DataError(f"'{name}' is no measure with an interval: {error}") from error
    return found


def with_intervals(
    measures: Mapping[str, Weighted],
    rows: Resamples,
    level: float = LEVEL,
    counted: Mapping[str, int] | None = None,
) -> dict[str, Measured]:
    """Each measure of the rows as they are, and its percentiles over the resamples.

    Args:
        counted: how many rows a measure is of, where that is not all.
    """
    drawn = dict(zip(measures, rows.values(*measures.values()), strict=True))
    found = {}
    for name, measure in measures.items():
        value = value_of(measure, rows.n)
        low, high, undefined = interval(drawn[name], level)
        n = (counted or {}).get(name, rows.n)
        if math.isnan(value):
            low = high = math.nan
        one = Measured(value, low, high, n, rows.units, level, rows.count, undefined)
        found[name] = _of_alike(one, measure, rows, is_share(name))
    return found


def _of_alike(one: Measured, measure: Weighted, rows: Resamples, share: bool) -> Measured:
    """Where all resamples are alike, the exact interval of a share of 0 or 1, else none."""
    if not one.high - one.low <= ROUNDING * max(1.0, abs(one.value)):
        return one
    if share and one.value in (0, 1):
        n = int(np.isfinite(rows.alone(measure)).sum())
        low, high = share_interval(n if one.value else 0, n, one.level)
        return replace(one, low=low, high=high, resamples=0, undefined=0, method=EXACT)
    return replace(one, low=math.nan, high=math.nan, method=ALIKE)


def at_the_bound(auc: Measured, labels: ArrayLike) -> Measured:
    """An AUC of exactly 0 or 1, whose resamples are all alike, with Newcombe's interval.

    Args:
        labels: 0 or 1 of each patient.
    """
    if auc.method != ALIKE or auc.value not in (0, 1) or auc.level != LEVEL:
        return auc
    given = np.asarray(labels)
    low, high = auc_interval(given, given if auc.value else 1 - given)
    return replace(auc, low=low, high=high, resamples=0, undefined=0, method=NEWCOMBE)
