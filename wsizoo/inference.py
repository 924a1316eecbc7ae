"""A trained model on slides or feature files: predictions, scores and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from wsizoo.encoders.batches import Precision
from wsizoo.errors import DataError, reason_of
from wsizoo.extraction.folders import check_device, check_writable
from wsizoo.files import replacing
from wsizoo.formats.contents import LEVEL0
from wsizoo.model import SlideModel
from wsizoo.slides.extract import Progress, Request
from wsizoo.slides.manifest import SlideEntry
from wsizoo.slides.store import EMBEDDING
from wsizoo.sources import FEATURES, FeatureSource, Needs, list_inputs, meet
from wsizoo.viz.classes import classes_of_patches
from wsizoo.viz.predicted import Drawing, PatchAnswers, write_pictures, write_scores
from wsizoo.viz.table import Table, prediction_row
from wsizoo.zoo import load

OF_A_RUN = ("config.yaml", "metrics.json", "benchmark.html")  # of its folder, never of ours


@dataclass(frozen=True)
class Predicted:
    """What became of one slide.

    Args:
        row: columns of predictions.csv. files: what was written, by kind.
        reason: why it failed; "" where it did not. present: an earlier call had done it.
        stamp: what it rests on, as in run.json.
    """

    slide_id: str
    row: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    reason: str = ""
    present: bool = False
    stamp: dict[str, Any] = field(default_factory=dict)


def predict(
    inputs: Sequence[Path | str] | Path | str,
    model: str | Path | SlideModel,
    out: Path | str,
    *,
    pictures: bool = True,
    request: Request | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    after_slide: Callable[[Predicted], None] | None = None,
    overwrite: bool = False,
    encoder: str | None = None,
    force: bool = False,
    weights: Path | None = None,
    precision: Precision = "auto",
) -> list[Predicted]:
    """Predict slides or feature files of any tool.

    Writes `out/predictions.csv` (slide, prob_<class>..., predicted; survival: risk and hazards),
    `out/run.json` (what made it, and the limits that the model states) and, a slide,
    `scores/<slide>.csv`, `heatmaps/<slide>.png`, `geojson/<slide>.geojson` (level-0 px, for
    QuPath): scores or class probabilities of patches, as far as the model gives them; of a model
    that segments, `regions/<slide>.geojson`, the outlines of each class but the first. Features of
    slides are kept in `out/features`. An interruption keeps what was finished, and the next call
    with the same model leaves out the slides whose features and outputs are there unchanged.

    Args:
        inputs: slides, feature files (see `wsizoo.read_bag`), folders of either, or manifests.
        model: a name, "hf:owner/name@COMMIT", a folder, or a SlideModel.
        pictures: False: the table and the scores only.
        device: of the model and of its encoder.
        progress: called as (slide, patches encoded, patches in all).
        overwrite: replace features in `out/features` that are damaged or were made in another way,
            and predict every slide again.
        encoder: that made the features of files which name none.
        force: go on with features of another encoder than the model's; every output says so.
        weights, precision: of the model's encoder, as `wsizoo.extract`.

    Raises:
        DataError: nothing to predict, two slides of one name, `out` not writable, the folder of a
            run, or with the predictions of another model.
        WeightsError, NotFoundError: the model, or its encoder where there are slides to encode.
        FingerprintError: `request` asks for other patches than the model was trained on.
        BackendError: no such device. What concerns single slides is reported in the result, and
        the others go on.
    """
    needs = Needs(
        request or Request(), device, progress, overwrite, encoder, force, weights, precision
    )
    entries, source = _begin(inputs, model, Path(out), needs)
    out = Path(out)
    table = Table(out, source.model, overwrite)
    source.prepare(entries)
    work = partial(_predict_one, source, table, out, pictures)
    results: list[Predicted] = []
    try:
        for entry in entries:
            result = _attempt(work, entry)
            results.append(result)
            if result.reason:
                table.fail(result.slide_id, result.reason)
            else:
                table.add(result.slide_id, result.row, result.stamp)
            if after_slide:
                after_slide(result)
    finally:
        table.write()
    return results


def embed(
    inputs: Sequence[Path | str] | Path | str,
    model: str | Path | SlideModel,
    out: Path | str,
    *,
    request: Request | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    after_slide: Callable[[Predicted], None] | None = None,
    overwrite: bool = False,
    encoder: str | None = None,
    force: bool = False,
    weights: Path | None = None,
    precision: Precision = "auto",
) -> list[Predicted]:
    """Write the slide embedding of each slide or feature file to `out/<slide>.h5`.

    Layout: dataset `features` (E,) float32, as TRIDENT's and Patho-Bench's slide features; root
    attributes `model` (its name) and `wsizoo_slide` (JSON: the slide, the model, the fingerprint it
    requires). Other arguments and errors: as `predict`.
    """
    needs = Needs(
        request or Request(), device, progress, overwrite, encoder, force, weights, precision
    )
    entries, source = _begin(inputs, model, Path(out), needs)
    source.prepare(entries)
    work = partial(_embed_one, source, Path(out))
    results: list[Predicted] = []
    for entry in entries:
        results.append(_attempt(work, entry))
        if after_slide:
            after_slide(results[-1])
    return results


def _begin(
    inputs: Sequence[Path | str] | Path | str,
    model: str | Path | SlideModel,
    out: Path,
    needs: Needs,
) -> tuple[list[SlideEntry], FeatureSource]:
    """The files, and where their features come from.

    Raises what would make every slide fail, see `predict`.
    """
    entries = list_inputs(inputs)
    _check_no_run(out)
    check_writable(out)
    check_device(needs.device)
    network = (model if isinstance(model, SlideModel) else load(model)).to(needs.device).eval()
    return entries, FeatureSource(network, out / "features", needs)


def _check_no_run(out: Path) -> None:
    """Raise DataError for the folder of a run, whose predictions.csv and run.json are its own."""
    if own := [name for name in OF_A_RUN if (out / name).exists()]:
        raise DataError(
            f"'{out}' holds {own[0]}: it is the folder of wsizoo train, evaluate or benchmark, "
            f"whose files stay as they are. Choose another: -o {out}-predicted"
        )


def _attempt(work: Callable[[SlideEntry], Predicted], entry: SlideEntry) -> Predicted:
    """One slide's result; what fails is its reason."""
    try:
        return work(entry)
    except Exception as error:
        return Predicted(entry.slide_id, reason=reason_of(error))


def _predict_one(
    source: FeatureSource, table: Table, out: Path, pictures: bool, entry: SlideEntry
) -> Predicted:
    name, file, model, force = entry.slide_id, source.file(entry), source.model, source.needs.force
    digest = None if source.needs.overwrite else source.digest(entry)
    known = None if digest is None else table.known(name, digest, pictures, force)
    if known is not None:
        written = {"features": file, **known}
        return Predicted(name, table.rows[name], written, "", True, table.stamps[name])
    taken = source.take(entry)
    bag, meeting = meet(model, taken.bag, force)
    with torch.inference_mode():
        output = model(bag)
        answers = PatchAnswers.of(output, len(bag), classes_of_patches(model, output))
    row = {"slide": name, **prediction_row(model, output)}
    row |= {"forced": meeting.forced} if meeting.forced else {}
    drawing = Drawing(out, name, taken.own, taken.frame == LEVEL0, meeting.forced)
    written = {}
    if answers:
        written["scores"] = write_scores(drawing, bag, answers)
        if pictures and bag.coords is not None and bag.footprint is not None:
            written |= write_pictures(drawing, bag, answers)
    frame = {} if taken.frame == LEVEL0 or bag.coords is None else {"frame": taken.frame}
    stamp: dict[str, Any] = {
        "features": str(file),
        "digest": taken.digest,
        **meeting.stamp(),
        **frame,
    }
    stamp |= {"pictures": pictures, "files": list(written)}
    return Predicted(name, row, {"features": file, **written}, stamp=stamp)


def _embed_one(source: FeatureSource, out: Path, entry: SlideEntry) -> Predicted:
    import h5py

    name, model = entry.slide_id, source.model
    bag, meeting = meet(model, source.take(entry).bag, source.needs.force)
    with torch.inference_mode():
        embedding = model(bag).embedding
    if embedding is None:
        raise DataError(f"'{model.name}' gives no slide embedding")
    file = out / f"{name}{FEATURES}"
    if file.exists() and not _is_embedding(file):
        raise DataError(f"'{file}' exists and holds no embedding; choose another folder with -o")
    told = {"slide": name, "model": model.name, "requires": model.requires.to_json()}
    with replacing(file) as temporary, h5py.File(temporary, "w") as h5:
        h5.create_dataset("features", data=embedding.float().cpu().numpy())
        h5.attrs["model"] = model.name
        h5.attrs[EMBEDDING] = json.dumps({**told, **meeting.stamp()})
        if meeting.forced:
            h5.attrs["forced"] = meeting.forced
    row = {"slide": name, "dim": len(embedding)}
    row |= {"forced": meeting.forced} if meeting.forced else {}
    return Predicted(name, row, {"embedding": file}, stamp=meeting.stamp())


def _is_embedding(file: Path) -> bool:
    import h5py

    try:
        with h5py.File(file, "r") as h5:
            return EMBEDDING in h5.attrs
    except OSError:
        return False
