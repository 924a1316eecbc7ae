"""From an image, or a bag of regions, to sequences of pixels with a CLS token in each.

Source: Pixel-Mamba, arXiv 2412.16711, section 3.2. What it leaves open is named C1 to C4, see
docs/pixelmamba.md.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wsizoo import Bag


@functools.lru_cache(maxsize=64)
def grid_order(height: int, width: int, kind: str) -> Tensor:
    """Row-major index (height * width,) int64 of the cell that is visited at each step; read only.

    Args:
        kind: "snake": rows top to bottom, even ones left to right, odd ones right to left;
            "raster": all left to right. (C1 within a region, C2 among regions)
    """
    with torch.inference_mode(False):
        order = torch.arange(height * width).reshape(height, width)
        if kind == "snake":
            order[1::2] = order[1::2].flip(1)
        return order.flatten()


@functools.lru_cache(maxsize=64)
def step_of_cell(height: int, width: int, kind: str) -> Tensor:
    """The inverse of `grid_order`: at which step each cell is visited; read only."""
    with torch.inference_mode(False):
        return torch.argsort(grid_order(height, width, kind))


def cls_place(height: int, width: int) -> int:
    """Where the CLS token stands in the sequence of a region: half of the cells precede it (C3)."""
    return height * width // 2


def with_cls(cells: Tensor, cls: Tensor) -> Tensor:
    """Cells (..., T - 1, C) in scan order and CLS (..., 1, C), which spreads -> (..., T, C)."""
    at = cells.shape[-2] // 2
    cls = cls.expand(*cells.shape[:-2], 1, cells.shape[-1])
    return torch.cat([cells[..., :at, :], cls, cells[..., at:, :]], -2)


def cls_of(tokens: Tensor) -> Tensor:
    """The CLS token (..., C) of each region of tokens (..., T, C)."""
    return tokens[..., (tokens.shape[-2] - 1) // 2, :]


def without_cls(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (..., T, C) -> the cells (..., T - 1, C) in scan order, and the CLS (..., 1, C)."""
    at = (tokens.shape[-2] - 1) // 2
    cells = torch.cat([tokens[..., :at, :], tokens[..., at + 1 :, :]], -2)
    return cells, tokens[..., at : at + 1, :]


@dataclass(frozen=True, eq=False)
class Serialised:
    """An image as sequences of pixels.

    Args:
        tokens: (B, n, h * w + 1, C), regions in the order they are visited.
        region_order: (n,) row-major index of the region at each step.
        inner_order: (h * w,) row-major index of the pixel at each step within a region.
    """

    tokens: Tensor
    region_order: Tensor
    inner_order: Tensor


def serialise(
    image: Tensor,
    cls: Tensor,
    region: tuple[int, int],
    inner: str = "snake",
    outer: str = "snake",
    pad_value: float = 0.0,
) -> Serialised:
    """Cut an image into regions and each into a sequence of pixels, with the CLS in its middle.

    Args:
        image: (B, C, H, W), as the network is to see it (normalised).
        cls: (C,), or any shape of C values: the same token for every region.
        region: height h and width w of a region, px.
        inner: order of the pixels of a region, always from its top left: "snake", "raster". (C1)
        outer: order of the regions, likewise. (C2)
        pad_value: what the image is padded with, at the bottom and the right, to whole regions.
            (C4)
    """
    h, w = region
    rows, columns = math.ceil(image.shape[2] / h), math.ceil(image.shape[3] / w)
    pad = (0, columns * w - image.shape[3], 0, rows * h - image.shape[2])
    image = F.pad(image, pad, value=pad_value)
    regions = image.unflatten(3, (columns, w)).unflatten(
        2, (rows, h)
    )  # (B, C, rows, h, columns, w)
    regions = regions.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (B, n, C, h, w)
    order = grid_order(rows, columns, outer).to(image.device)
    tokens = region_tokens(regions[:, order], cls, inner)
    return Serialised(tokens, order, grid_order(h, w, inner).to(image.device))


def region_tokens(regions: Tensor, cls: Tensor, inner: str = "snake") -> Tensor:
    """Regions (..., C, h, w) -> tokens (..., h * w + 1, C); see `serialise`."""
    order = grid_order(*regions.shape[-2:], inner).to(regions.device)
    pixels = regions.flatten(-2)[..., order].transpose(-2, -1)  # (..., h * w, C)
    return with_cls(pixels, cls.reshape(-1))


def bag_order(bag: Bag, outer: str = "snake") -> Tensor:
    """Rows (N,) int64 of a bag in the order in which its regions are visited (C2).

    Rows of the grid count from the uppermost one that holds a region, so that the order does not
    depend on where the slide lies; with no region missing it is the order of `serialise`. The
    slides of a patient follow one another.

    Raises:
        BagError: no coords or spacing, or two regions in one cell.
    """
    cells = bag.require_unique_cells()
    ends = [0, len(bag)] if bag.parts is None else bag.parts.tolist()
    slides = [cells[a:b] for a, b in itertools.pairwise(ends) if b > a]
    places = torch.cat([slide - slide.amin(0) for slide in slides])  # (N, 2)
    column, row = places.unbind(1)
    width = column.max() + 1
    if outer == "snake":
        column = torch.where(row % 2 == 0, column, width - 1 - column)
    number = torch.repeat_interleave(
        torch.arange(len(slides), device=cells.device),
        torch.tensor([len(slide) for slide in slides], device=cells.device),
    )
    return torch.argsort((number * (row.max() + 1) + row) * width + column)
