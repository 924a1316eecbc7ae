"""The page of `wsizoo diagnose attention`: words, a table, spectra, distances and maps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsizoo.diagnosis.attention import CAVEAT, NUMBERS, TABLE, Diagnosed, Seen
from wsizoo.diagnosis.heads import HeadFacts
from wsizoo.diagnosis.rank import TAU
from wsizoo.model import SlideModel
from wsizoo.viz.charts import curve_chart
from wsizoo.viz.plane import attention_map, side_by_side
from wsizoo.viz.report import Report

POINTS = 101  # of a spectrum
FLOOR = 1e-8  # of the largest singular value, below which all are drawn alike

WORDS = f"""Attention in a layer is a matrix of n x n weights, [query, key], a row 1 in all. Rank is
the number of its singular values above the rounding of float64, effective rank the exponential of
the entropy of singular values over their sum. {CAVEAT}

Under "> 0.01" stands how many singular values exceed that share of the largest. Sparsity is the
share of weights that are not above {TAU:g} / n (LongMIL, Eq. 8-9). The lower bounds of the rank
follow from who may attend to whom alone: "≥ 1-D" with the tokens in raster order (LongMIL, Eq.
12-14), "≥ 2-D" on the plane. They hold if the triangle of weights that they rest on is there; else
(no) stands beside them. Attention to all patches has the bound 1. Distances are between centres of
cells, Euclidean, weighted by attention."""


def write_page(model: SlideModel, results: Sequence[Diagnosed], file: Path, radius: float) -> None:
    """One HTML file. radius: in patches, of the share of attention within."""
    state = "" if model.trained else " (random weights)"
    found = [one for one in results if one.heads]
    report = Report(f"Attention of {model.name}{state}", f"{len(found)} of {len(results)} slides")
    report.heading("What the numbers mean").text(WORDS)
    report.files({"all numbers as CSV": TABLE, "with singular values, as JSON": NUMBERS})
    for one in found:
        _add_slide(report, one, radius)
    failed = [{"Slide": one.slide_id, "Reason": one.reason} for one in results if one.reason]
    if failed:
        report.heading("Failed").table(failed, ["Slide", "Reason"])
    report.write(file)


def _add_slide(report: Report, one: Diagnosed, radius: float) -> None:
    report.heading(one.slide_id)
    report.text(_told(one))
    rows = [_shown(head, one.um, radius) for head in one.heads]
    report.table(rows, list(rows[0]), "Distances are in patches")
    for _, group in itertools.groupby(one.heads, lambda head: head.layer):
        heads = list(group)
        report.pair([_spectra(heads), _distances(heads, radius)])
    if one.seen:
        report.image(side_by_side([_map(seen) for seen in one.seen]), _caption(one))


def _told(one: Diagnosed) -> str:
    """What the model saw."""
    saw = f"All {one.patches} patches"
    if one.window < one.patches:
        saw = (
            f"A window of {one.window} of {one.patches} patches, those nearest to patch "
            f"{one.patch}: the model saw no others, and full attention in it has as many rows"
        )
    size = "of unknown size" if one.um is None else f"of {one.um:.4g} um"
    return f"{saw}. A patch is {size}."


def _shown(head: HeadFacts, um: float | None, radius: float) -> dict[str, Any]:
    """A row of the table, as people read it."""
    row: dict[str, Any] = {"Layer, head": f"{head.layer}, {head.head}"}
    row |= {"Tokens": head.tokens, "Rank": head.rank}
    row |= {f"> {threshold:g}": head.ranks[threshold] for threshold in (0.01, 0.001)}
    row |= {"Effective": head.effective_rank, "Sparsity": round(head.sparsity, 3)}
    for name, bound in (("≥ 1-D", head.band), ("≥ 2-D", head.plane)):
        row |= {name: f"{bound.rank}{'' if bound.holds else ' (no)'}"}
    row |= {"Distance": round(head.distance, 2)}
    if um is not None:
        row |= {"um": round(head.distance * um)}
    return row | {f"Within {radius:g}": round(head.within, 3)}


def _spectra(heads: Sequence[HeadFacts]) -> tuple[str, str]:
    at = np.linspace(0, 1, POINTS)
    lines = {}
    for head in heads:
        values = head.spectrum[np.rint(at * (head.tokens - 1)).astype(np.intp)]
        lines[f"head {head.head}"] = [math.log10(max(v, FLOOR)) for v in values]
    first = heads[0]
    chart = curve_chart(
        "log10 of singular value", (at * 100).tolist(), lines, x_label="Of all singular values, %"
    )
    return chart, (
        f"Layer {first.layer}, {first.module}: {first.tokens} tokens. Singular values over the "
        f"largest, descending; the lowest are {FLOOR:g} or less."
    )


def _distances(heads: Sequence[HeadFacts], radius: float) -> tuple[str, str]:
    unit, bins = heads[0].unit, max(2, *(len(head.reached) for head in heads))
    at = [(i + 0.5) * unit for i in range(bins)]
    lines = {
        f"head {head.head}": [*(100 * head.reached), *[0.0] * (bins - len(head.reached))]
        for head in heads
    }
    mark = (radius, f"radius {radius:g}") if at[0] <= radius <= at[-1] else None
    chart = curve_chart("Attention, %", at, lines, x_label="Distance, patches", mark=mark)
    means = ", ".join(f"{head.distance:.3g}" for head in heads)
    step = "patch" if unit == 1 else f"{unit} patches"
    return chart, f"Attention by distance, a point every {step}; mean distance {means}."


def _map(seen: Seen) -> Any:
    side = "one patch" if seen.unit == 1 else f"{seen.unit} x {seen.unit} patches"
    return attention_map(
        seen.cells, seen.weights, seen.query, f"Layer {seen.layer}, a cell is {side}"
    )


def _caption(one: Diagnosed) -> str:
    return (
        f"What patch {one.patch} (boxed) attends to in each layer, mean of heads; grey patches not "
        "at all."
    )
