"""Linear maps of many rows on a CPU, by the faster of torch's libraries, in memory used before."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wsizoo.ops import products
from wsizoo.ops._dispatch import under_torch_func, wished_backend
from wsizoo.ops.memory import scratch
from wsizoo.ops.products import chunks, outer, product


class RowLinear(nn.Linear):
    """`nn.Linear`, (..., D) -> (..., E), by `row_linear`: same parameters, same numbers."""

    def forward(self, input: Tensor) -> Tensor:
        return row_linear(input, self.weight, self.bias)


def row_linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`; where oneDNN is the faster library, in about half of its time.

    Args:
        rows: (..., D). weight: (E, D). bias: (E,).

    Returns:
        (..., E). It cannot be differentiated twice where it is fast.
    """
    if not fits(rows, weight):
        return F.linear(rows, weight, bias)
    return map_rows(rows.reshape(-1, rows.shape[-1]), weight, bias).view(*rows.shape[:-1], -1)


def map_rows(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same by chunks, whoever looks: (N, D) of any float dtype -> (N, E) in the weight's."""
    apply: Any = _MapRows.apply
    mapped: Tensor = apply(rows, weight, bias)
    return mapped


def fits(rows: Tensor, weight: Tensor) -> bool:
    """Whether the fast way is taken: float32 on a CPU, unless somebody looks at the single ops."""
    exact = rows.dtype == weight.dtype == torch.float32
    large = rows.numel() * len(weight) >= products.SMALL
    return exact and large and rows.device.type == weight.device.type == "cpu" and not observed()


def observed() -> bool:
    """Whether somebody looks at the single ops: the reference, a compiler, autocast, torch.func."""
    traced = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    return traced or under_torch_func() or wished_backend() == "reference"


class _MapRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out = scratch(len(rows), len(weight), like=weight)
        for _, some in chunks(0, len(rows)):
            product(rows[some].to(weight.dtype), weight.t(), bias, out=out[some])
        ctx.save_for_backward(rows, weight)
        return out.data  # no view of the bytes that it was made of, so that it may change in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        for_rows, for_weight, for_bias = ctx.needs_input_grad
        of_rows = scratch(*rows.shape, like=weight) if for_rows else None
        of_weight = torch.zeros_like(weight) if for_weight else None
        for _, some in chunks(0, len(rows)):
            if of_rows is not None:
                product(slope[some], weight, out=of_rows[some])
            if of_weight is not None:
                outer(slope[some], rows[some].to(weight.dtype), of_weight)
        given = None if of_rows is None else of_rows.to(rows.dtype)
        return given, of_weight, slope.sum(0) if for_bias else None
