"""From a bag to the cells of its patches: one grid, no two patches in one cell; good features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.errors import BagError

SLACK = 0.25  # of a cell that patches may lie apart from one grid
ROUNDING = 1.0  # level-0 px, of coordinates that were rounded to whole pixels
FARTHEST = 1 << 28  # cells along an axis of a slide, so that those of a batch can be numbered
SHOWN = 3  # offenders that a message names


def cells_of(bag: Bag) -> Tensor:
    """(N, 2) int64 cells, the slide's own from (0, 0).

    Raises:
        BagError: an empty bag; no coords or spacing; patches that share a cell, or lie on no one
            grid (wherever that begins) within a quarter of a cell; patches so far apart that they
            are on no slide.
    """
    if len(bag) == 0:
        raise BagError(f"{bag.slide_id} has no patches: nothing to build a grid of")
    cells = bag.grid()
    _check_extent(bag, cells)
    _check_on_grid(bag, cells)
    cells = bag.require_unique_cells()
    return cells - cells.amin(0)


def check_width(bag: Bag, width: int, whose: str) -> None:
    """Raise BagError unless a bag's features are (N, width)."""
    if bag.features.ndim != 2 or bag.dim != width:
        raise BagError(
            f"{bag.slide_id}: features are {tuple(bag.features.shape)}, {whose} reads (N, {width})"
        )


def check_finite(found: Tensor, bags: Sequence[Bag], whose: str) -> None:
    """Raise BagError where what a network gives for these bags is not finite: whose fault it is."""
    if bool(torch.isfinite(found.detach()).all()):
        return
    for bag in bags:
        _check_features(bag)
    largest = max(float(bag.features.detach().abs().max()) for bag in bags)
    raise BagError(
        f"{bags[0].slide_id}: {whose}'s result is not finite although its features are, up to "
        f"{largest:.3g}: they overflow, or the weights are not finite"
    )


def _check_features(bag: Bag) -> None:
    bad = (~torch.isfinite(bag.features).all(1)).nonzero()[:, 0]
    if len(bad):
        raise BagError(
            f"{bag.slide_id}: {len(bad)} of {len(bag)} patches have NaN or infinite features, "
            f"first patch {int(bad[0])}. Extract it again"
        )


def _check_extent(bag: Bag, cells: Tensor) -> None:
    height, width = (cells.amax(0) - cells.amin(0) + 1).tolist()
    if max(height, width) <= FARTHEST:
        return
    assert bag.coords is not None
    far = int((cells - cells.median(0).values).abs().amax(1).argmax())
    raise BagError(
        f"{bag.slide_id}: patches span {height} x {width} cells of spacing {bag.spacing}, at most "
        f"{FARTHEST} along an axis fit on a grid; patch {far} lies at "
        f"{tuple(bag.coords[far].tolist())}. wsizoo inspect FILE shows whether the file is whole"
    )


def _check_on_grid(bag: Bag, cells: Tensor) -> None:
    assert bag.coords is not None and bag.spacing is not None
    off = bag.coords - cells * bag.spacing  # (N, 2) px
    allowed = SLACK * bag.spacing + ROUNDING
    spread = off.amax(0) - off.amin(0)
    if float(spread.max()) <= allowed:
        return
    apart = (off - off.median(0).values).abs().amax(1)
    worst = (apart > allowed / 2).nonzero()[:, 0]
    first = ", ".join(
        f"patch {i} at {tuple(bag.coords[i].tolist())}" for i in worst[:SHOWN].tolist()
    )
    raise BagError(
        f"{bag.slide_id}: {len(worst)} of {len(bag)} patches lie off the grid of spacing "
        f"{bag.spacing} by more than {SLACK:g} of a cell, first {first}; "
        "wsizoo convert FILE FOLDER puts them onto one"
    )
