"""Where patches of one slide or several lie: their cells, apart for local layers, and pooled."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsizoo.bag import Bag, segment_ids
from wsizoo.errors import BagError
from wsizoo.ops import Disk, Everywhere, segment_sum
from wsizoo.ops.neighbourhoods import compact

SLACK = 0.25  # of a cell that patches may lie apart from one grid
ROUNDING = 1.0  # level-0 px, of coordinates that were rounded to whole pixels
FARTHEST = 1 << 28  # cells along an axis of a slide, so that those of a batch can be numbered
SHOWN = 3  # offenders that a message names


@dataclass(frozen=True, eq=False)
class Places:
    """The tokens of one grid, slide after slide.

    Args:
        cells: (T, 2) int64 (x, y), each slide's own from (0, 0); they may repeat.
        offsets: (B+1,) int64, slide b owns rows offsets[b]:offsets[b+1].
    """

    cells: Tensor
    offsets: Tensor

    @functools.cached_property
    def everywhere(self) -> Everywhere:
        """All tokens of a slide among each other."""
        return Everywhere(self.cells, self.offsets)

    def disk(self, radius: float) -> Disk:
        """Tokens at most `radius` cells apart. No larger than a slide, the radius costs nothing."""
        widths, heights = self._extents().unbind(1)
        radius = min(radius, math.hypot(int(widths.max()), int(heights.max())))
        return Disk(self._apart(math.floor(radius) + 1), radius)

    def pooled(self) -> Pooled:
        """The occupied blocks of 2x2 cells."""
        twos = self._apart(1, multiple=2) // 2
        number, count = compact(twos)
        cells = twos.new_empty(count, 2).index_copy_(0, number, self.cells // 2)
        slide = number.new_empty(count).index_copy_(0, number, self._segments)
        lengths = slide.bincount(minlength=len(self.offsets) - 1)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        return Pooled(cells, offsets, number, number.bincount(minlength=count))

    @functools.cached_property
    def _segments(self) -> Tensor:
        return segment_ids(self.offsets, len(self.cells))

    def _extents(self) -> Tensor:
        """(B, 2) int64, cells along x and y of each slide's grid."""
        bounds = itertools.pairwise(self.offsets.tolist())
        return torch.stack([self.cells[a:b].amax(0) + 1 for a, b in bounds])

    def _apart(self, gap: int, multiple: int = 1) -> Tensor:
        """The cells (T, 2), slides side by side along x with `gap` empty columns between."""
        widths = self._extents()[:, 0] + gap
        widths = (widths + multiple - 1) // multiple * multiple
        starts = (widths.cumsum(0) - widths)[self._segments]  # (T,)
        return torch.stack([self.cells[:, 0] + starts, self.cells[:, 1]], 1)


@dataclass(frozen=True, eq=False)
class Pooled(Places):
    """Blocks of 2x2 cells, column by column, slide by slide.

    Args:
        number: (N,) int64, the block of each patch. counts: (T,) int64, patches in each.
    """

    number: Tensor
    counts: Tensor

    def mean(self, x: Tensor) -> Tensor:
        """(N, E) of patches -> (T, E), the mean of those in each block."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        total = wide.new_zeros(len(self.counts), x.shape[1]).index_add(0, self.number, wide)
        return (total / self.counts[:, None]).to(x.dtype)

    def spread(self, shares: Tensor) -> Tensor:
        """(T,) of blocks -> (N,): each patch has its block's, scaled to sum to 1 over a slide.

        Undivided: a block that the border of the tissue leaves one patch would make it four times
        as bright, so that a map would show where the grid begins.
        """
        total = segment_sum(shares * self.counts, self.offsets)  # (B,)
        return (shares / total[self._segments])[self.number]


def place(bags: Sequence[Bag]) -> Places:
    """The patches of slides, each on its own grid. Raises BagError as `cells_of`."""
    return packed([cells_of(bag) for bag in bags])


def packed(cells: Sequence[Tensor]) -> Places:
    """Slides end to end: (n, 2) int64 cells from (0, 0) of each."""
    ends = [0, *itertools.accumulate(map(len, cells))]
    joined = cells[0] if len(cells) == 1 else torch.cat(list(cells))
    return Places(joined, torch.tensor(ends, device=joined.device))


def cells_of(bag: Bag) -> Tensor:
    """(N, 2) int64 (x, y), round((coords - smallest) / spacing); several patches may share a cell.

    Raises:
        BagError: an empty bag; no coords or spacing; patches that lie on no one grid (wherever it
            begins) within a quarter of a cell, or so far apart that they are on no slide.
    """
    check_any(bag)
    if bag.coords is None or bag.spacing is None:
        return bag.grid()  # which says what is missing
    from_corner = bag.coords - bag.coords.amin(0)  # (N, 2) px
    check_extent(bag, bag.spacing)
    cells = torch.round(from_corner.double() / bag.spacing).long()
    _check_on_grid(bag, from_corner - cells.double() * bag.spacing)
    return cells


def check_any(bag: Bag) -> None:
    """Raise BagError for a bag without patches."""
    if len(bag) == 0:
        raise BagError(f"{bag.slide_id} has no patches: nothing to attend to")


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
        bad = (~torch.isfinite(bag.features).all(1)).nonzero()[:, 0]
        if len(bad):
            raise BagError(
                f"{bag.slide_id}: {len(bad)} of {len(bag)} patches have NaN or infinite features, "
                f"first patch {int(bad[0])}. Extract it again"
            )
    largest = max(float(bag.features.detach().abs().max()) for bag in bags)
    raise BagError(
        f"{bags[0].slide_id}: {whose}'s result is not finite although its features are, up to "
        f"{largest:.3g}: they overflow, or the weights are not finite"
    )


def check_extent(bag: Bag, unit: float) -> None:
    """Raise BagError unless all patches are within `FARTHEST` units (px) of each other."""
    assert bag.coords is not None
    width, height = ((bag.coords.amax(0) - bag.coords.amin(0)) / unit).tolist()
    if max(width, height) < FARTHEST:
        return
    far = int((bag.coords - bag.coords.median(0).values).abs().amax(1).argmax())
    raise BagError(
        f"{bag.slide_id}: patches span {width:.3g} cells of {unit:g} px in x, {height:.3g} in y; "
        f"at most {FARTHEST} along an axis fit on a grid; patch {far} lies at "
        f"{tuple(bag.coords[far].tolist())}. wsizoo inspect FILE shows whether the file is whole"
    )


def _check_on_grid(bag: Bag, off: Tensor) -> None:
    """off: (N, 2) px, of each patch from its cell."""
    assert bag.coords is not None and bag.spacing is not None
    allowed = SLACK * bag.spacing + ROUNDING
    if float((off.amax(0) - off.amin(0)).max()) <= allowed:
        return
    apart = (off - off.median(0).values).abs().amax(1)
    worst = (apart > allowed / 2).nonzero()[:, 0]
    first = ", ".join(
        f"patch {i} at {tuple(bag.coords[i].tolist())}" for i in worst[:SHOWN].tolist()
    )
    raise BagError(
        f"{bag.slide_id}: {len(worst)} of {len(bag)} patches lie off the grid of spacing "
        f"{bag.spacing} by more than {SLACK:g} of a cell, first {first}; spacing is the step "
        "between neighbours, also where they overlap. wsizoo convert FILE FOLDER puts them onto one"
    )
