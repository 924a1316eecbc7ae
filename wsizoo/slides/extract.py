"""One slide to one feature file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.errors import DataError, WsizooError
from wsizoo.fingerprint import Fingerprint
from wsizoo.interfaces import Encoder
from wsizoo.slides.patches import Cells, PatchGrid, find_tissue, read_patches, tissue_cells
from wsizoo.slides.reader import Pixels, Slide, check_mpp, open_slide
from wsizoo.slides.store import SlideFacts, read_bag, read_header, write_bag

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
) -> tuple[int, bool]:
    """Write `out` unless it is there already, complete, undamaged and made in the same way.

    Args:
        overwrite: replace a file that is damaged or was made in another way.

    Returns:
        Number of patches, and whether the file was there.

    Raises:
        SlideError, ScaleError: the slide. DataError: `out` is damaged or holds features of another
        kind, or the encoder gave no features.
    """
    made = encoder.fingerprint(request.mpp, request.patch_size)
    with open_slide(path, request.slide_mpp) as slide:
        facts = SlideFacts(
            slide.slide_id,
            *slide.size,
            slide.quickhash,
            slide.mpp_source,
            request.overlap,
            request.min_tissue,
        )
        if out.exists():
            try:
                _check_same(out, made, facts, slide.mpp)
                return len(read_bag(out)), True
            except WsizooError:
                if not overwrite:
                    raise
        bag = _read_and_encode(slide, encoder, made, request, progress)
        write_bag(bag, out, facts=facts, thumbnail=slide.thumbnail())
    return len(bag), False


def _read_and_encode(
    slide: Slide,
    encoder: Encoder,
    made: Fingerprint,
    request: Request,
    progress: Progress | None,
) -> Bag:
    assert made.mpp is not None and made.patch_size is not None
    grid = PatchGrid.of(slide, made.mpp, made.patch_size, request.overlap)
    cells = tissue_cells(slide, grid, find_tissue(slide), request.min_tissue)
    return Bag(
        _encode(slide, grid, cells, encoder, request.batch_size, progress),
        torch.from_numpy(grid.coords(cells)),
        spacing=grid.spacing,
        footprint=grid.footprint,
        mpp=slide.mpp,
        encoder=made,
        slide_id=slide.slide_id,
    )


def _encode(
    slide: Slide,
    grid: PatchGrid,
    cells: Cells,
    encoder: Encoder,
    batch_size: int,
    progress: Progress | None,
) -> Tensor:
    """Features (N, D) of cells, on the CPU."""
    tensors = chain(encoder.parameters(), encoder.buffers())
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    parts: list[Tensor] = []
    done = 0
    for patches in _batches(slide, grid, cells, batch_size):
        batch = torch.from_numpy(patches).permute(0, 3, 1, 2)  # (B, 3, H, W)
        with torch.inference_mode():
            features = encoder(batch.to(device)).cpu()  # (B, D)
        _check_features(features, len(patches), encoder, done)
        parts.append(features)
        done += len(patches)
        if progress:
            progress(slide.slide_id, done, len(cells))
    return torch.cat(parts).clone()  # (N, D); a clone is no inference tensor


def _batches(slide: Slide, grid: PatchGrid, cells: Cells, size: int) -> Iterator[Pixels]:
    """Patches (B, patch_size, patch_size, 3) in order; all batches but the last are full."""
    waiting: list[Pixels] = []
    for _, patches in read_patches(slide, grid, cells):
        waiting.append(patches)
        if sum(map(len, waiting)) < size:
            continue
        together = np.concatenate(waiting)
        full = len(together) // size * size
        yield from np.split(together[:full], full // size)
        waiting = [together[full:]]
    last = np.concatenate(waiting)
    if len(last):
        yield last


def _check_features(features: Tensor, n: int, encoder: Encoder, first: int) -> None:
    """Raise DataError unless an encoder's output is n finite vectors of its width."""
    if not (features.is_floating_point() and features.shape == (n, encoder.dim)):
        raise DataError(
            f"encoder '{encoder.name}' gave {tuple(features.shape)} {features.dtype}, expected "
            f"({n}, {encoder.dim}) float"
        )
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
