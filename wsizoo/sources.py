"""Where the features of a slide come from: a file of any tool, or the slide itself."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from wsizoo.bag import Bag
from wsizoo.encoders.batches import BatchEncoder, Precision
from wsizoo.encoders.loading import load_encoder
from wsizoo.errors import SpecError
from wsizoo.extraction.folders import check_writable
from wsizoo.files import sha256_of
from wsizoo.fingerprint import Meeting
from wsizoo.formats.contents import LEVEL0
from wsizoo.formats.detect import contents_of, is_zarr
from wsizoo.formats.read import ReadAs, agreed, read_with_report
from wsizoo.model import SlideModel
from wsizoo.slides.extract import Progress, Request, SlideEncoder
from wsizoo.slides.manifest import SLIDE_SUFFIXES, SlideEntry, check_one_name_each, list_slides
from wsizoo.slides.store import read_header

FEATURES = ".h5"
FEATURE_SUFFIXES = frozenset({FEATURES, ".hdf5", ".pt", ".pth", ".npy", ".zarr"})


def is_features(path: Path) -> bool:
    """Whether a file is to be read as features; slides have other names."""
    return path.suffix.lower() in FEATURE_SUFFIXES


def list_inputs(inputs: Sequence[Path | str] | Path | str) -> list[SlideEntry]:
    """Slides and feature files: given, in folders, or listed in manifests (.csv).

    Raises:
        DataError: none, not there, two of one name, or a damaged manifest.
    """
    given = [Path(item) for item in ([inputs] if isinstance(inputs, str | Path) else inputs)]
    stores = [item for item in given if is_zarr(item)]
    rest = [item for item in given if item not in stores]
    entries = [SlideEntry(store) for store in stores]
    if rest or not stores:
        entries += list_slides(rest, {*SLIDE_SUFFIXES, FEATURES})
    check_one_name_each([entry.path for entry in entries])
    return entries


def meet(model: SlideModel, bag: Bag, force: bool = False) -> tuple[Bag, Meeting]:
    """The bag as this model takes it, and how they came together.

    Whatever brings features to a model asks here, and stamps its outputs with the answer.

    Args:
        force: take features of another encoder all the same.

    Raises:
        FingerprintError: features of another encoder, or made in another way; unless forced.
    """
    names = (f"'{model.name}'", f"slide '{bag.slide_id}'")
    meeting = model.requires.meet(bag.encoder, *names, force)
    return (bag.replace(encoder=None) if meeting.forced else bag), meeting


@dataclass(frozen=True)
class Needs:
    """How features are to be made or read; arguments as of `wsizoo.predict`."""

    request: Request
    device: torch.device | str = "cpu"
    progress: Progress | None = None
    overwrite: bool = False
    encoder: str | None = None
    force: bool = False
    weights: Path | None = None
    precision: Precision = "auto"

    def reading(self, entry: SlideEntry) -> ReadAs:
        """What files of other tools may not say themselves."""
        return ReadAs(encoder=self.encoder, slide_mpp=self.request.slide_mpp or entry.mpp)


@dataclass(frozen=True, eq=False)
class Taken:
    """The features of one slide.

    Args:
        own: the file of wsizoo that they lie in, if they do. frame: of the coordinates.
        digest: changes with the features and with how they were read.
    """

    bag: Bag
    own: Path | None
    digest: str
    frame: str = LEVEL0


class FeatureSource:
    """Bags of slides or feature files, for one model; its encoder is made when first needed.

    Args:
        folder: where features of slides are kept.
    """

    def __init__(self, model: SlideModel, folder: Path, needs: Needs) -> None:
        required, asked = model.requires, needs.request
        self.model, self.folder, self.needs = model, folder, needs
        mpp = required.mpp if asked.mpp is None else asked.mpp
        size = required.patch_size if asked.patch_size is None else asked.patch_size
        self.request = dataclasses.replace(asked, mpp=mpp, patch_size=size)
        self._encoder: SlideEncoder | None = None

    def prepare(self, entries: Sequence[SlideEntry]) -> None:
        """Raise now what would make every slide fail; see `encoder`."""
        if not all(is_features(entry.path) for entry in entries):
            self.encoder()
            check_writable(self.folder)

    def encoder(self) -> SlideEncoder:
        """Makes features with the model's encoder on the device.

        Raises:
            SpecError: the model names none. NotFoundError: it does not run here.
            FingerprintError: it would give features that the model refuses, unless forced.
        """
        if self._encoder is None:
            name = self.model.requires.encoder
            if name is None:
                raise SpecError(
                    f"'{self.model.name}' names no encoder to make features with; give it feature "
                    "files (.h5)"
                )
            encoder = load_encoder(name, self.needs.weights)
            made = encoder.fingerprint(self.request.mpp, self.request.patch_size)
            needs = self.needs
            self.model.requires.meet(made, f"'{self.model.name}'", "these slides", needs.force)
            encode = BatchEncoder(encoder, needs.device, needs.precision)
            self._encoder = SlideEncoder(encode, self.request, needs.progress, threads=2)
        return self._encoder

    def file(self, entry: SlideEntry) -> Path:
        """Where the features of a slide lie: the file that was given, or one in `folder`."""
        given = is_features(entry.path)
        return entry.path if given else self.folder / f"{entry.slide_id}{FEATURES}"

    def digest(self, entry: SlideEntry) -> str | None:
        """Of the features that are there and answer the request, if any; cheap."""
        if is_features(entry.path):
            return self._digest_of(entry)
        header = self.encoder().header(entry, self.file(entry))
        return None if header is None else header.digest

    def _digest_of(self, entry: SlideEntry) -> str:
        format, contents = contents_of(entry.path)
        how = agreed(format.name, contents, self.needs.reading(entry))
        if format.name == "wsizoo":
            mpp = str(how.slide_mpp or "")  # none where the file states its own
            return read_header(entry.path).digest + (self.needs.encoder or "") + mpp
        parts = [str(self.needs.reading(entry))]
        for file in contents.files:
            inside = sorted(file.rglob("*")) if file.is_dir() else [file]
            parts += [sha256_of(each) for each in inside if each.is_file()]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def take(self, entry: SlideEntry) -> Taken:
        """The features of a slide, made now if they are not there, under the slide's name."""
        file, name = self.file(entry), entry.slide_id
        if is_features(entry.path):
            reading = read_with_report(file, self.needs.reading(entry), name)
            own = file if reading.format == "wsizoo" else None
            return Taken(reading.bag, own, self._digest_of(entry), reading.frame)
        bag = self.encoder().bag(entry, file, self.needs.overwrite)
        return Taken(bag.replace(slide_id=name), file, read_header(file).digest)
