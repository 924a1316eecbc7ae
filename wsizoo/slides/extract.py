"""One slide to one feature file."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

import wsizoo
from wsizoo.bag import Bag
from wsizoo.encoders.batches import BatchEncoder
from wsizoo.errors import DataError, SlideError, WsizooError
from wsizoo.files import sha256_of
from wsizoo.fingerprint import Fingerprint
from wsizoo.slides.annotations import mask_for, tissue_from_geojson
from wsizoo.slides.facts import READ, UNREADABLE, Asked, FileHeader, SlideFacts
from wsizoo.slides.manifest import SlideEntry
from wsizoo.slides.partial import Partial, Stretch, partial, tidy
from wsizoo.slides.patches import (
    Cells,
    PatchGrid,
    certify,
    read_batches,
    tissue_beyond,
    tissue_cells,
)
from wsizoo.slides.reader import Slide, open_slide
from wsizoo.slides.scale import check_mpp
from wsizoo.slides.store import check_content, read_bag, read_header, writing
from wsizoo.slides.tissue import TissueMask, overview

T = TypeVar("T")
THUMBNAIL = 1024  # px, its longer edge
Progress = Callable[[str, int, int], None]
"""(slide_id, patches done, patches in all)"""


@dataclass(frozen=True)
class Request:
    """How patches are to be cut; None: the encoder's own.

    Args:
        mpp: um/px of a patch. patch_size: px. overlap: share of an edge that neighbours share.
        pad: take patches too that reach beyond the right and bottom edge, which are white there;
            they need as much tissue as the others.
        min_tissue: share of a patch; None: the encoder's own (0.1 of `pixels`), else 0.5, or 0.1
            on slides with less than 1 % tissue.
        mask: GeoJSON of tissue, or a folder with `<slide>.geojson`; None: tissue is found.
        max_unreadable: share of a slide's patches that may be impossible to decode; more fail it.
        slide_mpp: um per level-0 px, overriding what slides and manifests state.
        batch_size: patches encoded at once.
    """

    mpp: float | None = None
    patch_size: int | None = None
    overlap: float = 0.0
    min_tissue: float | None = None
    mask: Path | None = None
    max_unreadable: float = 0.1
    slide_mpp: float | None = None
    batch_size: int = 64
    pad: bool = False

    def __post_init__(self) -> None:
        """Raises DataError: impossible numbers. ScaleError: no scanner's mpp."""
        if self.mpp is not None and not 0 < self.mpp < math.inf:
            raise DataError(f"mpp of patches is {self.mpp}, expected um/px above 0, such as 0.5")
        if self.patch_size is not None and self.patch_size < 1:
            raise DataError(f"patch_size is {self.patch_size}, expected px, 1 or more")
        if not 0 <= self.overlap < 1:
            raise DataError(f"overlap is {self.overlap}, expected a share of an edge, 0 to below 1")
        for name in ("min_tissue", "max_unreadable"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                of = "a patch" if name == "min_tissue" else "a slide's patches"
                raise DataError(f"{name} is {share}, expected a share of {of}, 0 to 1")
        if self.batch_size < 1:
            raise DataError(f"batch_size is {self.batch_size}, expected patches at once, 1 or more")
        if self.slide_mpp is not None:
            check_mpp(self.slide_mpp)

    def open(self, entry: SlideEntry) -> Slide:
        """The slide at the scale that is asked for. Raises as `open_slide`."""
        return open_slide(entry.path, self.slide_mpp, entry.mpp)


@dataclass(frozen=True)
class SlideEncoder:
    """Makes the feature files of slides, one after the other.

    Args:
        encode: patches to features. request: how patches are cut.
        progress: called after each batch. threads: that decode patches.
    """

    encode: BatchEncoder
    request: Request
    progress: Progress | None = None
    threads: int = 1

    def extract(
        self, entry: SlideEntry, out: Path, overwrite: bool = False
    ) -> tuple[FileHeader, bool]:
        """Write `out` unless it is there already, undamaged and made in the same way.

        Args:
            overwrite: replace a file that is damaged or was made in another way.

        Returns:
            Its header, and whether the file was there.

        Raises:
            SlideError, ScaleError: the slide. DataError: `out` is damaged or holds features of
            another kind, or the encoder gave no features, or the disk is full.
        """
        header, present = self._ensure(entry, out, overwrite, check_content)
        return (read_header(out) if header is None else header), present

    def bag(self, entry: SlideEntry, out: Path, overwrite: bool = False) -> Bag:
        """As `extract`; the bag that lies in `out`, which is read once."""
        bag, _ = self._ensure(entry, out, overwrite, read_bag)
        return read_bag(out) if bag is None else bag

    def count(self, entry: SlideEntry) -> int:
        """Patches that `extract` would read of a slide. Raises as it does."""
        with self.request.open(entry) as slide:
            tissue, _ = self._tissue(slide)
            return len(tissue_cells(slide, self._grid(slide), tissue, self._min_tissue))

    @property
    def patch_size(self) -> int | None:
        """Edge of its patches, px."""
        return self._made.patch_size

    def header(self, entry: SlideEntry, out: Path) -> FileHeader | None:
        """The header of `out`, if it answers the request; its content is not read.

        Raises:
            SlideError, ScaleError: the slide.
        """
        if not out.exists():
            return None
        with self.request.open(entry) as slide:
            try:
                _check_same(out, self._made, self._facts(slide, entry), slide.mpp)
                return read_header(out)
            except WsizooError:
                return None

    @property
    def _made(self) -> Fingerprint:
        return self.encode.encoder.fingerprint(self.request.mpp, self.request.patch_size)

    @property
    def _min_tissue(self) -> float | None:
        asked = self.request.min_tissue
        return self.encode.encoder.min_tissue if asked is None else asked

    def _facts(self, slide: Slide, entry: SlideEntry) -> SlideFacts:
        mask = self._mask(slide)
        return SlideFacts(
            slide.slide_id,
            *slide.size,
            quickhash=slide.quickhash,
            mpp_source=slide.mpp_source,
            overlap=self.request.overlap,
            padded=self.request.pad,
            min_tissue=self._min_tissue,
            mask=None if mask is None else sha256_of(mask),
            patient=entry.patient,
        )

    def _mask(self, slide: Slide) -> Path | None:
        return None if self.request.mask is None else mask_for(slide.slide_id, self.request.mask)

    def _ensure(
        self, entry: SlideEntry, out: Path, overwrite: bool, read: Callable[[Path], T]
    ) -> tuple[T | None, bool]:
        """What `read` finds in the file that is there, and True; or None and False: it is new."""
        with self.request.open(entry) as slide:
            facts = self._facts(slide, entry)
            if out.exists():
                try:
                    _check_same(out, self._made, facts, slide.mpp)
                    found = read(out)
                    tidy(out)
                    return found, True
                except WsizooError:
                    if not overwrite:
                        raise
            self._write(slide, facts, out)
        return None, False

    def _write(self, slide: Slide, facts: SlideFacts, out: Path) -> None:
        """Encode stretch by stretch, then put the file together."""
        made, grid = self._made, self._grid(slide)
        tissue, thumbnail = self._tissue(slide)
        cells = tissue_cells(slide, grid, tissue, self._min_tissue)
        certificate = asdict(certify(slide, grid))
        beyond = round(tissue_beyond(slide, grid, tissue), 6)
        facts = replace(facts, tissue=round(tissue.fraction, 6), beyond_grid=beyond)
        facts = replace(facts, certificate=certificate)
        setting = self._setting()
        asked = {"made": made.to_json(), "facts": asdict(facts), "mpp": slide.mpp, "by": setting}
        with partial(out, asked) as parts:
            self._encode_rest(slide, grid, cells, parts)
            index = parts.index()
            status = np.full(len(cells), UNREADABLE, np.uint8)
            status[index] = READ
            coords = grid.coords(cells)
            place = Bag(
                torch.empty(len(index), 0),
                torch.from_numpy(coords[index]),
                spacing=grid.spacing,
                footprint=grid.footprint,
                mpp=slide.mpp,
                encoder=made,
                slide_id=slide.slide_id,
            )
            asked_for = Asked(coords, status)
            with writing(
                out, place, facts=facts, thumbnail=thumbnail, asked=asked_for, made=setting
            ) as write:
                for features in parts.features():
                    write(features)

    def _grid(self, slide: Slide) -> PatchGrid:
        made, request = self._made, self.request
        assert made.mpp is not None and made.patch_size is not None
        return PatchGrid.of(slide, made.mpp, made.patch_size, request.overlap, request.pad)

    def _setting(self) -> dict[str, str]:
        """What else features depend on, to the last bit."""
        return {
            "wsizoo": wsizoo.__version__,
            "torch": torch.__version__,
            "device": self.encode.device.type,
            "precision": self.encode.precision,
        }

    def _tissue(self, slide: Slide) -> tuple[TissueMask, Any]:
        """The tissue, and a thumbnail with its downsample; the slide is looked over once."""
        mask = self._mask(slide)
        if mask is not None:
            return tissue_from_geojson(mask, slide.size, slide.mpp), slide.thumbnail()
        look = overview(slide)
        tissue = look.tissue()
        small = Image.fromarray(look.pixels)
        small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        if max(small.size) < THUMBNAIL:
            return tissue, slide.thumbnail(THUMBNAIL)
        return tissue, (np.asarray(small), slide.size[0] / small.width)

    def _encode_rest(self, slide: Slide, grid: PatchGrid, cells: Cells, parts: Partial) -> None:
        """The stretches that are not there yet. Raises SlideError: too much is unreadable."""
        size, unreadable = self.request.batch_size, parts.done - len(parts.index())
        batches = read_batches(slide, grid, cells, size, self.threads, parts.done)
        with closing(batches):
            for batch in batches:
                last = batch.first + batch.count
                features = self.encode(batch.pixels, batch.index)
                parts.add(Stretch(batch.first, last, batch.index, features))
                unreadable += batch.count - len(batch.index)
                if unreadable > self.request.max_unreadable * len(cells):
                    self._give_up(slide, unreadable, last, batch.why_not)
                if self.progress:
                    self.progress(slide.slide_id, last, len(cells))
        if unreadable == len(cells):
            self._give_up(slide, unreadable, len(cells), None)

    def _give_up(self, slide: Slide, unreadable: int, tried: int, why: str | None) -> None:
        share = f"{self.request.max_unreadable * 100:g} %"
        raise SlideError(
            f"{slide.path}: {unreadable} of the {tried} patches tried cannot be decoded, and no "
            f"more than {share} of a slide may be (--max-unreadable). {why or ''}".rstrip()
        )


def _check_same(out: Path, made: Fingerprint, facts: SlideFacts, mpp: float) -> None:
    """Raise DataError unless the file at `out` says that it answers the same request."""
    header = read_header(out)
    replace_it = "Choose another folder with -o, delete it, or replace it: --overwrite"
    for name in ("width", "height", "quickhash"):
        then, now = getattr(header.facts, name), getattr(facts, name)
        if then != now:
            raise DataError(
                f"'{out}' exists and is of another slide named {facts.slide_id} ({name} {then}, "
                f"this one has {now}). {replace_it}"
            )
    found = {**header.fingerprint.to_json(), **vars(header.facts), "slide's mpp": header.mpp}
    asked = {name: getattr(facts, name) for name in ("overlap", "padded", "min_tissue", "mask")}
    for name, now in {**made.to_json(), **asked, "slide's mpp": mpp}.items():
        then = found.get(name)
        if then != now:
            differs = f"{name} {then}, now asked for {now}" if name != "mask" else "other tissue"
            raise DataError(f"'{out}' exists and was made with {differs}. {replace_it}")
