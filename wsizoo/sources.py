"""Where the features of a slide come from: a file of any tool, or the slide itself."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from wsizoo.bag import Bag
from wsizoo.errors import SpecError
from wsizoo.extraction import SLIDE_SUFFIXES, check_one_name_each, check_writable, list_files
from wsizoo.files import sha256_of
from wsizoo.fingerprint import Meeting
from wsizoo.formats.contents import LEVEL0
from wsizoo.formats.detect import contents_of, is_zarr
from wsizoo.formats.read import ReadAs, read_with_report
from wsizoo.interfaces import Encoder
from wsizoo.model import SlideModel
from wsizoo.slides.extract import Progress, Request, bag_of_slide, header_of_slide
from wsizoo.slides.store import read_header
from wsizoo.zoo import load_encoder

FEATURES = ".h5"
FEATURE_SUFFIXES = frozenset({FEATURES, ".hdf5", ".pt", ".pth", ".npy", ".zarr"})


def is_features(path: Path) -> bool:
    """Whether a file is to be read as features; slides have other names."""
    return path.suffix.lower() in FEATURE_SUFFIXES


def list_inputs(inputs: Sequence[Path | str] | Path | str) -> list[Path]:
    """Slides and feature files. Raises DataError: none, not there, or two of one name."""
    given = [Path(item) for item in ([inputs] if isinstance(inputs, str | Path) else inputs)]
    stores = [item for item in given if is_zarr(item)]
    rest = [item for item in given if item not in stores]
    files = list_files(rest, {*SLIDE_SUFFIXES, FEATURES}) if rest or not stores else []
    check_one_name_each([*stores, *files])
    return [*stores, *files]


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

    def reading(self) -> ReadAs:
        """What files of other tools may not say themselves."""
        return ReadAs(encoder=self.encoder, slide_mpp=self.request.slide_mpp)


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
        self._encoder: Encoder | None = None

    def prepare(self, files: Sequence[Path]) -> None:
        """Raise now what would make every slide fail; see `encoder`."""
        if not all(is_features(path) for path in files):
            self.encoder()
            check_writable(self.folder)

    def encoder(self) -> Encoder:
        """The model's encoder on the device.

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
            encoder = load_encoder(name)
            made = encoder.fingerprint(self.request.mpp, self.request.patch_size)
            force = self.needs.force
            self.model.requires.meet(made, f"'{self.model.name}'", "these slides", force)
            self._encoder = encoder.to(self.needs.device)
        return self._encoder

    def file(self, path: Path) -> Path:
        """Where the features of a slide lie: the file that was given, or one in `folder`."""
        return path if is_features(path) else self.folder / f"{path.stem}{FEATURES}"

    def digest(self, path: Path) -> str | None:
        """Of the features that are there and answer the request, if any; cheap."""
        if is_features(path):
            return self._digest_of(path)
        header = header_of_slide(path, self.encoder(), self.file(path), self.request)
        return None if header is None else header.digest

    def _digest_of(self, path: Path) -> str:
        format, contents = contents_of(path)
        if format.name == "wsizoo":
            return read_header(path).digest + (self.needs.encoder or "")
        parts = [str(self.needs.reading())]
        for file in contents.files:
            inside = sorted(file.rglob("*")) if file.is_dir() else [file]
            parts += [sha256_of(each) for each in inside if each.is_file()]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def take(self, path: Path) -> Taken:
        """The features of a slide, made now if they are not there, under the slide's name."""
        file = self.file(path)
        if is_features(path):
            reading = read_with_report(file, self.needs.reading(), path.stem)
            own = file if reading.format == "wsizoo" else None
            return Taken(reading.bag, own, self._digest_of(path), reading.frame)
        needs = self.needs
        encoder, device = self.encoder(), needs.device
        bag = bag_of_slide(
            path, encoder, file, self.request, needs.progress, needs.overwrite, device
        )
        return Taken(bag.replace(slide_id=path.stem), file, read_header(file).digest)
