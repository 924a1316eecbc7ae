"""Charts of how predictions meet what was true, each a function from numbers to inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wsizoo.errors import DataError
from wsizoo.viz.charts import SQUARE, Curve, finite_range, rates_plot
from wsizoo.viz.svg import CHARACTER, FONT, ROW, SERIES, WIDTH, Drawing, Plot, Scale, nice_ticks

UNIT = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
BINS = 20  # of scores in [0, 1]
SCORE_ROW = 58.0  # drawing units: a line of text and a histogram
CELL = (76.0, 40.0)  # largest width and height of a cell, drawing units
NARROW = 20.0  # least width of a cell; of many classes the picture is shown smaller
WIDE = 30.0  # a cell that wide has room for a share under its count
AXES_PR = ("Recall (sensitivity)", "Precision (positive predictive value)")


@dataclass(frozen=True)
class Calibration:
    """A bin of a reliability diagram.

    Args:
        predicted: mean predicted probability. seen: share that was so, with its interval.
        n: how many.
    """

    predicted: float
    seen: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Survivors:
    """A group of patients and its survival curve.

    Args:
        times, survival: (P,) the curve's steps, from (0, 1).
        lasted: (n,) time of event or last seen. seen: (n,) whether that was the event.
    """

    name: str
    times: Sequence[float]
    survival: Sequence[float]
    lasted: Sequence[float]
    seen: Sequence[bool]


def precision_recall_chart(curves: Sequence[Curve], chance: float | None = None) -> str:
    """Precision against recall.

    Args:
        curves: (name, recall (P,), precision (P,), average precision) each.
        chance: share of positives, which is the precision of a guess.

    Raises:
        DataError: no curve, or rates that are missing, unequal in number or outside [0, 1].
    """
    if not curves:
        raise DataError("no precision-recall curve to draw, expected at least one")
    plot = rates_plot("Precision-recall", "AP", curves, AXES_PR)
    if chance is not None:
        plot.line(plot.at(0, chance), plot.at(1, chance), "guide")
    return plot.svg()


def confusion_chart(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Labels (rows) against predictions (columns); a cell is as dark as its share of its row.

    Args:
        counts: (C, C). classes: (C,) names, in the order of rows and columns.

    Raises:
        DataError: not as many rows and columns as classes.
    """
    size = len(classes)
    if not size or len(counts) != size or any(len(row) != size for row in counts):
        raise DataError(f"a confusion matrix of {size} classes needs {size} rows and columns")
    spoken = "; ".join(f"{name}: {list(row)}" for name, row in zip(classes, counts, strict=True))
    longest = max(map(len, classes)) * CHARACTER + 12
    left = min(130.0, longest) + 24
    title = f"Confusion matrix, predicted {', '.join(classes)}: {spoken}"
    chart = Drawing(title, 0, max(WIDTH, left + 4 + NARROW * size))
    width = min(CELL[0], (chart.width - left - 4) / size)
    upright = longest <= width
    height, top = min(CELL[1], max(width, 24.0)), 36.0 if upright else min(110.0, longest) + 22
    chart.text((left + width * size / 2, 12), "Predicted", "middle")
    chart.text((12, top + height * size / 2), "Label", "middle", turned=True)
    for i, (name, row) in enumerate(zip(classes, counts, strict=True)):
        x, y = left + (i + 0.5) * width, top + (i + 0.5) * height
        if upright:
            chart.text((x, top - 8), name, "middle", soft=True)
        else:
            chart.text((x + 4, top - 6), name, soft=True, room=top - 26, turned=True)
        chart.text((left - 8, y + FONT * 0.35), name, "end", soft=True, room=left - 32)
        for j, count in enumerate(row):
            corner = (left + j * width, top + i * height)
            _cell(chart, corner, (width - 2, height - 2), count, count / max(1, sum(row)))
    chart.height = top + height * size + 4
    return chart.svg()


def _cell(
    chart: Drawing, corner: tuple[float, float], size: tuple[float, float], count: int, share: float
) -> None:
    chart.rectangle(corner, *size, "track")
    chart.rectangle(corner, *size, "cell", opacity=0.85 * share)
    x, y = corner[0] + size[0] / 2, corner[1] + size[1] / 2
    if size[1] < WIDE:
        chart.text((x, y + FONT * 0.35), str(count), "middle")
        return
    chart.text((x, y - 2), str(count), "middle")
    chart.text((x, y + 11), f"{share * 100:.0f} %", "middle")


def reliability_chart(bins: Sequence[Calibration], label: str) -> str:
    """Predicted probabilities against what came true; on the diagonal they mean what they say.

    How many a bin holds stands over the x axis, in further rows where two would touch.

    Args:
        bins: those that hold anything. label: what was predicted.

    Raises:
        DataError: no bin, or a number outside [0, 1].
    """
    if not bins:
        raise DataError(f"{label}: no calibration bin to draw, expected at least one")
    if not all(0 <= v <= 1 for b in bins for v in (b.predicted, b.seen, b.low, b.high)):
        raise DataError(f"{label}: a calibration bin holds a share outside [0, 1]")
    spoken = "; ".join(f"{b.predicted:.2f} predicted, {b.seen:.2f} seen of {b.n}" for b in bins)
    plot = Plot(
        f"Reliability: {spoken}", UNIT, UNIT, x_label=label, y_label="Share seen", inner=SQUARE
    )
    plot.line(plot.at(0, 0), plot.at(1, 1), "guide")
    plot.series([b.predicted for b in bins], [b.seen for b in bins], 0)
    for one in bins:
        plot.line(plot.at(one.predicted, one.low), plot.at(one.predicted, one.high), "whisker")
        plot.circle(plot.at(one.predicted, one.seen), 4.5, "f0")
    _counts(plot, bins)
    return plot.svg()


def _counts(plot: Plot, bins: Sequence[Calibration]) -> None:
    """How many each bin holds, in the lowest row where it does not touch the one to its left."""
    ends: list[float] = []  # of the last count of each row
    for one in sorted(bins, key=lambda one: one.predicted):
        x, half = plot.x(one.predicted), len(str(one.n)) * CHARACTER / 2
        row = next((r for r, end in enumerate(ends) if end + CHARACTER <= x - half), len(ends))
        ends[row : row + 1] = [x + half]
        plot.text((x, plot.y.start - 8 - row * (FONT + 1)), str(one.n), "middle", soft=True)


def score_chart(
    rows: Sequence[tuple[str, Sequence[float]]], label: str, guide: float | None = None
) -> str:
    """How scores in [0, 1] are spread, a histogram a row, each as high as its fullest bin.

    Args:
        rows: (name, values (n,)) each. label: what the scores are. guide: a threshold.

    Raises:
        DataError: no row, or a score outside [0, 1].
    """
    if not any(len(values) for _, values in rows):
        raise DataError(f"{label}: no score to draw")
    if not all(0 <= value <= 1 for _, values in rows for value in values):
        raise DataError(f"{label}: a score lies outside [0, 1]")
    spoken = "; ".join(f"{name}, {len(values)}" for name, values in rows)
    bottom = SCORE_ROW * len(rows)
    chart = Drawing(f"{label}: {spoken}", bottom + 46)
    scale = Scale(0, 1, 14, chart.width - 18)
    for index, (name, values) in enumerate(rows):
        _histogram(chart, scale, f"{name}, n {len(values)}", values, SCORE_ROW * index)
    if guide is not None:
        chart.line((scale(guide), 0), (scale(guide), bottom), "guide")
    for tick in UNIT:
        chart.text((scale(tick), bottom + 16), f"{tick:.1f}", "middle", soft=True)
    chart.text(((scale.start + scale.end) / 2, bottom + 36), label, "middle", room=360)
    return chart.svg()


def _histogram(
    chart: Drawing, scale: Scale, name: str, values: Sequence[float], top: float
) -> None:
    counts = [0] * BINS
    for value in values:
        counts[min(int(value * BINS), BINS - 1)] += 1
    foot, room = top + SCORE_ROW - 4, SCORE_ROW - 24
    for i, count in enumerate(counts):
        height = room * count / max(1, *counts)
        left = scale(i / BINS)
        chart.rectangle((left + 0.5, foot - height), scale(1 / BINS) - scale(0) - 1, height, "bar")
    chart.line((scale.start, foot), (scale.end, foot), "axis")
    chart.text((scale.start, top + FONT + 2), name, room=scale.end - scale.start)


def survival_chart(groups: Sequence[Survivors], label: str) -> str:
    """Kaplan-Meier curves, ticks where a patient was last seen without event, numbers at risk.

    Args:
        label: what the time is, with the unit.

    Raises:
        DataError: no group, one without patients, or lengths that differ.
    """
    if not groups:
        raise DataError("no survival curve to draw, expected at least one group")
    for one in groups:
        if (
            not one.lasted
            or len(one.lasted) != len(one.seen)
            or len(one.times) != len(one.survival)
        ):
            raise DataError(f"group {one.name!r} is empty, or its times and events do not pair up")
    _, last = finite_range(label, [time for one in groups for time in one.lasted])
    names = [f"{one.name}, n {len(one.lasted)}" for one in groups]
    title = "Kaplan-Meier: " + "; ".join(names)
    ticks = nice_ticks(0, last)
    plot = Plot(title, ticks, UNIT, x_label=label, y_label="Share without event")
    for index, one in enumerate(groups):
        until = max(one.lasted)
        steps = [p for p in zip(one.times, one.survival, strict=True) if p[0] <= until]
        xs, ys = _staircase(steps, until)
        plot.series(xs, ys, index)
        for time, seen in zip(one.lasted, one.seen, strict=True):
            if not seen:
                x, y = plot.at(time, _level(steps, time))
                plot.line((x, y - 4), (x, y + 4), f"mark s{index % SERIES}")
    plot.key(names)
    _at_risk(plot, groups, ticks)
    return plot.svg()


def _staircase(
    steps: Sequence[tuple[float, float]], until: float
) -> tuple[list[float], list[float]]:
    """Corners of a curve that stays level until its next step."""
    xs, ys, level = [0.0], [1.0], 1.0
    for x, y in steps:
        xs, ys, level = [*xs, x, x], [*ys, level, y], y
    return [*xs, until], [*ys, level]


def _level(steps: Sequence[tuple[float, float]], time: float) -> float:
    return next((y for x, y in reversed(steps) if x <= time), 1.0)


def _at_risk(plot: Plot, groups: Sequence[Survivors], ticks: Sequence[float]) -> None:
    """A row a group: how many were still followed at each tick."""
    y = plot.height + 14
    plot.text((plot.x.start, y), "At risk", soft=True)
    for index, one in enumerate(groups):
        y += ROW
        style = f"mark s{index % SERIES}"
        plot.line((10, y - FONT * 0.35), (plot.x.start - 22, y - FONT * 0.35), style)
        for tick in ticks:
            count = sum(time >= tick for time in one.lasted)
            plot.text((plot.x(tick), y), str(count), "middle")
    plot.height = y + 10


def scatter_chart(xs: Sequence[float], ys: Sequence[float], x_label: str, y_label: str) -> str:
    """A dot a pair, over one range, with the line on which both are equal.

    Raises:
        DataError: lengths that differ, nothing to draw, or a number that is not finite.
    """
    if len(xs) != len(ys) or not all(map(math.isfinite, [*xs, *ys])):
        raise DataError(f"{y_label}: {len(xs)} and {len(ys)} numbers, expected as many, all finite")
    low, high = finite_range(y_label, [*xs, *ys])
    ticks = nice_ticks(low, high)
    title = f"{y_label} against {x_label}, {len(xs)} dots"
    plot = Plot(title, ticks, ticks, x_label=x_label, y_label=y_label, inner=SQUARE)
    plot.line(plot.at(ticks[0], ticks[0]), plot.at(ticks[-1], ticks[-1]), "guide")
    for x, y in zip(xs, ys, strict=True):
        plot.circle(plot.at(x, y), 3.5, "dot")
    return plot.svg()
