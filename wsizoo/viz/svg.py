"""Drawing as inline SVG: shapes, scales, axes. Colours come from the page's style sheet by class.

A chart is a `Drawing`, or a `Plot` with two scales, turned into text by `svg()`.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wsizoo.errors import DataError

Point = tuple[float, float]

WIDTH = 400.0  # drawing units; shown at most a little larger, so text stays text-sized
FONT = 11.0  # drawing units; must agree with STYLE
CHARACTER = 0.56 * FONT  # mean width of a character of a system font
ROW = 18.0  # height of a row of the key
SERIES = 7  # colours in STYLE; dashes tell apart what comes after

STYLE = """
svg.chart { display: block; width: 100%; max-width: 31rem; height: auto; font-size: 11px;
  font-family: inherit; font-variant-numeric: tabular-nums; }
.chart text { fill: var(--ink); }
.chart .soft { fill: var(--soft); paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
.chart .cell { fill: var(--bar); } .chart .dot { fill: var(--s0); fill-opacity: 0.65; }
.chart .grid { stroke: var(--line); stroke-width: 1; }
.chart .axis { stroke: var(--soft); stroke-width: 1; }
.chart .guide { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 3 4; }
.chart .mark { stroke-width: 2; fill: none; stroke-linejoin: round; stroke-linecap: round; }
.chart .whisker { stroke: var(--ink); stroke-width: 1.5; }
.chart .bar { fill: var(--bar); } .chart .track { fill: var(--track); }
""" + "".join(
    f".chart .s{i} {{ stroke: var(--s{i}); }} .chart .f{i} {{ fill: var(--s{i}); }}\n"
    for i in range(SERIES)
)

_DASHES = ("", "6 3", "2 3", "9 3 2 3")


def number(value: float) -> str:
    """A coordinate, to a hundredth of a unit."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if math.isfinite(value) else "0"


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (steps of 1, 2, 2.5 or 5 x 10^k) that enclose [low, high]."""
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise DataError(f"an axis from {low} to {high}: expected finite numbers, low to high")
    if low == high:
        margin = abs(low) * 0.5 or 0.5
        low, high = low - margin, high + margin
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """The ticks with as many decimals as tell them apart, and no more."""
    largest = max(abs(tick) for tick in ticks)
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=largest) or 1.0
    if largest >= 1e6 or step < 1e-5:
        digits = 6 if largest == 0 else max(6, math.ceil(math.log10(largest / step)) + 2)
        return [f"{tick:.{digits}g}" for tick in ticks]
    for decimals in range(7):
        if abs(round(step, decimals) - step) < step * 1e-3:
            break
    return [f"{tick:.{decimals}f}" for tick in ticks]


def shared_decimals(values: Iterable[float], digits: int) -> int:
    """The decimals that give the largest value so many digits; 0 when all are whole."""
    finite = [abs(value) for value in values if math.isfinite(value)]
    if all(value == int(value) for value in finite):
        return 0
    return min(6, max(0, digits - 1 - math.floor(math.log10(max(finite)))))


@dataclass(frozen=True)
class Scale:
    """Values `low`..`high` laid on positions `start`..`end`, drawing units."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where a value lies, drawing units."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


class Drawing:
    """Shapes in order; every text is escaped.

    Args:
        title: what a screen reader says of the whole picture.
        height, width: drawing units, y downwards; `height` may grow until `svg()`.
    """

    def __init__(self, title: str, height: float, width: float = WIDTH) -> None:
        self.title = title
        self.height = height
        self.width = width
        self._parts: list[str] = []

    def line(self, a: Point, b: Point, style: str) -> None:
        """A straight line; `style` names a class of STYLE, as in all shapes."""
        (x1, y1), (x2, y2) = a, b
        self._parts.append(
            f'<line class="{style}" x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" '
            f'y2="{number(y2)}"/>'
        )

    def rectangle(
        self, corner: Point, width: float, height: float, style: str, opacity: float = 1.0
    ) -> None:
        """A filled rectangle; corner: top-left."""
        x, y = corner
        faint = "" if opacity == 1 else f' fill-opacity="{number(opacity)}"'
        self._parts.append(
            f'<rect class="{style}" x="{number(x)}" y="{number(y)}" '
            f'width="{number(max(width, 0))}" height="{number(height)}" rx="2"{faint}/>'
        )

    def circle(self, centre: Point, radius: float, style: str) -> None:
        """A filled circle."""
        x, y = centre
        self._parts.append(
            f'<circle class="{style}" cx="{number(x)}" cy="{number(y)}" r="{number(radius)}"/>'
        )

    def path(self, points: Sequence[Point], series: int) -> None:
        """A line through the points in the colour and dash of a series."""
        steps = "L".join(f"{number(x)} {number(y)}" for x, y in points)
        self._parts.append(f'<path class="mark s{series % SERIES}"{_dash(series)} d="M{steps}"/>')

    def text(
        self,
        at: Point,
        text: str,
        anchor: str = "start",
        *,
        soft: bool = False,
        room: float | None = None,
        turned: bool = False,
    ) -> None:
        """Write; cut with an ellipsis to `room` units, the whole text then in its tooltip."""
        x, y = at
        shown, tip = text, ""
        if room is not None and len(text) * CHARACTER > room:
            shown = text[: max(1, int(room / CHARACTER) - 1)] + "…"
            tip = f"<title>{html.escape(text)}</title>"
        turn = f' transform="rotate(-90 {number(x)} {number(y)})"' if turned else ""
        style = ' class="soft"' if soft else ""
        self._parts.append(
            f'<text{style} x="{number(x)}" y="{number(y)}" text-anchor="{anchor}"{turn}>'
            f"{html.escape(shown)}{tip}</text>"
        )

    def svg(self) -> str:
        """The picture, ready to stand in an HTML page that holds STYLE."""
        return (
            f'<svg class="chart" role="img" aria-label="{html.escape(self.title)}" '
            f'viewBox="0 0 {number(self.width)} {number(self.height)}">'
            + "".join(self._parts)
            + "</svg>"
        )


class Plot(Drawing):
    """A drawing with an x and a y axis; the ticks' first and last values are the scales' ends.

    Args:
        x_ticks, y_ticks: ascending, at least two each.
        x_label, y_label: what the axes measure, with the unit.
        inner: height of the plotting area, drawing units.
    """

    def __init__(
        self,
        title: str,
        x_ticks: Sequence[float],
        y_ticks: Sequence[float],
        *,
        x_label: str,
        y_label: str,
        inner: float = 240.0,
    ) -> None:
        labels = tick_labels(y_ticks)
        left = 30 + max(map(len, labels)) * CHARACTER
        top, right = 10.0, 18.0
        super().__init__(title, top + inner + 44)
        self.x = Scale(x_ticks[0], x_ticks[-1], left, self.width - right)
        self.y = Scale(y_ticks[0], y_ticks[-1], top + inner, top)
        self._grid(x_ticks, y_ticks, labels)
        bottom = self.y.start
        self.text(((self.x.start + self.x.end) / 2, bottom + 36), x_label, "middle", room=330)
        self.text((14, (self.y.start + self.y.end) / 2), y_label, "middle", room=inner, turned=True)

    def _grid(
        self, x_ticks: Sequence[float], y_ticks: Sequence[float], labels: Sequence[str]
    ) -> None:
        bottom, top = self.y.start, self.y.end
        for tick, label in zip(y_ticks, labels, strict=True):
            y = self.y(tick)
            self.line((self.x.start, y), (self.x.end, y), "grid")
            self.text((self.x.start - 7, y + FONT * 0.35), label, "end", soft=True)
        for tick, label in zip(x_ticks, tick_labels(x_ticks), strict=True):
            x = self.x(tick)
            self.line((x, bottom), (x, top), "grid")
            self.text((x, bottom + 17), label, "middle", soft=True)
        self.line((self.x.start, bottom), (self.x.end, bottom), "axis")
        self.line((self.x.start, bottom), (self.x.start, top), "axis")

    def at(self, x: float, y: float) -> Point:
        """Where a value pair lies, drawing units."""
        return self.x(x), self.y(y)

    def series(self, xs: Iterable[float], ys: Iterable[float], index: int) -> None:
        """A line through the values; it breaks where one is not finite, a lone one is a dot."""
        run: list[Point] = []
        for x, y in [*zip(xs, ys, strict=True), (math.nan, math.nan)]:
            if math.isfinite(x) and math.isfinite(y):
                run.append(self.at(x, y))
                continue
            if len(run) == 1:
                self.circle(run[0], 3, f"f{index % SERIES}")
            elif run:
                self.path(run, index)
            run = []

    def key(self, names: Sequence[str]) -> None:
        """The series under the axes, in the order of their indices; short names share a row."""
        room = self.x.end - self.x.start
        wide = 34 + (max(map(len, names), default=0) + 2) * CHARACTER
        columns = max(1, int(room / wide))
        for index, name in enumerate(names):
            x = self.x.start + index % columns * room / columns
            y = self.height + ROW * (index // columns) + 10
            self.path([(x, y), (x + 24, y)], index)
            self.text((x + 34, y + FONT * 0.35), name, room=room / columns - 34)
        self.height += ROW * math.ceil(len(names) / columns) + 8


def _dash(series: int) -> str:
    """Neighbouring series differ in dash too, so that colour is never the only difference."""
    pattern = _DASHES[(series + 2 * (series // SERIES)) % len(_DASHES)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""
