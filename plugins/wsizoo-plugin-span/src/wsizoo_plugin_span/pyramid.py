"""The grids of a pyramid: which cells each stage has, built once a slide for all of its layers.

A slide's grid is enlarged so that every patch survives all downsamplings; slides of a batch lie on
one grid along axis 0, so far apart that no window and no kernel sees two of them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from wsizoo.bag import segment_ids
from wsizoo.ops import Grids, Rulebook, Windows, rotary_turns, rulebook, scratch, segment_sum

Size = tuple[int, int]


@dataclass(frozen=True)
class Step:
    """Kernel, stride and dilation of a downsampling, the same along both axes."""

    kernel: int
    stride: int
    dilation: int


@dataclass(frozen=True)
class Plan:
    """How the grids of a network's stages follow from a slide's.

    Args:
        step: what the grid is enlarged for.
        downs: from each stage to the next; None: the cells stay.
        half_window: half a window's side, in cells.
        published: pads are tokens: one at cell (0, 0) before the patches, one at the last cell
            after them; windows do not shift on grids that they tile; the first and the last token
            of each stage neither attend to themselves nor meet global tokens.
    """

    step: Step
    downs: tuple[Step | None, ...]
    half_window: int
    published: bool = False

    @property
    def packs(self) -> bool:
        """Whether several slides fit on one grid: downsampling tiles it."""
        tiled = self.step.kernel == self.step.stride and self.step.dilation == 1
        return tiled and all(down in (None, self.step) for down in self.downs)

    def pads(self, length: int) -> Size:
        """Empty rows before and after an axis of so many cells.

        Source: SPAN's code (2026): room for the receptive field of all downsamplings. Dilated
        kernels that stride leave out cells near an edge of the grid, so that by default both ends
        get a whole field (less one cell), which is as far as such an edge can be felt.
        """
        n, stride = len(self.downs), self.step.stride
        reach = (self.step.kernel - 1) * self.step.dilation
        total = stride**n
        field = 1 + (n * reach if stride == 1 else reach * (total - 1) // (stride - 1))
        if self.step.dilation > 1 and stride > 1 and not self.published:
            return field - 1, field - 1
        steps = max(0, -((field - length) // total))
        extra = 2 * field + total * steps - length
        return extra // 2, extra - extra // 2


@dataclass(frozen=True, eq=False)
class Level:
    """The cells of one stage, of one slide or several.

    Args:
        cells: (T, 2) int64, all distinct. grids: where each slide's lie.
        bounds: B + 1 numbers; slide b owns rows bounds[b]:bounds[b+1].
        seen: size of each slide's grid, as its windows are told.
        half_window: half a window's side. published: see `Plan`.
    """

    cells: Tensor
    grids: Grids
    bounds: tuple[int, ...]
    seen: tuple[Size, ...]
    half_window: int
    published: bool
    _angles: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = field(default_factory=dict)
    _windows: dict[str, Windows] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def n_slides(self) -> int:
        return len(self.seen)

    @property
    def offsets(self) -> Tensor:
        """(B+1,) int64, the bounds."""
        return self.grids.offsets

    @functools.cached_property
    def segments(self) -> Tensor:
        """(T,) int64, the slide that each token belongs to."""
        return segment_ids(self.offsets, len(self))

    @functools.cached_property
    def own_cells(self) -> Tensor:
        """(T, 2) int64, cells in each slide's own frame."""
        if self.n_slides == 1:
            return self.cells
        return self.cells - self.grids.origins[self.segments]

    @functools.cached_property
    def outsiders(self) -> Tensor:
        """(F,) int64 tokens without a self pair, that do not meet global tokens."""
        rows: list[int] = []
        if self.published:
            for start, end in itertools.pairwise(self.bounds):
                rows += sorted({start, end - 1})
        return torch.tensor(rows, dtype=torch.int64, device=self.cells.device)

    def inner(self, slide: int) -> slice:
        """Tokens of a slide that meet global tokens."""
        start, end = self.bounds[slide], self.bounds[slide + 1]
        edge = int(self.published)
        return slice(start + edge, max(end - edge, start + edge))

    def neighbourhood(self, pattern: str) -> Windows:
        """Windows of pattern "union", "regular" or "shifted"; built on first use.

        Where both axes of a slide's grid are shorter than a window, all its tokens share one.
        """
        if pattern not in self._windows:
            self._windows[pattern] = Windows(
                self.cells, self.half_window, pattern, self._shifts, self.outsiders
            )
        return self._windows[pattern]

    @functools.cached_property
    def _shifts(self) -> Tensor | None:
        """(T,) bool, tokens whose shifted window is another than the regular one; None: all."""
        side, flags = 2 * self.half_window, []
        for size in self.seen:
            small = max(size) < side
            tiled = self.published and all(length % side == 0 for length in size)
            flags.append(not small and not tiled)
        if all(flags):
            return None
        return torch.tensor(flags, device=self.cells.device)[self.segments]

    def angles(self, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines (T, 1, width / 2) of the rotary angles of this level."""
        if (width, dtype) not in self._angles:
            self._angles[width, dtype] = rotary_turns(self.own_cells, width, dtype)
        return self._angles[width, dtype]


@dataclass(frozen=True, eq=False)
class Pyramid:
    """The levels of a network's stages for one slide or several.

    Args:
        levels: of each stage. rulebooks: from each stage to the next; None: the same cells.
        leads: pads before each slide's patches in stage 0, one follows; None: there are no pads.
        offsets: (B+1,) int64, whose patches are whose.
    """

    levels: tuple[Level, ...]
    rulebooks: tuple[Rulebook | None, ...]
    leads: tuple[int, ...] | None
    offsets: Tensor

    def tokens(self, features: Tensor) -> Tensor:
        """(N, C) of the patches -> (T, C) of stage 0; pads are zeros."""
        if self.leads is None:
            return features
        apply: Any = _Padded.apply
        padded: Tensor = apply(features, self._runs(), len(self.levels[0]))
        return padded

    def patches(self, tokens: Tensor) -> Tensor:
        """(T, ...) of stage 0 -> (N, ...) of the patches."""
        if self.leads is None:
            return tokens
        return _joined([tokens[start:end] for start, end in self._runs()])

    def _runs(self) -> list[tuple[int, int]]:
        """First and last (excluded) row of each slide's patches among the tokens of stage 0."""
        bounds = itertools.pairwise(self.levels[0].bounds)
        leads = self.leads or ()
        return [(a + lead, b - 1) for (a, b), lead in zip(bounds, leads, strict=True)]

    def to_patches(self, weights: dict[int, Tensor]) -> Tensor:
        """(N,) weights of patches, from those of cells.

        A patch has the weight of the cell over it, where kernels overlap the mean of those over it.
        Undivided: a cell that the border of the tissue leaves few patches would make them bright.
        A stage's are then scaled to its total, slide by slide, so that coarse stages, whose cells
        hold more patches, count no more than they did.

        Args:
            weights: by stage, (T,) of its cells. Without gradients.
        """
        first = next(iter(weights.values()))
        given = first.new_zeros(int(self.offsets[-1]))
        for stage, values in weights.items():
            wanted, over = segment_sum(values, self.levels[stage].offsets), values  # (B,), (T,)
            for book in reversed(self.rulebooks[:stage]):
                if book is not None:
                    over = _down(over, book) / _down(torch.ones_like(over), book).clamp(min=1)
            found = self.patches(over)  # (N,)
            scale = wanted / segment_sum(found, self.offsets).clamp(min=1e-30)  # (B,)
            given += found * scale.repeat_interleave(self.offsets.diff())
        return given


def _down(values: Tensor, book: Rulebook) -> Tensor:
    """(T_out,) -> (T,), summed over the kernels that hold a cell."""
    out = values.new_zeros(len(book.cells))
    for inputs, outputs in book.pairs:
        out.index_add_(0, inputs, values[outputs])
    return out


def build(cells: Sequence[Tensor], plan: Plan) -> Pyramid:
    """The pyramid of slides, each (n, 2) int64 distinct cells from (0, 0), one patch or more.

    Cost: linear in the number of patches, unless cells lie very far apart.
    """
    lengths = [len(own) for own in cells]
    level, leads = _ground(cells, plan)
    levels, books = [level], []
    for down in plan.downs:
        book = None
        if down is not None:
            book = rulebook(level.cells, level.grids, down.kernel, down.stride, down.dilation)
            level = _above(level, book)
        levels.append(level)
        books.append(book)
    offsets = level.offsets.new_tensor([0, *itertools.accumulate(lengths)])
    return Pyramid(tuple(levels), tuple(books), leads, offsets)


def _ground(cells: Sequence[Tensor], plan: Plan) -> tuple[Level, tuple[int, ...] | None]:
    """Stage 0, and the pads before each slide's patches; None: there are none."""
    device = cells[0].device
    sizes, parts, origins, counts, leads = [], [], [], [], []
    start = 0
    period = 2 * plan.half_window * plan.step.stride ** len(plan.downs)
    for own in cells:
        lengths = (own.amax(0) + 1).tolist()
        (above, below), (left, right) = map(plan.pads, lengths)
        size = (lengths[0] + above + below, lengths[1] + left + right)
        moved = own + own.new_tensor([above + start, left])
        if plan.published:
            pads = own.new_tensor([[start, 0], [start + size[0] - 1, size[1] - 1]])
            lead = int(above > 0 or left > 0)
            moved = torch.cat([pads[:lead], moved, pads[1:]])
            leads.append(lead)
        parts.append(moved)
        sizes.append(size)
        origins.append((start, 0))
        counts.append(len(moved))
        start = (-(-(start + size[0]) // period) + 1) * period
    bounds = (0, *itertools.accumulate(counts))
    grids = Grids(*(torch.tensor(each, device=device) for each in (sizes, origins, bounds)))
    level = Level(_joined(parts), grids, bounds, tuple(sizes), plan.half_window, plan.published)
    return level, tuple(leads) if plan.published else None


class _Padded(torch.autograd.Function):
    """Slides with zeros around them, in memory that steps share; see `Pyramid.tokens`."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, runs: list[tuple[int, int]], length: int) -> Tensor:
        ctx.runs = runs
        out = scratch(length, features.shape[1], like=features)
        end, parts = 0, features.split([b - a for a, b in runs])
        for (start, stop), part in zip(runs, parts, strict=True):
            out[end:start], out[start:stop], end = 0, part, stop
        out[end:] = 0
        return out

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        return _joined([slope[a:b] for a, b in ctx.runs]), None, None


def _joined(parts: list[Tensor]) -> Tensor:
    """End to end; one alone as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _above(level: Level, book: Rulebook) -> Level:
    """The level of a rulebook's output cells."""
    grids, cells = book.out_shape, book.out_cells
    assert isinstance(grids, Grids)
    bounds = tuple(grids.offsets.tolist())
    seen = [(height, width) for height, width in grids.shape.tolist()]
    if level.published:  # that code looks where the last cells are
        own = cells - grids.origins[segment_ids(grids.offsets, len(cells))]
        ends = [own[a:b].amax(0) + 1 for a, b in itertools.pairwise(bounds)]
        seen = [(height, width) for height, width in torch.stack(ends).tolist()]
    return Level(cells, grids, bounds, tuple(seen), level.half_window, level.published)
