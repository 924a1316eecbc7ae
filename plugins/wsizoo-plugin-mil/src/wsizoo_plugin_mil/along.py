"""A depthwise convolution along a sequence, one kernel a head, as products."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsizoo.ops import observed, side_by_side

BLOCK = 64  # rows of the sequence that one product gives


def along(v: Tensor, kernels: Tensor) -> Tensor:
    """The convolution of (B, H, T, d) along T with one kernel (H, K), K odd, a head; zero padding.

    As products of a band matrix with blocks of rows, head by head, which is several times as fast;
    nothing but v and the kernels is kept for the backward pass. It is differentiable once.
    """
    if observed():
        padding = kernels.shape[1] // 2, 0
        return F.conv2d(v, kernels[:, None, :, None], padding=padding, groups=len(kernels))
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
        return _along(slope, kernels.flip(1)), _of_kernels(v, slope, kernels)


def _along(v: Tensor, kernels: Tensor) -> Tensor:
    k, (*_, length, d) = kernels.shape[1], v.shape
    made, rows = side_by_side(v), max(BLOCK, k - 1)
    # rows of a period one longer than the matrix is wide: each begins one column further on
    period = F.pad(kernels, (0, rows)).repeat(1, rows)[:, : rows * (rows + k - 1)]
    band = period.unflatten(1, (rows, -1))  # (H, rows, rows + K - 1)
    for head in range(len(kernels)):
        for one, out in zip(v[:, head], made[:, head], strict=True):
            moved = band[head] @ _around(one, k)  # (rows, blocks d)
            out.copy_(moved.view(rows, -1, d).transpose(0, 1).flatten(0, 1)[:length])
    return made


def _of_kernels(v: Tensor, slope: Tensor, kernels: Tensor) -> Tensor:
    """(H, K), the gradient."""
    found, k = torch.zeros_like(kernels), kernels.shape[1]
    for head in range(len(kernels)):
        for one, given in zip(v[:, head], slope[:, head], strict=True):
            around = _around(one, k)
            rows = len(around) - k + 1
            own = _blocks(given, rows, 0, 0)  # (rows, blocks d)
            of_band = own @ around.t()
            found[head] += F.pad(of_band.flatten(), (0, rows)).view(rows, -1)[:, :k].sum(0)
    return found


def _around(one: Tensor, k: int) -> Tensor:
    """(T, d) -> (rows + K - 1, blocks d): each block of rows with all that a kernel reaches."""
    rows, d = max(BLOCK, k - 1), one.shape[1]
    side = _blocks(one, rows, k // 2, rows)
    return torch.cat([side[:, :-d], side[: k - 1, d:]])


def _blocks(one: Tensor, rows: int, before: int, after: int) -> Tensor:
    """(T, d) -> (rows, blocks d): blocks of rows side by side, and zeros."""
    (length, d), size = one.shape, -(-len(one) // rows) * rows
    full = F.pad(one, (0, 0, before, size + after - length - before))
    return full.view(-1, rows, d).transpose(0, 1).flatten(1)
