"""Charts that compare: values with intervals on one axis, and mean ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from wsizoo.errors import DataError
from wsizoo.viz.charts import Bar, check_bar, reading_of
from wsizoo.viz.svg import (
    CHARACTER,
    FONT,
    Drawing,
    Scale,
    nice_ticks,
    shared_decimals,
    tick_labels,
)

ROW = 34.0  # drawing units: a line of text and a dot
MOST_TICKS = 10


def interval_plot(
    rows: Sequence[Bar],
    label: str,
    *,
    points: Mapping[str, Sequence[float]] | None = None,
    guide: float | None = None,
) -> str:
    """A dot a row with its interval, on an axis that need not begin at zero.

    Args:
        rows: (name, value, low, high) each; low and high, the ends of an interval, or None.
        label: what is measured, with the unit.
        points: name -> single values behind a row's value (of folds, say), drawn small.
        guide: where a dashed line stands: chance, or the best model's value.

    Raises:
        DataError: no row, a number that is not finite, or an interval without its value.
    """
    if not rows:
        raise DataError("no interval to draw, expected at least one (name, value, low, high)")
    for row in rows:
        check_bar(row, within=False)  # a bootstrap interval need not hold its point
    single = {name: [p for p in ps if math.isfinite(p)] for name, ps in (points or {}).items()}
    shown = [float(v) for _, *values in rows for v in values if v is not None]
    every = [*shown, *(p for ps in single.values() for p in ps)]
    every += [] if guide is None else [guide]
    shares = all(0 <= value <= 1 for _, value, *_ in rows)
    decimals = 3 if shares else shared_decimals(shown, 3)
    readings = [reading_of(row, decimals) for row in rows]
    spoken = "; ".join(f"{row[0]} {text}" for row, text in zip(rows, readings, strict=True))
    low, high = min(every), max(every)
    ticks = nice_ticks(0, 1) if shares and low == high else nice_ticks(low, high)
    chart, scale = _rows(f"{label}: {spoken}", ticks, label, len(rows))
    if guide is not None:
        for index in range(len(rows)):  # beside the dots; names and numbers stay legible
            top = ROW * index + FONT + 6
            chart.line((scale(guide), top), (scale(guide), ROW * (index + 1) + 2), "guide")
    for index, ((name, value, start, end), reading) in enumerate(zip(rows, readings, strict=True)):
        y = _name(chart, scale, name, reading, index)
        if start is not None and end is not None:
            chart.line((scale(start), y), (scale(end), y), "whisker")
            for edge in (start, end):
                chart.line((scale(edge), y - 4), (scale(edge), y + 4), "whisker")
        for point in single.get(name, ()):
            chart.circle((scale(point), y), 2.5, "bar")
        chart.circle((scale(value), y), 4.5, "f0")
    return chart.svg()


def rank_plot(
    names: Sequence[str],
    ranks: Sequence[float],
    *,
    each: Sequence[Sequence[float]] | None = None,
    critical: float | None = None,
    label: str = "Mean rank (1 is best)",
) -> str:
    """Mean ranks, the best on top.

    Args:
        names, ranks: (k,), each rank in [1, k].
        each: (k, m) the ranks behind each mean, drawn small.
        critical: critical difference; a bar of that length stands beside the best, and a model
            whose dot lies under it is not shown to be worse.

    Raises:
        DataError: no model, lengths that differ, or a rank outside [1, k].

    Source: Demsar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7, 2006.
    """
    behind = [[] for _ in names] if each is None else [list(map(float, row)) for row in each]
    if not names or not len(names) == len(ranks) == len(behind):
        raise DataError(f"{len(ranks)} ranks for {len(names)} models, expected one each")
    for name, mean, single in zip(names, ranks, behind, strict=True):
        if not all(1 <= value <= len(names) for value in (mean, *single)):
            raise DataError(f"ranks of {name!r} are {[mean, *single]}, expected 1 to {len(names)}")
    order = sorted(range(len(names)), key=lambda i: (ranks[i], names[i]))
    spoken = "; ".join(f"{names[i]} {ranks[i]:.2f}" for i in order)
    step = math.ceil(max(len(names) - 1, 1) / MOST_TICKS)
    ticks = [float(t) for t in range(1, max(len(names), 2) + step, step)]
    chart, scale = _rows(f"{label}: {spoken}", ticks, label, len(names))
    if critical is not None:
        best = ranks[order[0]]
        end = scale(min(best + critical, ticks[-1]))
        chart.rectangle((scale(best), 0), end - scale(best), ROW * len(names), "track")
    for row, i in enumerate(order):
        y = _name(chart, scale, names[i], f"{ranks[i]:.2f}", row)
        chart.line((scale.start, y), (scale(ranks[i]), y), "grid")
        for one in behind[i]:
            chart.circle((scale(one), y), 2.5, "bar")
        chart.circle((scale(ranks[i]), y), 4.5, "f0")
    return chart.svg()


def _rows(title: str, ticks: Sequence[float], label: str, count: int) -> tuple[Drawing, Scale]:
    """An empty chart of so many rows over one axis."""
    bottom = ROW * count + 4
    chart = Drawing(title, bottom + 46)
    scale = Scale(ticks[0], ticks[-1], 18, chart.width - 18)
    for tick, text in zip(ticks, tick_labels(ticks), strict=True):
        chart.line((scale(tick), 0), (scale(tick), bottom), "grid")
        chart.text((scale(tick), bottom + 18), text, "middle", soft=True)
    chart.line((scale.start, bottom), (scale.end, bottom), "axis")
    middle = (scale.start + scale.end) / 2
    chart.text((middle, bottom + 38), label, "middle", room=scale.end - scale.start)
    return chart, scale


def _name(chart: Drawing, scale: Scale, name: str, reading: str, index: int) -> float:
    """Write a row's name and number; returns where its dot lies, drawing units."""
    top = ROW * index + 2
    room = scale.end - scale.start - (len(reading) + 2) * CHARACTER
    chart.text((scale.start, top + FONT), name, room=room)
    chart.text((scale.end, top + FONT), reading, "end", soft=True)
    return top + FONT + 11
