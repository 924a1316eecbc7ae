"""What a selector wants of a slide, drawn over it, the patches that it keeps outlined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wsizoo.diagnosis.selector_gates import SlideGates
from wsizoo.diagnosis.selector_run import OpenRun
from wsizoo.files import replacing
from wsizoo.train.heatmaps import own_file
from wsizoo.viz.colour import normalise
from wsizoo.viz.heatmap import overlay, with_legend
from wsizoo.viz.predicted import canvas

MAPS_FOLDER = "heatmaps"


def draw_maps(
    run: OpenRun,
    gates: Sequence[SlideGates],
    out: Path,
    most: int,
    say: Callable[[str], None],
    tick: Callable[[str, int, int], None],
) -> list[dict[str, Any]]:
    """`heatmaps/SLIDE.png` of slides from the least to the largest overlap.

    Returns:
        Of each slide `slide`, `overlap` and `file`. A slide that has no places is left out, told.
    """
    samples, drawn = run.samples(run.part), []
    for done, at in enumerate(_spread(gates, most), 1):
        bag = samples[at]
        if bag.coords is None or bag.footprint is None:
            say(f"slide '{bag.slide_id}' does not say where its patches lie: no heatmap of it")
            continue
        with torch.inference_mode():
            scores = run.selector.score(bag.to(run.model.device, run.model.dtype))
        coords, one = bag.coords.cpu().numpy(), gates[at]
        image, downsample = canvas(own_file(run.cohort, samples.samples[at]), coords, bag.footprint)
        outline = None if one.k == one.n else one.kept
        values = normalise(scores.double().cpu().numpy())
        picture = overlay(image, downsample, coords, bag.footprint, values, outline=outline)
        label = f"wanted by the selector (rank); outlined: the {one.k} of {one.n} that it keeps"
        file = out / MAPS_FOLDER / f"{one.slide}.png"
        with replacing(file) as temporary:
            Image.fromarray(with_legend(picture, "least", "most", label)).save(temporary, "PNG")
        drawn.append({"slide": one.slide, "overlap": one.overlap, "file": str(file)})
        tick("heatmaps drawn", done, most)
    return drawn


def _spread(gates: Sequence[SlideGates], most: int) -> list[int]:
    """Rows of so many slides, evenly from the least overlap to the largest."""
    order = sorted(range(len(gates)), key=lambda i: (gates[i].overlap, gates[i].slide))
    at = np.linspace(0, len(order) - 1, min(most, len(order))) if most else ()
    return [order[round(float(i))] for i in at]
