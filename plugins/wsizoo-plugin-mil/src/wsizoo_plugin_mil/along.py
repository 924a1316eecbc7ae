"""A depthwise convolution along a sequence, one kernel a head, as products."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsizoo.ops import observed

BLOCK = 64  # rows of the sequence that one product gives


def along(v: Tensor, kernels: Tensor) -> Tensor:
    """The convolution of (B, H, T, d) along T with one kernel (H, K), K odd, a head; zero padding.

    As products of a band matrix with blocks of rows, which a depthwise convolution is not fast at.
    Nothing but v and kernels is kept for the backward pass; it is differentiable once.
    """
    if observed():
        return _along(v, kernels)
    apply: Any = _Along.apply
    moved: Tensor = apply(v, kernels)
    return moved


class _Along(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, kernels: Tensor) -> Tensor:
        ctx.save_for_backward(v, kernels)
        return _along(v, kernels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:
        v, kernels = ctx.saved_tensors
        k = kernels.shape[1]
        (own, next_), (given, _) = _sides(v, k), _sides(slope, k, before=0)
        of_band = torch.cat([given @ own.mT, given @ next_.mT], 3).sum(0)  # (H, rows, rows + K - 1)
        rows = of_band.shape[1]
        of_period = F.pad(of_band.flatten(1), (0, rows)).unflatten(1, (rows, -1))
        return _along(slope, kernels.flip(1)), of_period[..., :k].sum(1)


def _along(v: Tensor, kernels: Tensor) -> Tensor:
    own, next_ = _sides(v, kernels.shape[1])
    (heads, k), rows = kernels.shape, own.shape[2]
    # rows of a period one longer than the matrix is wide: each begins one column further on
    period = F.pad(kernels, (0, rows)).repeat(1, rows)[:, : rows * (rows + k - 1)]
    band = period.view(heads, rows, rows + k - 1)
    moved = band[..., :rows] @ own + band[..., rows:] @ next_  # (B, H, rows, blocks d)
    return moved.unflatten(3, (-1, v.shape[3])).transpose(2, 3).flatten(2, 3)[:, :, : v.shape[2]]


def _sides(v: Tensor, k: int, before: int | None = None) -> tuple[Tensor, Tensor]:
    """(B, H, rows, blocks d) the rows of each block, blocks side by side; and (B, H, K - 1, ...)
    the first rows of the block that follows each.

    Args:
        before: rows of zeros before the first; None: half a kernel.
    """
    (*_, length, d), rows = v.shape, max(BLOCK, k - 1)
    before = k // 2 if before is None else before
    blocks = -(-length // rows)
    padded = F.pad(v, (0, 0, before, (blocks + 1) * rows - length - before))
    side = padded.unflatten(2, (blocks + 1, rows)).transpose(2, 3).flatten(3)
    return side[..., : blocks * d], side[:, :, : k - 1, d:]
