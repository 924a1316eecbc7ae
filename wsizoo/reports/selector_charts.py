"""Charts of a diagnosis of a selector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from wsizoo.measures.names import title
from wsizoo.viz.charts import curve_chart
from wsizoo.viz.comparison import interval_plot

Told = Mapping[str, Any]
SLIDES = 3  # whose gates are drawn


def answers_plot(run: Told, names: Mapping[str, str]) -> str:
    """The first measure of each choice of patches with its interval; "" where it is not defined."""
    first = run["measures"][0]
    found = {names[choice]: measures[first] for choice, measures in run["answers"].items()}
    points = {
        name: [draw for draw in one["draws"] if draw is not None]
        for name, one in found.items()
        if len(one["draws"]) > 1
    }
    chance = (run["probes"] or {}).get("chance")
    return _plot(found, title(first), points, chance)


def probes_plot(run: Told, names: Mapping[str, str]) -> str:
    """The same of each kind of patches that a probe was trained on."""
    probes = run["probes"]
    found = {names[kind]: one for kind, one in probes["measured"].items()}
    return _plot(found, f"{title(run['measures'][0])} of a probe", {}, probes["chance"])


def _plot(
    found: Mapping[str, Told], label: str, points: Mapping[str, Any], chance: float | None
) -> str:
    rows = [
        (name, one["value"], one["low"], one["high"])
        for name, one in found.items()
        if one["value"] is not None
    ]
    return interval_plot(rows, label, points=points, guide=chance) if rows else ""


def gates_plot(run: Told) -> str:
    """The largest gates of slides of the least, the middle and the largest overlap."""
    ordered = sorted(run["slides"], key=lambda one: (one["overlap"], one["slide"]))
    at = {0, len(ordered) // 2, len(ordered) - 1}
    chosen = [ordered[i] for i in sorted(at)][:SLIDES]
    longest = max(len(one["largest"]) for one in chosen)
    lines = {
        one["slide"]: one["largest"] + [math.nan] * (longest - len(one["largest"]))
        for one in chosen
    }
    k = chosen[0]["k"]
    mark = (float(k), f"k = {k}") if all(one["k"] == k for one in chosen) else None
    ranks = [float(i) for i in range(1, longest + 1)]
    return curve_chart("Gate", ranks, lines, x_label="Rank of the patch", mark=mark)


def warmer_plot(run: Told) -> str:
    """Overlap and entropy of the same scores at other temperatures."""
    end, gates = run["end_temperature"], run["gates"]
    warmer, most = gates["warmer"], gates["entropy_of_equal_gates"] or 1.0
    lines = {
        "overlap": warmer["overlap"],
        "entropy": [bits / most for bits in warmer["entropy"]],
    }
    at = [math.log10(end * times) for times in warmer["times"]]
    mark = (math.log10(end), f"end {end:g}")
    return curve_chart("Share", at, lines, x_label="log10 of the temperature", mark=mark)


def shown(one: Told, times: float = 1.0, decimals: int = 3) -> str:
    """`0.912 (0.871 to 0.950)`; a difference in points has its sign."""
    sign = "+" if times != 1 else ""

    def text(value: float | None) -> str:
        return "n/a" if value is None else f"{times * value:{sign}.{decimals}f}"

    ends = one["low"], one["high"]
    if one["value"] is None or None in ends:
        return text(one["value"])
    return f"{text(one['value'])} ({text(ends[0])} to {text(ends[1])})"
