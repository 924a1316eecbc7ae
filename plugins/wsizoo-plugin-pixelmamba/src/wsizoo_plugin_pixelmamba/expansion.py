"""Token Expansion: a token and its neighbour become one with a larger receptive field.

Source: Pixel-Mamba, arXiv 2412.16711, section 3.3. What it leaves open is named C5 and C6, see
docs/pixelmamba.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wsizoo_plugin_pixelmamba.serialise import grid_order, step_of_cell, with_cls, without_cls


def grid_after(grid: tuple[int, int], kind: str) -> tuple[int, int]:
    """The token grid (h, w) of a region after an expansion `kind`, such as "v-cat"; "": none."""
    h, w = grid
    return {"v": (h // 2, w), "h": (h, w // 2), "": grid}[kind[:1]]


def expand(
    tokens: Tensor,
    grid: tuple[int, int],
    kind: str,
    shift_padding: str = "replicate",
    cls_mode: str = "repeat",
    cls_weight: Tensor | None = None,
    inner: str = "snake",
) -> Tensor:
    """Average each cell with the one above (left), then join cells in pairs.

    Args:
        tokens: (..., h * w + 1, C), the cells of a region in scan order with the CLS in the middle.
        grid: (h, w); the direction's edge is even.
        kind: "v-cat", "h-cat", "v-avg" or "h-avg": vertical pairs (rows 2r and 2r + 1) or
            horizontal ones, side by side in the channels or averaged.
        shift_padding: what is above the first row (left of the first column): the row itself,
            "replicate", or "zeros". (C5)
        cls_mode: the CLS where channels double: [cls, cls] "repeat", [cls, 0] "zero", or "linear",
            `cls_weight` (2 C, C) @ cls. Averaging leaves it as it is. (C6)
        inner: order of the cells of a region. (C1)

    Returns:
        (..., h' * w' + 1, C'), in the scan order of the new grid, its CLS in the middle again.
    """
    (h, w), direction = grid, kind[0]
    cells, cls = without_cls(tokens)
    step = step_of_cell(h, w, inner).to(tokens.device)  # kept for the way back: one for all regions
    placed = cells[..., step, :].unflatten(-2, (h, w))  # (..., h, w, C)
    dim = -3 if direction == "v" else -2
    merged = _shift_merged(placed, dim, shift_padding)
    pairs = merged.unflatten(dim, (-1, 2))
    first, second = pairs.unbind(dim)
    if kind.endswith("avg"):
        joined = (first + second) / 2
    else:
        joined = torch.cat([first, second], -1)
        cls = doubled(cls, cls_mode, cls_weight)
    after = grid_order(*grid_after(grid, kind), inner).to(tokens.device)
    return with_cls(joined.flatten(-3, -2)[..., after, :], cls)


def _shift_merged(x: Tensor, dim: int, padding: str) -> Tensor:
    """The mean of each cell and the one before it along a dimension."""
    first = x.narrow(dim, 0, 1)
    before = torch.zeros_like(first) if padding == "zeros" else first
    return (x + torch.cat([before, x.narrow(dim, 0, x.shape[dim] - 1)], dim)) / 2


def doubled(cls: Tensor, mode: str, weight: Tensor | None) -> Tensor:
    """CLS tokens (..., C) -> (..., 2 C), see `expand`."""
    if mode == "linear":
        assert weight is not None
        return cls.clone() @ weight.T  # a view of the tokens would keep all of them for backward
    return torch.cat([cls, cls if mode == "repeat" else torch.zeros_like(cls)], -1)
