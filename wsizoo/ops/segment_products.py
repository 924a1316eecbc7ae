"""`segment_pool` on a CPU: one product a slide, and gradients written where they belong."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsizoo.ops._dispatch import why_not_under_torch_func
from wsizoo.ops.memory import scratch

EXACT = (torch.float32, torch.float64)


def why_not(
    weights: Tensor | None = None, values: Tensor | None = None, offsets: Tensor | None = None
) -> str | None:
    """None, or the reason why these arguments are for the reference."""
    if weights is None or values is None:
        return None
    if values.device.type != "cpu" or weights.dtype != values.dtype or values.dtype not in EXACT:
        return "products are for float32 or float64 on a CPU, weights and values alike"
    return why_not_under_torch_func()


def segment_pool_products(weights: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
    """(N, K) and (N, E) -> (B, K, E). It cannot be differentiated twice."""
    apply: Any = _Pool.apply
    sums: Tensor = apply(weights, values, offsets)
    return sums


def _slides(offsets: Tensor) -> list[slice]:
    return [slice(a, b) for a, b in itertools.pairwise(offsets.tolist())]


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(weights, values, offsets)
        sums = values.new_empty(len(offsets) - 1, weights.shape[1], values.shape[1])
        for i, own in enumerate(_slides(offsets)):
            torch.mm(weights[own].t(), values[own], out=sums[i])
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        weights, values, offsets = ctx.saved_tensors
        of_weights = torch.empty_like(weights) if ctx.needs_input_grad[0] else None
        of_values = scratch(*values.shape, like=values) if ctx.needs_input_grad[1] else None
        for i, own in enumerate(_slides(offsets)):
            if of_weights is not None:
                torch.mm(values[own], slope[i].t(), out=of_weights[own])
            if of_values is not None:
                torch.mm(weights[own], slope[i], out=of_values[own])
        return of_weights, of_values, None
