"""Resamples of patients: how often each row counts in each of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np

from wsizoo.errors import DataError
from wsizoo.measures.weighted import Floats, Ints, Weighted

LEVEL = 0.95  # of intervals
RESAMPLES = 2000
ENTRIES = 2_000_000  # of the weights that are held at a time


class Resamples:
    """Patients drawn with replacement, all rows of a patient together.

    The same n, groups and seed give the same resamples, so that models are compared in pairs.

    Args:
        n: rows. groups: the patient (n,) of each row; None: each row is one.
        count: of resamples; 0: none.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 (units) and
    13 (percentiles).
    """

    def __init__(
        self,
        n: int,
        groups: Sequence[Hashable] | None = None,
        count: int = RESAMPLES,
        seed: int = 0,
    ) -> None:
        names = list(range(n)) if groups is None else list(groups)
        if len(names) != n:
            raise DataError(f"{len(names)} groups for {n} rows, expected the patient of each")
        if count < 0:
            raise DataError(f"{count} resamples, expected 0 or more")
        place: dict[Hashable, int] = {}
        self.unit: Ints = np.array([place.setdefault(x, len(place)) for x in names], np.int64)
        self.n, self.units, self.count, self.seed = n, len(place), count, seed

    def weights(self) -> Iterator[Floats]:
        """Blocks (r, n) of all resamples."""
        rng = np.random.default_rng(self.seed)
        chances = np.full(self.units, 1 / self.units)
        block = max(1, ENTRIES // max(1, self.n))
        for start in range(0, self.count, block):
            size = min(block, self.count - start)
            drawn = rng.multinomial(self.units, chances, size=size)
            yield drawn[:, self.unit].astype(np.float64)

    def alone(self, measure: Weighted) -> Floats:
        """The measure (units,) of each patient alone; NaN where it has no row that counts."""
        block = max(1, ENTRIES // max(1, self.n))
        starts = range(0, self.units, block)
        each = [np.arange(i, min(i + block, self.units))[:, None] == self.unit for i in starts]
        return np.concatenate([measure(one.astype(np.float64)) for one in each])

    def values(self, *measures: Weighted) -> list[Floats]:
        """Each measure (count,) of all resamples; NaN where it is not defined."""
        found: list[list[Floats]] = [[np.empty(0)] for _ in measures]
        for block in self.weights():
            for values, measure in zip(found, measures, strict=True):
                values.append(measure(block))
        return [np.concatenate(values) for values in found]


def interval(values: Floats, level: float) -> tuple[float, float, int]:
    """Percentiles of those that are not NaN, and how many are NaN; NaN, NaN where all are."""
    if not 0 < level < 1:
        raise DataError(f"the level of an interval is {level}, expected a share such as 0.95")
    known = values[~np.isnan(values)]
    left_out = len(values) - len(known)
    if not len(known):
        return float("nan"), float("nan"), left_out
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high), left_out


def of_rows(measure: Callable[[Ints], float]) -> Weighted:
    """Any function of the rows of a resample (each as often as it was drawn), one at a time."""

    def measured(weights: Floats) -> Floats:
        rows = np.arange(weights.shape[1])
        return np.array([measure(np.repeat(rows, one.astype(np.int64))) for one in weights])

    return measured
