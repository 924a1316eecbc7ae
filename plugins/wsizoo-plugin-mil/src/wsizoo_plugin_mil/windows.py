"""Region windows: tokens in their order on a square, cut into R x R squares (RRT)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def to_windows(tokens: Tensor, regions: int) -> Tensor:
    """(L, E) -> (R^2, P^2, E): row by row on a square of edge ceil(sqrt L), raised to R P.

    Rows of zeros fill the square at its end. Windows go row by row, and so do tokens inside one.

    Source: RRT-MIL, https://arxiv.org/abs/2402.17228, section 3.3.
    """
    length, dim = tokens.shape
    edge = math.isqrt(length - 1) + 1
    part = -(-edge // regions)  # P
    filled = F.pad(tokens, (0, 0, 0, (regions * part) ** 2 - length))
    square = filled.reshape(regions, part, regions, part, dim)
    return square.transpose(1, 2).reshape(regions**2, part**2, dim)


def from_windows(windows: Tensor, length: int) -> Tensor:
    """The inverse of `to_windows`: (R^2, P^2, E) -> (length, E)."""
    regions, part = math.isqrt(windows.shape[0]), math.isqrt(windows.shape[1])
    square = windows.reshape(regions, regions, part, part, -1).transpose(1, 2)
    return square.reshape(-1, windows.shape[-1])[:length]
