"""What the cells of a benchmark add up to: a row a model and feature set, the best first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from wsizoo.benchmark.cells import Cell
from wsizoo.benchmark.compare import FACTS, Result, measured, p_value
from wsizoo.measures.bootstrap import RESAMPLES
from wsizoo.measures.compare import holm
from wsizoo.measures.names import MAIN


@dataclass(frozen=True)
class Row:
    """A model on a feature set, over folds and seeds.

    Args:
        finished, asked: cells. values: of each metric, a cell each.
        low, high: 95 % interval of the mean of the main metric, patients resampled.
        p: against the best, Holm's correction; None for the best, and where nothing compares.
        rank: mean over folds and seeds; None where a cell is missing. ranks: those behind it.
        facts: means of `FACTS`. best: its main metric, as shown, is the best one's.
    """

    model: str
    features: str
    finished: int
    asked: int
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    p: float | None = None
    rank: float | None = None
    ranks: tuple[float, ...] = ()
    facts: Mapping[str, float | None] = field(default_factory=dict)
    best: bool = False

    def mean(self, metric: str) -> float:
        """Over the cells in which it is defined; NaN if none."""
        known = [value for value in self.values.get(metric, ()) if math.isfinite(value)]
        return math.fsum(known) / len(known) if known else math.nan

    def std(self, metric: str) -> float:
        """Of a sample (n - 1); NaN of fewer than two cells."""
        known = [value for value in self.values.get(metric, ()) if math.isfinite(value)]
        return float(np.std(known, ddof=1)) if len(known) > 1 else math.nan


def summarise(
    cells: Sequence[Cell], results: Sequence[Result], resamples: int = RESAMPLES
) -> list[Row]:
    """A row a model and feature set, the best first, those without a finished cell last.

    Args:
        cells: all that were asked for. results: those that finished.
        resamples: of bootstraps.
    """
    asked: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        asked.setdefault((cell.model, cell.features), []).append(cell)
    found: dict[tuple[str, str], list[Result]] = {pair: [] for pair in asked}
    for result in results:
        found[result.cell.model, result.cell.features].append(result)
    if not results:
        return [Row(*pair, 0, len(asked[pair])) for pair in asked]
    main = MAIN[results[0].task]
    ranks = _ranks(found, main, max(map(len, asked.values())))
    rows = [
        _row(pair, found[pair], len(asked[pair]), ranks.get(pair, ()), resamples) for pair in asked
    ]
    rows.sort(key=lambda row: _descending(row.mean(main)))
    return _with_p(rows, found, main, resamples)


def shown(value: float | None, decimals: int = 3) -> str:
    """A number as tables have it; - where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{decimals}f}"


def _row(
    pair: tuple[str, str],
    results: Sequence[Result],
    asked: int,
    ranks: Sequence[float],
    resamples: int,
) -> Row:
    if not results:
        return Row(*pair, 0, asked)
    names = list(dict.fromkeys(name for result in results for name in result.metrics))
    values = {name: [r.metrics.get(name, math.nan) for r in results] for name in names}
    interval = measured(results, resamples)
    rank = math.fsum(ranks) / len(ranks) if ranks else None
    facts = {name: _mean([result.facts[name] for result in results]) for name in FACTS}
    ends = interval.low, interval.high
    return Row(*pair, len(results), asked, values, *ends, None, rank, tuple(ranks), facts)


def _ranks(
    found: Mapping[tuple[str, str], Sequence[Result]], main: str, most: int
) -> dict[tuple[str, str], list[float]]:
    """Rank of each row in each fold and seed that all rows have; ties share the mean rank."""
    from scipy.stats import rankdata

    values = {
        pair: {(r.cell.fold, r.cell.seed): r.metrics.get(main, math.nan) for r in results}
        for pair, results in found.items()
    }
    complete = {pair: cells for pair, cells in values.items() if len(cells) == most}
    if not complete:
        return {}
    blocks = sorted(next(iter(complete.values())))
    table = np.array([[cells[block] for block in blocks] for cells in complete.values()])
    usable = np.isfinite(table).all(axis=0)
    ranked = rankdata(-table[:, usable], axis=0)  # (rows, blocks)
    return {pair: list(map(float, row)) for pair, row in zip(complete, ranked, strict=True)}


def _with_p(
    rows: list[Row], found: Mapping[tuple[str, str], Sequence[Result]], main: str, resamples: int
) -> list[Row]:
    """The rows with their significance against the first, and the mark of the best."""
    best = rows[0]
    top = shown(best.mean(main))
    marked = [replace(row, best=top != "-" and shown(row.mean(main)) == top) for row in rows]
    ours = found[best.model, best.features]
    others = [p_value(ours, found[row.model, row.features], resamples) for row in rows[1:]]
    corrected = [None, *holm(others)]
    return [
        replace(row, p=p if p is None or math.isfinite(p) else None)
        for row, p in zip(marked, corrected, strict=True)
    ]


def _descending(value: float) -> tuple[bool, float]:
    """To sort the largest first and NaN last."""
    return (math.isnan(value), -value)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
