"""A trained model on slides or feature files: predictions, scores and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsizoo.bag import Bag
from wsizoo.errors import DataError, SpecError, WsizooError
from wsizoo.extraction import (
    SLIDE_SUFFIXES,
    check_one_name_each,
    check_writable,
    list_files,
)
from wsizoo.files import replacing, write_csv, write_json
from wsizoo.interfaces import Encoder, SlideOutput
from wsizoo.model import SlideModel
from wsizoo.slides.extract import Progress, Request, extract_slide
from wsizoo.slides.reader import Pixels
from wsizoo.slides.store import read_bag, read_header, read_thumbnail
from wsizoo.viz.colour import normalise
from wsizoo.viz.geojson import patches_geojson, write_geojson
from wsizoo.viz.heatmap import overlay, with_legend
from wsizoo.zoo import load, load_encoder

FEATURES = ".h5"
TABLE = "predictions.csv"


@dataclass(frozen=True)
class Predicted:
    """What became of one slide.

    Args:
        row: columns of predictions.csv beside `slide`. files: what was written, by kind.
        reason: why it failed; "" where it did not.
    """

    slide_id: str
    row: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    reason: str = ""


def predict(
    inputs: Sequence[Path | str] | Path | str,
    model: str | SlideModel,
    out: Path | str,
    *,
    pictures: bool = True,
    request: Request | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    after_slide: Callable[[Predicted], None] | None = None,
) -> list[Predicted]:
    """Predict slides or feature files.

    Writes `out/predictions.csv` (slide, prob_<class>..., predicted; survival: risk and hazards)
    and, a slide, `scores/<slide>.csv`, `heatmaps/<slide>.png`, `geojson/<slide>.geojson` (level-0
    px, for QuPath). Features of slides are kept in `out/features` and taken from there by the next call.

    Args:
        inputs: slides, .h5 feature files, or folders of either.
        model: a name, "hf:owner/name@COMMIT", a folder, or a SlideModel.
        pictures: False: the table and the scores only.

    Raises:
        DataError: nothing to predict, two slides of one name, `out` not writable.
        WeightsError, NotFoundError: the model. FingerprintError and others of single slides are
        reported in the result, and the others go on.
    """
    files = list_inputs(inputs)
    out = Path(out)
    check_writable(out)
    network = load(model, device=device) if isinstance(model, str) else model.to(device).eval()
    features = FeatureSource(network, out / "features", request or Request(), progress)
    results = []
    for file in files:
        try:
            results.append(_predict_one(network, features, file, out, pictures))
        except WsizooError as error:
            results.append(Predicted(file.stem, reason=str(error)))
        if after_slide:
            after_slide(results[-1])
    _write_table(out, network, results)
    return results


def list_inputs(inputs: Sequence[Path | str] | Path | str) -> list[Path]:
    """Slides and feature files. Raises DataError: none, not there, or two of one name."""
    given = [inputs] if isinstance(inputs, (str, Path)) else inputs
    files = list_files(given, {*SLIDE_SUFFIXES, FEATURES})
    check_one_name_each(files)
    return files


class FeatureSource:
    """Bags of slides or feature files, for one model; its encoder is made when first needed."""

    def __init__(
        self, model: SlideModel, folder: Path, request: Request, progress: Progress | None
    ) -> None:
        self.model, self.folder, self.request, self.progress = model, folder, request, progress
        self._encoder: Encoder | None = None

    def file(self, path: Path) -> Path:
        """The feature file of a slide (made now if it is not there), or the one that was given."""
        if path.suffix == FEATURES:
            return path
        if self._encoder is None:
            use = self.model.spec.encoder
            if use is None:
                raise SpecError(f"'{self.model.name}' names no encoder to make features with")
            self._encoder = load_encoder(use.name)
        needs, request = self.model.requires, self.request
        if request.mpp is None and request.patch_size is None:
            request = Request(**{**vars(request), "mpp": needs.mpp, "patch_size": needs.patch_size})
        file = self.folder / f"{path.stem}{FEATURES}"
        extract_slide(path, self._encoder, file, request, self.progress)
        return file


def _predict_one(
    model: SlideModel, features: FeatureSource, path: Path, out: Path, pictures: bool
) -> Predicted:
    file = features.file(path)
    bag = read_bag(file)
    with torch.inference_mode():
        output = model(bag)
        importance = output.scores
    scores = None if importance is None else importance.float().cpu().numpy()
    written: dict[str, Path] = {"features": file}
    if scores is not None:
        written["scores"] = _write_scores(out / "scores" / f"{path.stem}.csv", bag, scores, output)
    if pictures and scores is not None and bag.coords is not None and bag.footprint is not None:
        written |= _draw(out, path.stem, file, bag, scores, output)
    return Predicted(bag.slide_id, {"slide": bag.slide_id, **describe(model, output)}, written)


def describe(model: SlideModel, output: SlideOutput) -> dict[str, Any]:
    """One row of numbers of an output: probabilities and class, or risk and hazards, or a value."""
    if output.hazards is not None and output.risk is not None:
        hazards = {f"hazard_{i}": _number(h) for i, h in enumerate(output.hazards)}
        return {"risk": _number(output.risk), **hazards}
    if output.value is not None:
        return {"value": _number(output.value)}
    if output.logits is not None:
        probabilities = torch.softmax(output.logits.float(), -1)
        columns = {
            f"prob_{c}": _number(p) for c, p in zip(model.classes, probabilities, strict=True)
        }
        return {**columns, "predicted": model.classes[int(probabilities.argmax())]}
    if output.instance_logits is not None:
        share = torch.bincount(output.instance_logits.argmax(-1), minlength=len(model.classes))
        share = share / len(output.instance_logits)
        return {f"share_{c}": _number(s) for c, s in zip(model.classes, share, strict=True)}
    return {}


def _number(value: Any) -> float:
    return float(f"{float(value):.6g}")


def _write_scores(path: Path, bag: Bag, scores: np.ndarray, output: SlideOutput) -> Path:
    """One row a patch: x, y (level-0 px) and its score; kept where a selector chose."""
    columns = ["x", "y", "score"]
    xy = bag.coords.tolist() if bag.coords is not None else [["", ""]] * len(bag)
    rows: list[dict[str, Any]] = [
        {"x": x, "y": y, "score": _number(s)} for (x, y), s in zip(xy, scores, strict=True)
    ]
    if output.kept is not None:
        columns.append("kept")
        kept = set(output.kept.tolist())
        for i, row in enumerate(rows):
            row["kept"] = int(i in kept)
    write_csv(path, rows, columns)
    return path


def _draw(
    out: Path, name: str, file: Path, bag: Bag, scores: np.ndarray, output: SlideOutput
) -> dict[str, Path]:
    assert bag.coords is not None and bag.footprint is not None
    coords = bag.coords.numpy()
    ranks = normalise(scores)
    kept = None if output.kept is None else output.kept.cpu().numpy()
    image, downsample = _canvas(file, coords, bag.footprint)
    picture = overlay(image, downsample, coords, bag.footprint, ranks, outline=kept)
    heatmap = out / "heatmaps" / f"{name}.png"
    _write_png(heatmap, with_legend(picture, "least", "most", "importance to the model (rank)"))
    geojson = out / "geojson" / f"{name}.geojson"
    write_geojson(geojson, patches_geojson(coords, bag.footprint, scores, kept=kept))
    return {"heatmap": heatmap, "geojson": geojson}


def _canvas(
    file: Path, coords: np.ndarray, footprint: float, edge: int = 1024
) -> tuple[Pixels, tuple[float, float]]:
    """The slide's thumbnail and its downsample in x and y; white where the file has none."""
    stored, facts = read_thumbnail(file), read_header(file).facts
    if stored is not None and facts.width and facts.height:
        image = stored[0]
        return image, (facts.width / image.shape[1], facts.height / image.shape[0])
    far = coords.max(0) + footprint
    downsample = max(1.0, float(far.max()) / edge)
    width, height = np.ceil(far / downsample).astype(int)
    return np.full((height, width, 3), 255, np.uint8), (downsample, downsample)


def _write_png(path: Path, image: Pixels) -> None:
    from PIL import Image

    with replacing(path) as temporary:
        Image.fromarray(image).save(temporary, "PNG")


def _write_table(out: Path, model: SlideModel, results: list[Predicted]) -> None:
    """predictions.csv, and run.json: what made it."""
    rows = [result.row for result in results if not result.reason]
    columns = list(dict.fromkeys(key for row in rows for key in row)) or ["slide"]
    write_csv(out / TABLE, rows, columns)
    write_json(
        out / "run.json",
        {
            "model": model.name,
            "trained": model.trained,
            "requires": model.requires.to_json(),
            "slides": len(results),
            "failed": {r.slide_id: r.reason for r in results if r.reason},
        },
    )


def embed(
    inputs: Sequence[Path | str] | Path | str,
    model: str | SlideModel,
    out: Path | str,
    *,
    request: Request | None = None,
    progress: Progress | None = None,
) -> list[Predicted]:
    """Write the slide embedding of each slide or feature file to `out/<slide>.h5`.

    Layout: dataset `features` (E,) float32, as TRIDENT's and Patho-Bench's slide features; root
    attributes `model` and `wsizoo` (the fingerprint that its input had).

    Raises: as `predict`.
    """
    files = list_inputs(inputs)
    out = Path(out)
    check_writable(out)
    network = load(model) if isinstance(model, str) else model.eval()
    features = FeatureSource(network, out / "features", request or Request(), progress)
    results = []
    for file in files:
        try:
            results.append(_embed_one(network, features, file, out))
        except WsizooError as error:
            results.append(Predicted(file.stem, reason=str(error)))
    return results


def _embed_one(model: SlideModel, features: FeatureSource, path: Path, out: Path) -> Predicted:
    import json

    import h5py

    bag = read_bag(features.file(path))
    with torch.inference_mode():
        embedding = model(bag).embedding
    if embedding is None:
        raise DataError(f"'{model.name}' gives no slide embedding")
    file = out / f"{path.stem}{FEATURES}"
    if file.resolve() == path.resolve():
        raise DataError(f"'{file}' is an input; choose another folder with -o")
    with replacing(file) as temporary, h5py.File(temporary, "w") as h5:
        h5.create_dataset("features", data=embedding.float().cpu().numpy())
        h5.attrs["model"] = model.name
        h5.attrs["wsizoo_slide"] = json.dumps(
            {"slide": bag.slide_id, "requires": model.requires.to_json()}
        )
    return Predicted(bag.slide_id, {"dim": len(embedding)}, {"embedding": file})
