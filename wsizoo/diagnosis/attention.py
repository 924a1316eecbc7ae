"""The attention of a model on slides: a table, a file of numbers, and a page with pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsizoo.bag import Bag
from wsizoo.diagnosis.heads import HeadFacts, head_facts
from wsizoo.diagnosis.layers import Layer, attention_layers
from wsizoo.diagnosis.rank import TAU
from wsizoo.errors import DataError, reason_of
from wsizoo.extraction.folders import check_writable
from wsizoo.files import write_csv, write_json
from wsizoo.formats.read import ReadAs, read_with_report
from wsizoo.model import SlideModel
from wsizoo.slides.manifest import SlideEntry
from wsizoo.sources import is_features, list_inputs, meet

Cells = NDArray[np.int64]
Floats = NDArray[np.float64]
Progress = Callable[[str, int, int], None]

TABLE, NUMBERS, PAGE = "attention.csv", "attention.json", "attention.html"
PATCHES, RADIUS = 1000, 10.0
THOSE = (
    "the aggregators span, span-unet, span-v1 (pip install wsizoo-plugin-span) and longmil, "
    "longmil-v1, full-attention (pip install wsizoo-plugin-longmil)"
)
CAVEAT = (
    "The softmax of a matrix of low rank has full rank nearly always, so that the rank of full "
    "attention says nothing of it. Compare effective ranks, and ranks at thresholds, instead."
)


@dataclass(frozen=True, eq=False)
class Seen:
    """What one patch attends to in one layer: weights (n,), the mean of heads, of cells (n, 2).

    Args:
        query: row of the token that is or holds the patch.
    """

    layer: int
    module: str
    unit: int
    cells: Cells
    weights: Floats
    query: int


@dataclass(frozen=True, eq=False)
class Diagnosed:
    """What became of one slide.

    Args:
        patches: of the slide. window: how many of them the model saw, around `patch`.
        patch: row of the file. um: edge of a patch, or None. reason: why it failed, or "".
    """

    slide_id: str
    patches: int = 0
    window: int = 0
    patch: int = 0
    um: float | None = None
    heads: list[HeadFacts] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    reason: str = ""

    def rows(self) -> list[dict[str, Any]]:
        """A row a head."""
        return [{"slide": self.slide_id, **head.row(self.um)} for head in self.heads]


@dataclass(frozen=True)
class Asked:
    """How to look: as the arguments of `diagnose_attention`."""

    max_patches: int = PATCHES
    patch: int | None = None
    radius: float = RADIUS
    encoder: str | None = None
    force: bool = False
    progress: Progress = lambda what, done, total: None


def diagnose_attention(
    model: SlideModel,
    inputs: Sequence[Path | str] | Path | str,
    out: Path | str | None = None,
    *,
    after_slide: Callable[[Diagnosed], None] = lambda result: None,
    **asked: Any,
) -> list[Diagnosed]:
    """Measure the attention between patches of each layer and head of a model.

    Writes `out/attention.csv` (a row a slide, layer and head), `out/attention.json` (with singular
    values and attended distances) and `out/attention.html`.

    Args:
        inputs: feature files of any tool, folders of them, or manifests.
        out: a folder; None writes nothing.
        max_patches: the model sees no more: those nearest to the centre of the tissue.
        patch: row of a patch, in place of that centre; its attention is drawn.
        radius: in patches, of the share of attention within.
        encoder, force: as `wsizoo.predict`.
        progress: called as (what, heads done, heads in all).

    Raises:
        DataError: no feature files, or a model without attention between patches. What concerns
            single slides is reported in the result, and the others go on.

    Cost: a forward pass by the reference, O(n^2) memory, and a decomposition O(n^3) a head.
    """
    how, entries = Asked(**asked), list_inputs(inputs)
    slides = [entry.path for entry in entries if not is_features(entry.path)]
    if slides:
        raise DataError(
            f"'{slides[0]}' is no feature file: first wsizoo extract {slides[0]} -o features"
        )
    if out is not None:
        check_writable(Path(out))
    results = []
    for entry in entries:
        result = _attempt(model, entry, how)
        if not result.heads and not result.reason:
            raise DataError(
                f"'{model.name}' computes no attention between patches "
                f"(wsizoo.ops.grid_attention), so there is none to diagnose. Models of {THOSE} do"
            )
        results.append(result)
        after_slide(result)
    if out is not None:
        write_results(model, results, Path(out), how.radius)
    return results


def diagnose_bag(model: SlideModel, bag: Bag, asked: Asked | None = None) -> Diagnosed:
    """The same of one slide; no heads where the model has no attention between patches.

    Raises:
        DataError: no such patch, attention that is not finite. What the model raises on this bag.
    """
    asked = asked or Asked()
    rows, patch = window(bag, asked.max_patches, asked.patch)
    part = bag.subset(rows)
    layers = attention_layers(model, part)
    total = sum(len(layer.weights) for layer in layers)
    heads: list[HeadFacts] = []
    seen: list[Seen] = []
    for at, layer in enumerate(layers):
        for head in head_facts(layer, at, asked.radius):
            heads.append(head)
            asked.progress(f"{bag.slide_id}, layer {at}", len(heads), total)
        seen += _seen(layer, at, part, int((rows == patch).nonzero()[0]))
    um = None if bag.mpp is None or bag.spacing is None else bag.mpp * bag.spacing
    return Diagnosed(bag.slide_id, len(bag), len(rows), patch, um, heads, seen)


def window(
    bag: Bag, max_patches: int = PATCHES, patch: int | None = None
) -> tuple[torch.Tensor, int]:
    """Rows (K,) of the patches nearest to one, ascending, and that one.

    Args:
        patch: None: the one nearest to the mean place. Without coordinates: the first.

    Raises:
        DataError: there is no such patch.
    """
    n = len(bag)
    if patch is not None and not 0 <= patch < n:
        raise DataError(f"slide '{bag.slide_id}' has no patch {patch}, expected 0 to {n - 1}")
    if bag.coords is None or n == 0:
        return torch.arange(n), patch or 0
    places = bag.coords.double()  # (N, 2)
    if patch is None:
        patch = int((places - places.mean(0)).square().sum(1).argmin())
    far = (places - places[patch]).square().sum(1)
    return far.argsort(stable=True)[:max_patches].sort().values, patch


def _attempt(model: SlideModel, entry: SlideEntry, asked: Asked) -> Diagnosed:
    """One slide's result; what fails is its reason."""
    try:
        reading = ReadAs(encoder=asked.encoder, slide_mpp=entry.mpp)
        bag = read_with_report(entry.path, reading, entry.slide_id).bag
        return diagnose_bag(model, meet(model, bag, asked.force)[0], asked)
    except Exception as error:
        return Diagnosed(entry.slide_id, reason=reason_of(error))


def _seen(layer: Layer, at: int, part: Bag, patch: int) -> Iterator[Seen]:
    """What the patch, or the token of the cell nearest to it, attends to."""
    if len(layer.cells) == 0 or part.coords is None or part.spacing is None:
        return
    place = (part.grid() - part.grid().amin(0))[patch].cpu().numpy() // layer.unit  # (2,)
    apart = layer.cells - layer.cells.min(0) - place
    query = int((apart**2).sum(1).argmin())
    weights = layer.weights[:, query].mean(0)
    yield Seen(at, layer.name, layer.unit, layer.cells, weights, query)


def write_results(
    model: SlideModel, results: Sequence[Diagnosed], out: Path, radius: float
) -> None:
    """Table, numbers and page of what was found; nothing of slides that failed but their reason."""
    from wsizoo.diagnosis.page import write_page

    rows = [row for result in results for row in result.rows()]
    write_csv(out / TABLE, rows, list(rows[0]) if rows else ["slide"])
    slides = [
        {
            **{name: getattr(one, name) for name in ("slide_id", "patches", "window", "patch")},
            "um": one.um,
            "reason": one.reason,
            "heads": [
                {
                    **head.row(one.um),
                    "singular_values": [float(f"{v:.6g}") for v in head.spectrum],
                    "attended": [float(f"{v:.6g}") for v in head.reached],
                }
                for head in one.heads
            ],
        }
        for one in results
    ]
    told = {"model": model.name, "trained": model.trained, "radius": radius, "tau": TAU}
    write_json(out / NUMBERS, {**told, "caveat": CAVEAT, "slides": slides})
    write_page(model, results, out / PAGE, radius)
