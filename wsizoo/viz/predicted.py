"""What a prediction says of the patches of one slide, as files: scores, a heatmap, GeoJSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.files import replacing, write_csv
from wsizoo.interfaces import SlideOutput
from wsizoo.slides.geojson import write_geojson
from wsizoo.slides.reader import Pixels
from wsizoo.slides.store import read_header, read_thumbnail
from wsizoo.viz.classes import Classes
from wsizoo.viz.colour import normalise
from wsizoo.viz.geojson import patches_geojson
from wsizoo.viz.heatmap import overlay, with_legend
from wsizoo.viz.regions import regions_geojson

Floats = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PatchAnswers:
    """What a model says of the N patches of a slide; None where it says nothing.

    Of patches that a selector dropped, only `selector_scores` says something.

    Args:
        scores: (N,) float64, larger mattered more. kept: (K,) patches that a selector kept.
        selector_scores: (N,) float64, how much the selector wanted each.
        groups: (N,) int64, which patches the model fused: those of one number became one.
        probabilities: (N, C) float64. called: (N,) which class each is. classes: C names.
        segments: the model answers per patch only, so its classes are the answer.
    """

    n: int
    scores: Floats | None = None
    kept: Index | None = None
    selector_scores: Floats | None = None
    groups: Index | None = None
    probabilities: Floats | None = None
    called: Index | None = None
    classes: Sequence[str] = ()
    segments: bool = False

    @classmethod
    def of(cls, output: SlideOutput, n: int, found: Classes | None) -> PatchAnswers:
        """The per-patch fields of a model's output; `found`: what its instance logits say."""
        return cls(
            n,
            scores=_array(output.scores),
            kept=None if output.kept is None else output.kept.cpu().numpy(),
            selector_scores=_array(output.selector_scores),
            groups=None if output.groups is None else output.groups.cpu().numpy(),
            probabilities=None if found is None else _array(found.probabilities),
            called=None if found is None else found.called.cpu().numpy(),
            classes=() if found is None else found.names,
            segments=found is not None and output.logits is None,
        )

    def __bool__(self) -> bool:
        said = (self.scores, self.kept, self.selector_scores, self.groups, self.probabilities)
        return any(value is not None for value in said)

    @cached_property
    def read(self) -> Index:
        """The patches that reached the model, ascending."""
        return np.arange(self.n) if self.kept is None else np.sort(self.kept)

    def drawn(self) -> tuple[Floats, tuple[str, str], str] | None:
        """What a heatmap shows of the patches that were read, if anything.

        Returns:
            values (K,) in [0, 1]; what 0 and 1 mean; what the values are.
        """
        if self.scores is not None and not self.segments:
            scores = self.scores[self.read]
            return normalise(scores), _ends(scores), _label("importance to the model", scores)
        if self.probabilities is not None:
            label = f"probability of {self.classes[-1]}"
            shown = np.clip(self.probabilities[self.read, -1], 0, 1)
            return shown, ("0", "1"), label
        if self.selector_scores is not None:
            wanted = self.selector_scores[self.read]
            return normalise(wanted), _ends(wanted), _label("wanted by the selector", wanted)
        return None


def _label(what: str, scores: Floats) -> str:
    """What ranks show: few distinct scores, or scores that are close, look as far apart as any."""
    distinct = len(np.unique(scores))
    if distinct < 2:
        return f"{what}: no difference, one score for all"
    few = f" of {distinct} distinct scores" if distinct < len(scores) / 2 else ""
    return f"{what} (rank{few})"


def _ends(scores: Floats) -> tuple[str, str]:
    """The least and the largest score, in as many digits as tell them apart."""
    low, high = (float(end) for end in (scores.min(), scores.max())) if scores.size else (0.0, 0.0)
    told = next((d for d in range(3, 8) if f"{low:.{d}g}" != f"{high:.{d}g}"), 3)
    return f"least, {low:.{told}g}", f"most, {high:.{told}g}"


@dataclass(frozen=True)
class Drawing:
    """Where the files of a slide go, and what they must say.

    Args:
        out: the folder. name: of the slide. own: wsizoo's feature file, for its thumbnail.
        level0: whether coordinates are in level-0 px, so that other viewers find the patches.
        forced: why the features should not have met the model; "" where they may.
    """

    out: Path
    name: str
    own: Path | None = None
    level0: bool = True
    forced: str = ""

    def path(self, kind: str) -> Path:
        """Where a file of this kind goes."""
        return output_files(self.out, self.name)[kind]


def write_scores(drawing: Drawing, bag: Bag, answers: PatchAnswers) -> Path:
    """One row a patch: x, y (the bag's; empty without coords), and what there is of

    score, kept (1 or 0), selector_score, group, prob_<class>, predicted. Empty where a selector
    dropped the patch. Of a forced prediction, every row says why in `forced`.
    """
    xy = bag.coords.tolist() if bag.coords is not None else [["", ""]] * len(bag)
    rows: list[dict[str, Any]] = [{"x": x, "y": y} for x, y in xy]
    columns = ["x", "y"]
    every, read = range(len(bag)), answers.read.tolist()

    def add(name: str, values: Sequence[Any], at: Sequence[int]) -> None:
        columns.append(name)
        for i in at:
            value = values[i]
            rows[i][name] = f"{value:.6g}" if isinstance(value, float) else value

    if answers.scores is not None:
        add("score", answers.scores.tolist(), read)
    if answers.kept is not None:
        add("kept", np.isin(every, answers.kept).astype(int).tolist(), every)
    if answers.selector_scores is not None:
        add("selector_score", answers.selector_scores.tolist(), every)
    if answers.groups is not None:
        add("group", answers.groups.tolist(), read)
    if answers.probabilities is not None:
        for name, column in zip(answers.classes, answers.probabilities.T.tolist(), strict=True):
            add(f"prob_{name}", column, read)
    if answers.called is not None:
        add("predicted", [answers.classes[i] for i in answers.called.tolist()], read)
    if drawing.forced:
        add("forced", [drawing.forced] * len(bag), every)
    write_csv(drawing.path("scores"), rows, columns)
    return drawing.path("scores")


def write_pictures(drawing: Drawing, bag: Bag, answers: PatchAnswers) -> dict[str, Path]:
    """The heatmap, `geojson/<name>.geojson`, and of a model that segments

    `regions/<name>.geojson`. GeoJSON is for level-0 px only.

    Args:
        bag: with coords and footprint.

    Returns:
        The files by kind.
    """
    written = {}
    if drawing.level0:
        written["geojson"] = _write_geojson(drawing, bag, answers)
        if answers.segments and bag.spacing is not None:
            written["regions"] = _write_regions(drawing, bag, answers)
    heatmap = write_heatmap(drawing, bag, answers)
    if heatmap is not None:
        written["heatmap"] = heatmap
    return written


def write_heatmap(drawing: Drawing, bag: Bag, answers: PatchAnswers) -> Path | None:
    """`heatmaps/<name>.png` over the thumbnail, else on white; None where nothing is to be shown.

    It shows scores; without them, or where the model segments, the last class's probability;
    without both the selector's scores. Patches that a selector dropped are not coloured, and the
    kept ones then outlined.

    Args:
        bag: with coords and footprint.
    """
    drawn = answers.drawn()
    if drawn is None:
        return None
    values, ends, label = drawn
    coords, footprint = _squares(bag)
    image, downsample = canvas(drawing.own, coords, footprint)
    outlined = answers.kept is not None and len(answers.kept) < answers.n
    outline = np.arange(len(values)) if outlined else None
    at = coords[answers.read]
    picture = overlay(image, downsample, at, footprint, values, outline=outline)
    label += f"; outlined: the {len(values)} of {answers.n} patches kept" if outlined else ""
    label = f"FORCED ({drawing.forced}): {label}" if drawing.forced else label
    text = PngInfo()
    if drawing.forced:
        text.add_text("forced", drawing.forced)
    with replacing(drawing.path("heatmap")) as temporary:
        Image.fromarray(with_legend(picture, *ends, label)).save(temporary, "PNG", pnginfo=text)
    return drawing.path("heatmap")


def _write_geojson(drawing: Drawing, bag: Bag, answers: PatchAnswers) -> Path:
    further: dict[str, NDArray[Any]] = {}
    if answers.selector_scores is not None:
        further["selector score"] = answers.selector_scores
    if answers.groups is not None:
        further["group"] = np.where(np.isin(np.arange(answers.n), answers.read), answers.groups, -1)
    collection = patches_geojson(
        *_squares(bag),
        answers.scores,
        kept=answers.kept,
        probabilities=answers.probabilities,
        called=answers.called,
        classes=None if answers.probabilities is None else answers.classes,
        measurements=further,
        by_class=answers.segments,
    )
    return _write_collection(drawing, "geojson", collection)


def _write_regions(drawing: Drawing, bag: Bag, answers: PatchAnswers) -> Path:
    assert answers.called is not None and answers.probabilities is not None
    read = answers.read
    collection = regions_geojson(
        bag.subset(torch.from_numpy(read).to(bag.device)),
        answers.called[read],
        answers.probabilities[read],
        answers.classes,
    )
    return _write_collection(drawing, "regions", collection)


def _write_collection(drawing: Drawing, kind: str, collection: dict[str, Any]) -> Path:
    if drawing.forced:
        collection["properties"] = {"forced": drawing.forced}
    write_geojson(drawing.path(kind), collection)
    return drawing.path(kind)


def _squares(bag: Bag) -> tuple[Index, float]:
    """Corners (N, 2) and edge of the patches."""
    assert bag.coords is not None and bag.footprint is not None
    return bag.coords.cpu().numpy(), bag.footprint


def output_files(out: Path, name: str) -> dict[str, Path]:
    """Where the files of a slide lie, by kind, if there are any."""
    return {
        "scores": out / "scores" / f"{name}.csv",
        "heatmap": out / "heatmaps" / f"{name}.png",
        "geojson": out / "geojson" / f"{name}.geojson",
        "regions": out / "regions" / f"{name}.geojson",
    }


def canvas(
    features: Path | None, coords: Index, footprint: float, edge: int = 1024
) -> tuple[Pixels, tuple[float, float]]:
    """The slide's thumbnail and its downsample in x and y; white where the file has none."""
    stored = None if features is None else read_thumbnail(features)
    if features is not None and stored is not None:
        facts, image = read_header(features).facts, stored[0]
        if facts.width and facts.height:
            return image, (facts.width / image.shape[1], facts.height / image.shape[0])
    far = coords.max(0) + footprint
    downsample = max(1.0, float(far.max()) / edge)
    width, height = np.ceil(far / downsample).astype(int)
    return np.full((height, width, 3), 255, np.uint8), (downsample, downsample)


def _array(values: Tensor | None) -> Floats | None:
    return None if values is None else values.detach().double().cpu().numpy()
