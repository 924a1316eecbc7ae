"""The charts of the report, each a function from numbers to inline SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from wsizoo.errors import DataError
from wsizoo.viz.svg import (
    CHARACTER,
    FONT,
    Drawing,
    Plot,
    Scale,
    nice_ticks,
    shared_decimals,
    tick_labels,
)

Curve = tuple[str, Sequence[float], Sequence[float], float]
Bar = tuple[str, float, float | None, float | None]

FEW = 7  # counts that are ticked one by one
SQUARE = 370.0  # height of the plotting area of rates against rates, drawing units
BAR_ROW = 42.0  # drawing units: a line of text and a bar


def roc_chart(curves: Sequence[Curve]) -> str:
    """Receiver operating characteristics.

    Args:
        curves: (name, false positive rates (P,), true positive rates (P,), area) each; rates
            in [0, 1] in the order they are drawn.

    Raises:
        DataError: no curve, or rates that are missing, unequal in number or outside [0, 1].
    """
    if not curves:
        raise DataError("no ROC curve to draw, expected at least one (name, fpr, tpr, auc)")
    axes = ("False positive rate (1 - specificity)", "True positive rate (sensitivity)")
    plot = rates_plot("ROC", "AUC", curves, axes)
    plot.line(plot.at(0, 0), plot.at(1, 1), "guide")
    return plot.svg()


def rates_plot(kind: str, area: str, curves: Sequence[Curve], axes: tuple[str, str]) -> Plot:
    """Curves in the unit square, with their areas in the key.

    Args:
        kind: of curve. area: what the area is called. axes: labels of x and y.

    Raises:
        DataError: as `roc_chart`.
    """
    ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    names = [f"{area} {value:.3f}, {name}" for name, _, _, value in curves]
    title = f"{kind}: " + "; ".join(names)
    plot = Plot(title, ticks, ticks, x_label=axes[0], y_label=axes[1], inner=SQUARE)
    for index, (name, along, up, _) in enumerate(curves):
        xs, ys = [float(v) for v in along], [float(v) for v in up]
        if len(xs) != len(ys) or len(xs) < 2:
            raise DataError(
                f"{kind} of {name!r}: {len(xs)} rates along x and {len(ys)} along y, expected as "
                "many of both, two or more"
            )
        if not all(0 <= rate <= 1 for rate in xs + ys):
            raise DataError(f"{kind} of {name!r} holds a rate outside [0, 1]")
        plot.series(xs, ys, index)
    plot.key(names)
    return plot


def bar_chart(rows: Sequence[Bar], label: str) -> str:
    """Horizontal bars from zero, with intervals.

    Args:
        rows: (name, value, low, high) each; low and high, the ends of an interval, or None.
        label: what the bars measure, with the unit.

    Raises:
        DataError: no row, a number that is not finite, or an interval without its value.
    """
    if not rows:
        raise DataError("no bar to draw, expected at least one (name, value, low, high)")
    for row in rows:
        check_bar(row)
    numbers = [float(v) for _, *values in rows for v in values if v is not None]
    ticks = _bar_ticks(min(numbers), max(numbers))
    height = BAR_ROW * len(rows)
    decimals = shared_decimals(numbers, 3)
    readings = [reading_of(row, decimals) for row in rows]
    spoken = "; ".join(f"{row[0]} {text}" for row, text in zip(rows, readings, strict=True))
    chart = Drawing(f"{label}: {spoken}", height + 46)
    scale = Scale(ticks[0], ticks[-1], 14, chart.width - 18)
    for index, (row, reading) in enumerate(zip(rows, readings, strict=True)):
        _draw_bar(chart, scale, row, reading, index * BAR_ROW + 4)
    chart.line((scale.start, height), (scale.end, height), "axis")
    for tick, text in zip(ticks, tick_labels(ticks), strict=True):
        chart.line((scale(tick), height), (scale(tick), height + 4), "axis")
        chart.text((scale(tick), height + 18), text, "middle", soft=True)
    middle = (scale.start + scale.end) / 2
    chart.text((middle, height + 38), label, "middle", room=scale.end - scale.start)
    return chart.svg()


def curve_chart(
    name: str,
    xs: Sequence[float],
    series: Mapping[str, Sequence[float | None]],
    x_label: str = "Epoch",
    mark: tuple[float, str] | None = None,
) -> str:
    """Lines over one x axis: learning curves and the like.

    Args:
        name: what is measured, the y axis' label. xs: (P,) ascending.
        series: name -> (P,) values; None or NaN leaves a gap.
        mark: an x that matters, and what it is called; an upright line there, solid, as a
            series may be dashed.

    Raises:
        DataError: lengths that differ, or nothing finite to draw.
    """
    lines = {key: [math.nan if v is None else float(v) for v in ys] for key, ys in series.items()}
    at = [float(x) for x in xs]
    for key, ys in lines.items():
        if len(ys) != len(at):
            raise DataError(f"{name}: series {key!r} has {len(ys)} values for {len(at)} points")
    y_low, y_high = finite_range(name, (y for ys in lines.values() for y in ys))
    x_low, x_high = finite_range(f"{name}, x axis", at)
    plot = Plot(
        f"{name}: {', '.join(lines)}",
        _ticks_of(at, x_low, x_high),
        nice_ticks(y_low, y_high),
        x_label=x_label,
        y_label=name,
    )
    if mark is not None:
        x, called = plot.x(mark[0]), mark[1]
        plot.line((x, plot.y.start), (x, plot.y.end), "whisker")  # seen on an axis too
        left = x > (plot.x.start + plot.x.end) / 2
        at_text = (x - 5 if left else x + 5, plot.y.end + FONT)
        plot.text(at_text, called, "end" if left else "start", soft=True)
    for index, ys in enumerate(lines.values()):
        plot.series(at, ys, index)
    plot.key(list(lines))
    return plot.svg()


def histogram_chart(values: Sequence[float], label: str, bins: int = 20) -> str:
    """How often which value is met.

    Args:
        label: what the values are, with the unit. bins: about as many.

    Raises:
        DataError: nothing finite to draw.
    """
    finite = [float(value) for value in values if math.isfinite(value)]
    edges = nice_ticks(*finite_range(label, finite), count=bins)
    step = edges[1] - edges[0]
    counts = [0] * (len(edges) - 1)
    for value in finite:
        counts[min(int((value - edges[0]) / step), len(counts) - 1)] += 1
    x_ticks = nice_ticks(edges[0], edges[-1])
    most = max(counts)
    y_ticks = [float(n) for n in range(most + 1)] if most < FEW else nice_ticks(0, most)
    plot = Plot(f"Histogram: {label}", x_ticks, y_ticks, x_label=label, y_label="count", inner=160)
    for left, count in zip(edges, counts, strict=False):
        corner, end = plot.at(left, count), plot.at(left + step, 0)
        plot.rectangle(corner, end[0] - corner[0] - 1, end[1] - corner[1], "bar")
    return plot.svg()


def check_bar(row: Bar, within: bool = True) -> None:
    """Raise DataError unless the value is finite and, if it must be, within its interval."""
    name, value, low, high = row
    if not math.isfinite(value):
        raise DataError(f"bar {name!r} is {value}, expected a finite number")
    if (low is None) != (high is None):
        raise DataError(f"bar {name!r} has one end of an interval only, expected both or None")
    if within and low is not None and high is not None and not low <= value <= high:
        raise DataError(f"bar {name!r} is {value:g}, outside its interval {low:g} to {high:g}")


def _ticks_of(xs: Sequence[float], low: float, high: float) -> list[float]:
    """Whole numbers, of epochs say, get whole ticks."""
    if not all(x == int(x) for x in xs if math.isfinite(x)):
        return nice_ticks(low, high)
    if high - low < FEW:
        return [float(x) for x in range(int(low), max(int(high), int(low) + 1) + 1)]
    counts = (nice_ticks(low, high, count) for count in (5, 6, 4))
    return next(ticks for ticks in counts if all(tick == int(tick) for tick in ticks))


def _bar_ticks(low: float, high: float) -> list[float]:
    """From zero; shares of one get the whole of [0, 1]."""
    if low >= 0 and 0.5 < high <= 1:
        return [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    return nice_ticks(min(0.0, low), max(0.0, high))


def reading_of(row: Bar, decimals: int) -> str:
    """Value and interval as text."""
    _, value, low, high = row
    if low is None or high is None:
        return f"{value:.{decimals}f}"
    return f"{value:.{decimals}f} ({low:.{decimals}f} to {high:.{decimals}f})"


def _draw_bar(chart: Drawing, scale: Scale, row: Bar, reading: str, top: float) -> None:
    name, value, low, high = row
    room = scale.end - scale.start
    chart.text((scale.start, top + FONT), name, room=room - (len(reading) + 2) * CHARACTER)
    chart.text((scale.end, top + FONT), reading, "end", soft=True)
    y, thickness = top + FONT + 6, 12.0
    chart.rectangle((scale.start, y), room, thickness, "track")
    ends = sorted((scale(0), scale(value)))
    chart.rectangle((ends[0], y), ends[1] - ends[0], thickness, "bar")
    chart.line((scale(0), y - 2), (scale(0), y + thickness + 2), "axis")
    if low is not None and high is not None:
        middle = y + thickness / 2
        chart.line((scale(low), middle), (scale(high), middle), "whisker")
        for end in (low, high):
            chart.line((scale(end), middle - 4), (scale(end), middle + 4), "whisker")


def finite_range(what: str, values: Iterable[float]) -> tuple[float, float]:
    """The smallest and the largest of the finite values; raises DataError if there is none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        raise DataError(f"{what}: no finite number to draw")
    return min(finite), max(finite)
