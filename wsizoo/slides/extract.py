"""One slide to one feature file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.errors import DataError, SlideError, WsizooError
from wsizoo.fingerprint import Fingerprint
from wsizoo.interfaces import Encoder
from wsizoo.slides.patches import Cells, PatchGrid, find_tissue, read_batches, tissue_cells
from wsizoo.slides.reader import Pixels, Slide, check_mpp, open_slide
from wsizoo.slides.store import (
    FileHeader,
    SlideFacts,
    check_content,
    read_bag,
    read_header,
    writing,
)

T = TypeVar("T")
Progress = Callable[[str, int, int], None]
"""(slide_id, patches done, patches in all)"""


@dataclass(frozen=True)
class Request:
    """How patches are to be cut; None: the encoder's own.

    Args:
        mpp: um/px of a patch. patch_size: px. overlap: share of an edge that neighbours share.
        min_tissue: share of a patch; None: 0.5, or 0.1 on slides with less than 1 % tissue.
        slide_mpp: um per level-0 px, overriding what slides state.
        batch_size: patches encoded at once.
    """

    mpp: float | None = None
    patch_size: int | None = None
    overlap: float = 0.0
    min_tissue: float | None = None
    slide_mpp: float | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Raises DataError: impossible numbers. ScaleError: no scanner's mpp."""
        if self.mpp is not None and not 0 < self.mpp < math.inf:
            raise DataError(f"mpp of patches is {self.mpp}, expected um/px above 0, such as 0.5")
        if self.patch_size is not None and self.patch_size < 1:
            raise DataError(f"patch_size is {self.patch_size}, expected px, 1 or more")
        if not 0 <= self.overlap < 1:
            raise DataError(f"overlap is {self.overlap}, expected a share of an edge, 0 to below 1")
        if self.min_tissue is not None and not 0 <= self.min_tissue <= 1:
            raise DataError(f"min_tissue is {self.min_tissue}, expected a share of a patch, 0 to 1")
        if self.batch_size < 1:
            raise DataError(f"batch_size is {self.batch_size}, expected patches at once, 1 or more")
        if self.slide_mpp is not None:
            check_mpp(self.slide_mpp)


def extract_slide(
    path: Path,
    encoder: Encoder,
    out: Path,
    request: Request,
    progress: Progress | None = None,
    overwrite: bool = False,
    device: torch.device | str | None = None,
) -> tuple[int, bool]:
    """Write `out` unless it is there already, complete, undamaged and made in the same way.

    Args:
        overwrite: replace a file that is damaged or was made in another way.
        device: where batches go, which is where the encoder is; None: where its tensors are.

    Returns:
        Number of patches, and whether the file was there.

    Raises:
        SlideError, ScaleError: the slide. DataError: `out` is damaged or holds features of another
        kind, or the encoder gave no features.
    """
    work = _Encoding(encoder, request, progress, device)
    header, present = work.ensure(path, out, overwrite, check_content)
    return (read_header(out) if header is None else header).n, present


def bag_of_slide(
    path: Path,
    encoder: Encoder,
    out: Path,
    request: Request,
    progress: Progress | None = None,
    overwrite: bool = False,
    device: torch.device | str | None = None,
) -> Bag:
    """As `extract_slide`; the bag that lies in `out`, which is read once."""
    work = _Encoding(encoder, request, progress, device)
    bag, _ = work.ensure(path, out, overwrite, read_bag)
    return read_bag(out) if bag is None else bag


def header_of_slide(path: Path, encoder: Encoder, out: Path, request: Request) -> FileHeader | None:
    """The header of `out`, if it answers this request; its content is not read.

    Raises:
        SlideError, ScaleError: the slide.
    """
    if not out.exists():
        return None
    made = encoder.fingerprint(request.mpp, request.patch_size)
    with open_slide(path, request.slide_mpp) as slide:
        try:
            _check_same(out, made, _facts(slide, request), slide.mpp)
            return read_header(out)
        except WsizooError:
            return None


@dataclass(frozen=True)
class _Encoding:
    """How slides become feature files; arguments as in `extract_slide`."""

    encoder: Encoder
    request: Request
    progress: Progress | None
    device: torch.device | str | None

    def ensure(
        self, path: Path, out: Path, overwrite: bool, read: Callable[[Path], T]
    ) -> tuple[T | None, bool]:
        """What `read` finds in the file that is there, and True; or None and False: it is new."""
        made = self.encoder.fingerprint(self.request.mpp, self.request.patch_size)
        with open_slide(path, self.request.slide_mpp) as slide:
            facts = _facts(slide, self.request)
            if out.exists():
                try:
                    _check_same(out, made, facts, slide.mpp)
                    return read(out), True
                except WsizooError:
                    if not overwrite:
                        raise
            self._write(slide, made, facts, out)
        return None, False

    def _write(self, slide: Slide, made: Fingerprint, facts: SlideFacts, out: Path) -> None:
        """Encode batch by batch; no more than a batch is ever in memory."""
        assert made.mpp is not None and made.patch_size is not None
        grid = PatchGrid.of(slide, made.mpp, made.patch_size, self.request.overlap)
        cells = tissue_cells(slide, grid, find_tissue(slide), self.request.min_tissue)
        place = Bag(
            torch.empty(len(cells), 0),
            torch.from_numpy(grid.coords(cells)),
            spacing=grid.spacing,
            footprint=grid.footprint,
            mpp=slide.mpp,
            encoder=made,
            slide_id=slide.slide_id,
        )
        done = 0
        with writing(out, place, facts=facts, thumbnail=slide.thumbnail()) as write:
            for features in self._encode(slide, grid, cells):
                write(features)
                done += len(features)
                if self.progress:
                    self.progress(slide.slide_id, done, len(cells))

    def _encode(self, slide: Slide, grid: PatchGrid, cells: Cells) -> Iterator[Tensor]:
        """Features of cells on the CPU, (B, D) or (B, 3, H, W) a batch, in order."""
        tensors = chain(self.encoder.parameters(), self.encoder.buffers())
        own = next((tensor.device for tensor in tensors), torch.device("cpu"))
        device = own if self.device is None else self.device
        done = 0
        for patches in _batches(slide, grid, cells, self.request.batch_size):
            batch = torch.from_numpy(patches).permute(0, 3, 1, 2)  # (B, 3, H, W)
            with torch.inference_mode():
                features = self.encoder(batch.to(device)).cpu()  # (B, D) or (B, 3, H, W)
            check_features(features, len(patches), self.encoder, done)
            yield features
            done += len(patches)


def _facts(slide: Slide, request: Request) -> SlideFacts:
    return SlideFacts(
        slide.slide_id,
        *slide.size,
        slide.quickhash,
        slide.mpp_source,
        request.overlap,
        request.min_tissue,
    )


def _batches(slide: Slide, grid: PatchGrid, cells: Cells, size: int) -> Iterator[Pixels]:
    """Patches (B, patch_size, patch_size, 3) in order; all batches but the last are full."""
    for batch in read_batches(slide, grid, cells, size):
        if batch.why_not is not None:
            raise SlideError(batch.why_not)
        yield batch.pixels


def check_features(features: Tensor, n: int, encoder: Encoder, first: int = 0) -> None:
    """Raise DataError unless an encoder gave what it declares of n patches.

    That is (n, dim) finite floats, or, where its `dim` is None, (n, 3, H, W) uint8 pixels.
    """
    if encoder.dim is None:
        fits = features.ndim == 4 and features.shape[:2] == (n, 3) and 0 not in features.shape
        fits, expected = fits and features.dtype is torch.uint8, f"({n}, 3, H, W) uint8"
    else:
        fits = features.is_floating_point() and features.shape == (n, encoder.dim)
        expected = f"({n}, {encoder.dim}) float"
    if not fits:
        raise DataError(
            f"encoder '{encoder.name}' gave {tuple(features.shape)} {features.dtype}, expected "
            f"{expected}"
        )
    if encoder.dim is None:
        return
    bad = torch.nonzero(~torch.isfinite(features).all(1))[:, 0]
    if len(bad):
        raise DataError(
            f"encoder '{encoder.name}' gave NaN or infinite features of patch {first + int(bad[0])}"
        )


def _check_same(out: Path, made: Fingerprint, facts: SlideFacts, mpp: float) -> None:
    """Raise DataError unless the file at `out` says that it answers the same request."""
    header = read_header(out)
    replace = "Choose another folder with -o, delete it, or replace it: --overwrite"
    for name in ("width", "height", "quickhash"):
        then, now = getattr(header.facts, name), getattr(facts, name)
        if then != now:
            raise DataError(
                f"'{out}' exists and is of another slide named {facts.slide_id} ({name} {then}, "
                f"this one has {now}). {replace}"
            )
    asked = {**made.to_json(), "overlap": facts.overlap, "min_tissue": facts.min_tissue}
    found = {**header.fingerprint.to_json(), **vars(header.facts), "slide's mpp": header.mpp}
    for name, now in {**asked, "slide's mpp": mpp}.items():
        if found.get(name) != now:
            raise DataError(
                f"'{out}' exists and was made with {name} {found.get(name)}, now asked for {now}. "
                f"{replace}"
            )
