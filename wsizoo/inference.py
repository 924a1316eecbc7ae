"""A trained model on slides or feature files: predictions, scores and pictures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from wsizoo.bag import Bag
from wsizoo.encoders.batches import BatchEncoder
from wsizoo.encoders.loading import load_encoder
from wsizoo.errors import DataError, SpecError
from wsizoo.extraction.folders import check_device, check_writable
from wsizoo.extraction.job import reason_of
from wsizoo.files import replacing
from wsizoo.interfaces import Encoder
from wsizoo.model import SlideModel
from wsizoo.slides.extract import Progress, Request, SlideEncoder
from wsizoo.slides.facts import FileHeader
from wsizoo.slides.manifest import SLIDE_SUFFIXES, SlideEntry, check_one_name_each, list_files
from wsizoo.slides.store import EMBEDDING, read_bag, read_header
from wsizoo.viz.predicted import PatchAnswers, output_files, write_pictures, write_scores
from wsizoo.viz.table import Table, class_names, prediction_row, stamp_of
from wsizoo.zoo import load

FEATURES = ".h5"


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
) -> list[Predicted]:
    """Predict slides or feature files.

    Writes `out/predictions.csv` (slide, prob_<class>..., predicted; survival: risk and hazards),
    `out/run.json` (what made it, and the limits that the model states) and, a slide,
    `scores/<slide>.csv`, `heatmaps/<slide>.png`, `geojson/<slide>.geojson` (level-0 px, for
    QuPath): scores or class probabilities of patches, as far as the model gives them. Features of
    slides are kept in `out/features`. An interruption keeps what was finished, and the next call
    with the same model leaves out the slides whose features and outputs are there unchanged.

    Args:
        inputs: slides, .h5 feature files, or folders of either.
        model: a name, "hf:owner/name@COMMIT", a folder, or a SlideModel.
        pictures: False: the table and the scores only.
        device: of the model and of its encoder.
        progress: called as (slide, patches encoded, patches in all).
        overwrite: replace features in `out/features` that are damaged or were made in another way,
            and predict every slide again.

    Raises:
        DataError: nothing to predict, two slides of one name, `out` not writable or with the
            predictions of another model.
        WeightsError, NotFoundError: the model, or its encoder where there are slides to encode.
        FingerprintError: `request` asks for other patches than the model was trained on.
        BackendError: no such device. What concerns single slides is reported in the result, and
        the others go on.
    """
    files, source = _begin(inputs, model, out, request, device, progress, overwrite)
    out = Path(out)
    table = Table(out, source.model, overwrite)
    work = partial(_predict_one, source, table, out, pictures)
    results: list[Predicted] = []
    try:
        for path in files:
            result = _attempt(work, path)
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
) -> list[Predicted]:
    """Write the slide embedding of each slide or feature file to `out/<slide>.h5`.

    Layout: dataset `features` (E,) float32, as TRIDENT's and Patho-Bench's slide features; root
    attributes `model` (its name) and `wsizoo_slide` (JSON: the slide, the model, the fingerprint it
    requires). Other arguments and errors: as `predict`.
    """
    files, source = _begin(inputs, model, out, request, device, progress, overwrite)
    work = partial(_embed_one, source, Path(out))
    results: list[Predicted] = []
    for path in files:
        results.append(_attempt(work, path))
        if after_slide:
            after_slide(results[-1])
    return results


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
        device: torch.device | str = "cpu",
    ) -> None:
        needs = model.requires
        self.model, self.folder, self.progress = model, folder, progress
        self.overwrite, self.device = overwrite, device
        mpp = needs.mpp if request.mpp is None else request.mpp
        patch_size = needs.patch_size if request.patch_size is None else request.patch_size
        self.request = dataclasses.replace(request, mpp=mpp, patch_size=patch_size)
        self._encoder: Encoder | None = None

    def prepare(self, files: Sequence[Path]) -> None:
        """Raise now what would make every slide fail; see `encoder`."""
        if any(path.suffix != FEATURES for path in files):
            self.encoder()
            check_writable(self.folder)

    def encoder(self) -> Encoder:
        """The model's encoder on the device.

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
            self._encoder = encoder.to(self.device)
        return self._encoder

    def _maker(self) -> SlideEncoder:
        return SlideEncoder(
            BatchEncoder(self.encoder(), self.device), self.request, self.progress, threads=2
        )

    def file(self, path: Path) -> Path:
        """Where the features of a slide lie: the file that was given, or one in `folder`."""
        return path if path.suffix == FEATURES else self.folder / f"{path.stem}{FEATURES}"

    def header(self, path: Path) -> FileHeader | None:
        """Of the feature file, where there is one that answers the request; cheap."""
        if path.suffix == FEATURES:
            return read_header(path)
        return self._maker().header(SlideEntry(path), self.file(path))

    def bag(self, path: Path) -> Bag:
        """The features of a slide, made now if they are not there, under the slide's name."""
        file = self.file(path)
        if path.suffix == FEATURES:
            bag = read_bag(file)
        else:
            bag = self._maker().bag(SlideEntry(path), file, self.overwrite)
        return bag.replace(slide_id=path.stem)  # the name that its outputs get


def _begin(
    inputs: Sequence[Path | str] | Path | str,
    model: str | Path | SlideModel,
    out: Path | str,
    request: Request | None,
    device: torch.device | str,
    progress: Progress | None,
    overwrite: bool,
) -> tuple[list[Path], FeatureSource]:
    """The files, and where their features come from.

    Raises what would make every slide fail, see `predict`.
    """
    files = list_inputs(inputs)
    out = Path(out)
    check_writable(out)
    check_device(device)
    network = (model if isinstance(model, SlideModel) else load(model)).to(device).eval()
    folder = out / "features"
    source = FeatureSource(network, folder, request or Request(), progress, overwrite, device)
    source.prepare(files)
    return files, source


def _attempt(work: Callable[[Path], Predicted], path: Path) -> Predicted:
    """One slide's result; what fails is its reason."""
    try:
        return work(path)
    except Exception as error:
        return Predicted(path.stem, reason=reason_of(error))


def _predict_one(
    source: FeatureSource, table: Table, out: Path, pictures: bool, path: Path
) -> Predicted:
    name, file, model = path.stem, source.file(path), source.model
    header = None if source.overwrite else source.header(path)
    known = None if header is None else table.known(name, header.digest, pictures)
    if known is not None:
        written = {"features": file, **known}
        return Predicted(name, table.rows[name], written, "", True, table.stamps[name])
    bag = source.bag(path)
    with torch.inference_mode():
        output = model(bag)
        logits = output.instance_logits
        names = [] if logits is None else class_names(model, logits)
        answers = PatchAnswers.of(output, len(bag), names)
    row = {"slide": name, **prediction_row(model, output)}
    written = {}
    if answers:
        written["scores"] = write_scores(output_files(out, name)["scores"], bag, answers)
        if pictures and bag.coords is not None and bag.footprint is not None:
            written |= write_pictures(out, name, file, bag, answers)
    stamp = stamp_of(model, file, read_header(file), pictures, list(written))
    return Predicted(name, row, {"features": file, **written}, stamp=stamp)


def _embed_one(source: FeatureSource, out: Path, path: Path) -> Predicted:
    import h5py

    name, model = path.stem, source.model
    bag = source.bag(path)
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
