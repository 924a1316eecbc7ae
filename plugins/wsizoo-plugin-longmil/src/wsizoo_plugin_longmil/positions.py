"""How a layer's scores hear where tokens lie: rotary angles, and ALiBi as a function of offsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsizoo.ops import ROTARY_BASE, Turns

FAR = 10  # units; the published table holds whole distances up to it
BEYOND = 100  # units that it holds instead of larger ones
LENGTH = 300  # cells along an axis of the published tables


@dataclass(frozen=True, eq=False)
class Alibi:
    """Minus slope times Euclidean distance, of offsets (..., 2) -> (H, ...).

    Args:
        slopes: (H,).
    """

    slopes: Tensor

    def __call__(self, offset: Tensor) -> Tensor:
        wide = torch.promote_types(self.slopes.dtype, torch.float32)
        along, across = (part.to(wide) for part in offset.unbind(-1))
        distance = along.square().addcmul_(across, across).sqrt_()  # (...)
        return -self.slopes.to(wide).view(-1, *[1] * distance.ndim) * distance


@dataclass(frozen=True, eq=False)
class Clamped:
    """Minus slope times whole units of distance, and `BEYOND` units for all that is beyond `FAR`.

    Args:
        by_square: (H, S + 2) what is added at each squared distance 0 .. S, and beyond.

    Source: https://github.com/invoker-LL/Long-MIL, alibi.py: an int8 table times slopes in float16.
    """

    by_square: Tensor

    @classmethod
    def of(cls, slopes: Tensor, unit: int = 1) -> Clamped:
        """slopes: (H,). unit: of distances, in cells."""
        squares = torch.arange((FAR * unit) ** 2 + 1, device=slopes.device)
        whole = squares.double().sqrt().div(unit).floor()
        units = torch.cat([whole, whole.new_tensor([BEYOND])]).half()
        return cls((-units * slopes.half()[:, None]).float())

    def masked(self, lowest: Tensor) -> Clamped:
        """Minus infinity wherever this number would be added."""
        return Clamped(self.by_square.masked_fill(self.by_square == lowest, -torch.inf))

    def squares(self, offset: Tensor) -> Tensor:
        """(..., 2) -> (...), columns of `by_square`."""
        beyond = self.by_square.shape[1] - 1
        return offset.clamp(-beyond, beyond).square().sum(-1).clamp_(max=beyond)

    def __call__(self, offset: Tensor) -> Tensor:
        return self.by_square[:, self.squares(offset)]


def published_turns(
    cells: Tensor,
    dim: int,
    heads: int,
    dtype: torch.dtype,
    lengths: Sequence[int] = (LENGTH, LENGTH),
) -> Turns:
    """The angles of LongMIL's code, which confuses the length of an axis with the width.

    Pair j of an axis of L cells turns, at cell i, by (t // (L / 2)) 10000^(-2 (t mod L / 2) / L),
    t = i dim / 4 + j. That is another turn for each cell, but no embedding of offsets. Pairs lie
    across the whole width, before it is parted among heads: those of axis 0 with even j, those of
    axis 1 with even j, then the odd ones of both.

    Args:
        cells: (T, 2) int64 from (0, 0). dim: E, a multiple of 4. lengths: L of both axes, even.

    Source: https://github.com/invoker-LL/Long-MIL, rotary.py.
    """
    pairs = torch.arange(dim // 4, device=cells.device)
    parts = []
    for axis, length in zip(cells.unbind(1), lengths, strict=True):
        t = axis[:, None] * len(pairs) + pairs  # (T, E / 4)
        row, column = t // (length // 2), t % (length // 2)
        parts.append(row.double() * ROTARY_BASE ** (-2 * column.double() / length))
    order = [part[:, first::2] for first in (0, 1) for part in parts]
    angles = torch.cat(order, 1).view(len(cells), heads, -1)  # (T, H, D / 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)
