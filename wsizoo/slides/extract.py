"""One slide to one feature file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.errors import DataError
from wsizoo.interfaces import Encoder
from wsizoo.slides.patches import PatchGrid, find_tissue, read_patches, tissue_cells
from wsizoo.slides.reader import Slide, open_slide
from wsizoo.slides.store import SlideFacts, read_bag, read_header, write_bag

Progress = Callable[[str, int, int], None]
"""(slide_id, patches done, patches in all)"""


@dataclass(frozen=True)
class Request:
    """How patches are to be cut; None: the encoder's own.

    Args:
        mpp: um/px of a patch. patch_size: px. overlap: share of an edge. min_tissue: share of a
            patch; slide_mpp: um per level-0 px, overriding what slides state.
    """

    mpp: float | None = None
    patch_size: int | None = None
    overlap: float = 0.0
    min_tissue: float | None = None
    slide_mpp: float | None = None
    batch_size: int = 64


def extract_slide(
    path: Path, encoder: Encoder, out: Path, request: Request, progress: Progress | None = None
) -> tuple[int, bool]:
    """Write `out` unless it is there already, complete, undamaged and made in the same way.

    Returns:
        Number of patches, and whether the file was there.

    Raises:
        SlideError, ScaleError: the slide. DataError: `out` holds features of another kind.
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
            _check_same(out, made.to_json(), facts, slide.mpp)
            return len(read_bag(out)), True
        assert made.mpp is not None and made.patch_size is not None
        grid = PatchGrid.of(slide, made.mpp, made.patch_size, request.overlap)
        cells = tissue_cells(slide, grid, find_tissue(slide), request.min_tissue)
        features = _encode(slide, grid, cells, encoder, request.batch_size, progress)
        bag = Bag(
            features,
            torch.from_numpy(grid.coords(cells)),
            spacing=grid.spacing,
            footprint=grid.footprint,
            mpp=slide.mpp,
            encoder=made,
            slide_id=slide.slide_id,
        )
        write_bag(bag, out, facts=facts, thumbnail=slide.thumbnail())
    return len(bag), False


def _encode(
    slide: Slide,
    grid: PatchGrid,
    cells: np.ndarray,
    encoder: Encoder,
    batch_size: int,
    progress: Progress | None,
) -> Tensor:
    """Features (N, D) float32 of cells, in batches that cross the runs of the reader."""
    parts: list[Tensor] = []
    waiting: list[np.ndarray] = []
    done = 0

    def flush(whole: bool) -> None:
        nonlocal waiting, done
        patches = np.concatenate(waiting)
        end = len(patches) if whole else len(patches) // batch_size * batch_size
        for start in range(0, end, batch_size):
            batch = torch.from_numpy(patches[start : min(start + batch_size, end)])
            with torch.inference_mode():
                parts.append(encoder(batch.permute(0, 3, 1, 2)))  # (B, D)
            done += len(batch)
            if progress:
                progress(slide.slide_id, done, len(cells))
        waiting = [patches[end:]]

    for _, patches in read_patches(slide, grid, cells):
        waiting.append(patches)
        if sum(len(p) for p in waiting) >= batch_size:
            flush(whole=False)
    flush(whole=True)
    return torch.cat(parts).clone()


def _check_same(out: Path, made: dict[str, object], facts: SlideFacts, mpp: float) -> None:
    """Raise unless the file at `out` answers the same request."""
    header = read_header(out)
    asked = {**made, **vars(facts), "slide_mpp": mpp}
    found = {**header.fingerprint.to_json(), **vars(header.facts), "slide_mpp": header.mpp}
    for name, value in asked.items():
        if found.get(name) != value:
            raise DataError(
                f"'{out}' exists and was made with {name} {found.get(name)}, now asked for "
                f"{value}. Choose another folder, or delete it"
            )
