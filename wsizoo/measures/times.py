"""Times of events as bins of a discrete-time survival model, from a clinical table."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsizoo.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def time_edges(times: ArrayLike, events: ArrayLike, bins: int = 4) -> Floats:
    """Right ends (bins - 1,) of all bins but the last: quantiles of the times of events.

    They are what `SurvivalHead(edges=...)` takes. Give the patients that may be looked at, which
    are those of the training part.

    Args:
        times: (n,), in any unit; NaN ones are left out. events: (n,) True or 1: it was seen.

    Raises:
        DataError: no events, or so few or equal ones that bins would be empty.

    Source: Zadeh and Schmid 2021 leave the bins open; quantiles of uncensored patients as in MCAT,
    Patch-GCN and SPAN.
    """
    if bins < 1:
        raise DataError(f"{bins} time bins, expected at least 1")
    known, seen = times_and_events(times, events)
    of_events = known[seen & ~np.isnan(known)]
    if not len(of_events):
        raise DataError("no event was seen, so there are no quantiles to bin times by")
    edges: Floats = np.quantile(of_events, np.linspace(0, 1, bins + 1))
    if bins > 1 and len(np.unique(edges)) != bins + 1:
        raise DataError(
            f"{bins} bins of {len(of_events)} times of events have no width, the quantiles are "
            f"{np.round(edges, 6).tolist()}: ask for fewer bins"
        )
    return edges[1:-1]


def time_bins(times: ArrayLike, edges: ArrayLike) -> Ints:
    """The bin (n,) of each time: bin t holds times in (edges[t-1], edges[t]], the outer ones all.

    Raises:
        DataError: a time that is NaN.
    """
    given = np.asarray(times, dtype=np.float64)
    if np.isnan(given).any():
        raise DataError(f"{int(np.isnan(given).sum())} of {len(given)} times are missing (NaN)")
    found: Ints = np.searchsorted(np.asarray(edges, dtype=np.float64), given, side="left")
    return found


@dataclass(frozen=True, eq=False)
class SurvivalTargets:
    """What a survival model trains on.

    Args:
        rows: (K,) of the table, ascending. bins, events: (K,), the targets `time` and `event`.
        times: (K,), for the concordance index. edges: right ends of all bins but the last.
    """

    rows: Ints
    bins: Ints
    events: NDArray[np.bool_]
    times: Floats
    edges: Floats


def whole_cohort_targets(
    times: ArrayLike, events: ArrayLike, patients: Sequence[Hashable], bins: int = 4
) -> SurvivalTargets:
    """Targets of a clinical table as SPAN made them: bins by the events of all its patients.

    Patients of more than one row are dropped, every row of theirs; times that are missing or 0 too,
    but only after the edges were computed. The edges look at validation and test patients: where
    that matters, use `time_edges` of the training part.

    Args:
        times: (n,), NaN where missing. events: (n,) True or 1: deceased. patients: (n,) names.

    Source: `preprocess_tsv`, https://github.com/wwyi1828/SPAN at 08e4ba0.
    """
    known, seen = times_and_events(times, events)
    if len(patients) != len(known):
        raise DataError(f"{len(patients)} patients for {len(known)} times, expected one a row")
    _, who, count = np.unique([str(p) for p in patients], return_inverse=True, return_counts=True)
    alone = count[who] == 1
    edges = time_edges(known[alone], seen[alone], bins)
    rows = np.flatnonzero(alone & ~np.isnan(known) & (known != 0))
    return SurvivalTargets(rows, time_bins(known[rows], edges), seen[rows], known[rows], edges)


def times_and_events(times: ArrayLike, events: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Both as (n,) arrays. Raises DataError where they do not fit together."""
    known, seen = np.asarray(times, dtype=np.float64), np.asarray(events)
    if known.ndim != 1 or known.shape != seen.shape:
        raise DataError(f"times are {known.shape} and events {seen.shape}, expected (n,) both")
    if not np.isin(seen, (0, 1)).all():
        raise DataError(f"events are {np.unique(seen).tolist()[:5]}, expected 0 and 1")
    return known, seen.astype(bool)
