"""A trained model on slides or feature files: predictions, scores and pictures."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

import wsizoo
from wsizoo.errors import BackendError, DataError, SpecError
from wsizoo.extraction import (
    SLIDE_SUFFIXES,
    check_one_name_each,
    check_writable,
    list_files,
    reason_of,
)
from wsizoo.files import replacing, write_csv, write_json
from wsizoo.interfaces import Encoder, SlideOutput
from wsizoo.model import SlideModel
from wsizoo.slides.extract import Progress, Request, extract_slide
from wsizoo.slides.store import EMBEDDING, read_bag, read_header
from wsizoo.viz.predicted import write_pictures, write_scores
from wsizoo.zoo import load, load_encoder

FEATURES = ".h5"
TABLE = "predictions.csv"
RUN = "run.json"


@dataclass(frozen=True)
class Predicted:
    """What became of one slide.

    Args:
        row: columns of predictions.csv. files: what was written, by kind.
        reason: why it failed; "" where it did not.
    """

    slide_id: str
    row: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    reason: str = ""


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
) -> list[Predicted]:
    """Predict slides or feature files.

    Writes `out/predictions.csv` (slide, prob_<class>..., predicted; survival: risk and hazards),
    `out/run.json` (what made it) and, a slide, `scores/<slide>.csv`, `heatmaps/<slide>.png`,
    `geojson/<slide>.geojson` (level-0 px, for QuPath). Features of slides are kept in
    `out/features` and taken from there by the next call; rows of earlier calls with the same model
    stay in the table.

    Args:
        inputs: slides, .h5 feature files, or folders of either.
        model: a name, "hf:owner/name@COMMIT", a folder, or a SlideModel.
        pictures: False: the table and the scores only.
        progress: called as (slide, patches encoded, patches in all).
        overwrite: replace features in `out/features` that are damaged or were made in another way.

    Raises:
        DataError: nothing to predict, two slides of one name, `out` not writable.
        WeightsError, NotFoundError: the model, or its encoder where there are slides to encode.
        FingerprintError: `request` asks for other patches than the model was trained on.
        BackendError: no such device. What concerns single slides is reported in the result, and
        the others go on.
    """
    files = list_inputs(inputs)
    out = Path(out)
    check_writable(out)
    network = _loaded(model, device)
    source = FeatureSource(network, out / "features", request or Request(), progress, overwrite)
    source.prepare(files)
    work = partial(_predict_one, network, source, out, pictures)
    results = [_attempt(work, path, after_slide) for path in files]
    write_table(out, network, results)
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
) -> list[Predicted]:
    """Write the slide embedding of each slide or feature file to `out/<slide>.h5`.

    Layout: dataset `features` (E,) float32, as TRIDENT's and Patho-Bench's slide features; root
    attributes `model` (its name) and `wsizoo_slide` (JSON: the slide, the model, the fingerprint it
    requires). Other arguments and errors: as `predict`.
    """
    files = list_inputs(inputs)
    out = Path(out)
    check_writable(out)
    network = _loaded(model, device)
    source = FeatureSource(network, out / "features", request or Request(), progress, overwrite)
    source.prepare(files)
    work = partial(_embed_one, network, source, out)
    return [_attempt(work, path, after_slide) for path in files]


def list_inputs(inputs: Sequence[Path | str] | Path | str) -> list[Path]:
    """Slides and feature files. Raises DataError: none, not there, or two of one name."""
    given = [inputs] if isinstance(inputs, (str, Path)) else inputs
    files = list_files(given, {*SLIDE_SUFFIXES, FEATURES})
    check_one_name_each(files)
    return files


class FeatureSource:
    """Bags of slides or feature files, for one model; its encoder is made when first needed.

    Args:
        folder: where features of slides are kept. overwrite: see `predict`.
    """

    def __init__(
        self,
        model: SlideModel,
        folder: Path,
        request: Request,
        progress: Progress | None = None,
        overwrite: bool = False,
    ) -> None:
        needs = model.requires
        self.model, self.folder, self.progress = model, folder, progress
        self.overwrite = overwrite
        mpp, patch_size = request.mpp or needs.mpp, request.patch_size or needs.patch_size
        self.request = dataclasses.replace(request, mpp=mpp, patch_size=patch_size)
        self._encoder: Encoder | None = None

    def prepare(self, files: Sequence[Path]) -> None:
        """Raise now what would make every slide fail; see `encoder`."""
        if any(path.suffix != FEATURES for path in files):
            self.encoder()
            check_writable(self.folder)

    def encoder(self) -> Encoder:
        """The model's encoder on the model's device.

        Raises:
            SpecError: the model names none. NotFoundError: it does not run here.
            FingerprintError: it would give features that the model refuses.
        """
        if self._encoder is None:
            name = self.model.requires.encoder
            if name is None:
                raise SpecError(
                    f"'{self.model.name}' names no encoder to make features with; give it feature "
                    "files (.h5)"
                )
            encoder = load_encoder(name)
            made = encoder.fingerprint(self.request.mpp, self.request.patch_size)
            self.model.requires.check_accepts(made, f"'{self.model.name}'", "these slides")
            self._encoder = encoder.to(self.model.device)
        return self._encoder

    def file(self, path: Path) -> Path:
        """The feature file of a slide (made now if it is not there), or the one that was given."""
        if path.suffix == FEATURES:
            return path
        file = self.folder / f"{path.stem}{FEATURES}"
        extract_slide(path, self.encoder(), file, self.request, self.progress, self.overwrite)
        return file


def _loaded(model: str | Path | SlideModel, device: torch.device | str) -> SlideModel:
    """A model in eval mode on a device that is there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise BackendError(
            f"device '{device}' cannot be used here: {first} See: wsizoo doctor"
        ) from error
    network = model if isinstance(model, SlideModel) else load(model)
    return network.to(device).eval()


def _attempt(
    work: Callable[[Path], Predicted], path: Path, after_slide: Callable[[Predicted], None] | None
) -> Predicted:
    """One slide's result; what fails is its reason."""
    try:
        result = work(path)
    except Exception as error:
        result = Predicted(path.stem, reason=reason_of(error))
    if after_slide:
        after_slide(result)
    return result


def _predict_one(
    model: SlideModel, source: FeatureSource, out: Path, pictures: bool, path: Path
) -> Predicted:
    name, file = path.stem, source.file(path)
    bag = read_bag(file).replace(slide_id=name)  # the name that its outputs get
    with torch.inference_mode():
        output = model(bag)
        importance = output.scores
    row = {"slide": name, **describe(model, output)}
    written: dict[str, Path] = {"features": file}
    if importance is not None:
        scores = importance.double().cpu().numpy()
        kept = None if output.kept is None else output.kept.cpu().numpy()
        written["scores"] = write_scores(out / "scores" / f"{name}.csv", bag, scores, kept)
        if pictures and bag.coords is not None and bag.footprint is not None:
            written |= write_pictures(out, name, file, bag, scores, kept)
    return Predicted(name, row, written)


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


def write_table(out: Path, model: SlideModel, results: Sequence[Predicted]) -> None:
    """predictions.csv, and run.json: what made it.

    Rows of earlier calls stay if run.json says that the same model made them.
    """
    made = {
        "wsizoo": wsizoo.__version__,
        "model": model.name,
        "trained": model.trained,
        "weights": _weights_digest(model),
        "requires": model.requires.to_json(),
    }
    rows, stamps = _read_run(out, made)
    for result in results:
        rows.pop(result.slide_id, None)
        stamps[result.slide_id] = _stamp(model, result)
    rows |= {r.slide_id: r.row for r in results if not r.reason}
    columns = list(dict.fromkeys(key for row in rows.values() for key in row)) or ["slide"]
    write_csv(out / TABLE, [rows[name] for name in sorted(rows)], columns)
    write_json(out / RUN, {**made, "slides": {name: stamps[name] for name in sorted(stamps)}})


def _read_run(
    out: Path, made: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Rows and stamps, by slide, of earlier calls with the same model; else none."""
    try:
        run = json.loads((out / RUN).read_text(encoding="utf-8"))
        if {**run, "slides": None} != {**made, "slides": None}:
            return {}, {}
        with open(out / TABLE, newline="", encoding="utf-8") as file:
            return {row["slide"]: dict(row) for row in csv.DictReader(file)}, dict(run["slides"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}, {}


def _stamp(model: SlideModel, result: Predicted) -> dict[str, Any]:
    """What a prediction rests on: its features, and what they leave open of the model's needs."""
    if result.reason:
        return {"failed": result.reason}
    header = read_header(result.files["features"])
    stamp: dict[str, Any] = {"features": str(result.files["features"]), "digest": header.digest}
    unverified = model.requires.unverified(header.fingerprint)
    if unverified:
        stamp["unverified"] = unverified
    if header.fingerprint.declared:
        stamp["declared"] = True
    return stamp


def _weights_digest(model: SlideModel) -> str:
    """sha256 of a model's tensors, by name, wherever they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.inference_state().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        data = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(data.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _embed_one(model: SlideModel, source: FeatureSource, out: Path, path: Path) -> Predicted:
    import h5py

    name = path.stem
    bag = read_bag(source.file(path)).replace(slide_id=name)
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
        h5.attrs[EMBEDDING] = json.dumps(told)
    return Predicted(name, {"slide": name, "dim": len(embedding)}, {"embedding": file})


def _is_embedding(file: Path) -> bool:
    import h5py

    try:
        with h5py.File(file, "r") as h5:
            return EMBEDDING in h5.attrs
    except OSError:
        return False
