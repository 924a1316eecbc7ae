"""Linear maps of many rows on a CPU, by the faster of torch's libraries, in memory used before."""

from __future__ import annotations

from collections import deque
from typing import Any, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wsizoo.ops import products
from wsizoo.ops._dispatch import under_torch_func, wished_backend
from wsizoo.ops.draws import Draws
from wsizoo.ops.memory import scratch, zeros
from wsizoo.ops.products import chunks, outer, product

Kind = TypeVar("Kind", bound=nn.Module)


class RowLinear(nn.Linear):
    """`nn.Linear`, (..., D) -> (..., E), by `row_linear`: same parameters, same numbers."""

    def forward(self, input: Tensor) -> Tensor:
        return row_linear(input, self.weight, self.bias)


class RowSequential(nn.Sequential):
    """`nn.Sequential` in which a RowLinear, a ReLU and a dropout in a row are one `row_relu`."""

    def forward(self, input: Tensor) -> Tensor:
        parts = deque(self)
        while parts:
            part = parts.popleft()
            if not (plain(part, RowLinear) and parts and plain(parts[0], nn.ReLU)):
                input = part(input)
                continue
            parts.popleft()
            drop = parts.popleft() if parts and plain(parts[0], nn.Dropout) else None
            input = row_relu(input, part.weight, part.bias, share_of(drop))
        return input


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


def row_relu(
    rows: Tensor, weight: Tensor, bias: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """ReLU of `row_linear`, and dropout; the backward pass needs the rows and the result only.

    Args:
        rows: (..., D). weight: (E, D). bias: (E,).
        dropout: share p of the values that are made 0; the others are divided by 1 - p. Where it
            is fast its draws are others than those of `F.dropout`.

    Returns:
        (..., E), not to be changed in place where gradients are wanted.
    """
    if not fits(rows, weight) or dropout == 1:
        return F.dropout(F.relu(F.linear(rows, weight, bias)), dropout)
    flat = rows.reshape(-1, rows.shape[-1])
    return map_rows(flat, weight, bias, True, dropout).view(*rows.shape[:-1], -1)


def map_rows(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    relu: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """The same by chunks, whoever looks: (N, D) of any float dtype -> (N, E) in the weight's.

    Args:
        dropout: beside `relu` only.
    """
    apply: Any = _MapRows.apply
    mapped: Tensor = apply(rows, weight, bias, relu, dropout)
    return mapped


def drop_(rows: Tensor, dropout: float) -> None:
    """Dropout of contiguous rows in place, not differentiable, by draws that cost little."""
    draws = Draws(dropout)
    rows.mul_(draws.keep(rows)).mul_(1 / draws.kept)


def fits(rows: Tensor, weight: Tensor) -> bool:
    """Whether the fast way is taken: float32 on a CPU, of widths that agree (or else torch itself
    says what is wrong), unless somebody looks at the single ops."""
    exact = rows.dtype == weight.dtype == torch.float32 and rows.shape[-1:] == weight.shape[1:]
    large = rows.numel() * len(weight) >= products.SMALL
    return exact and large and rows.device.type == weight.device.type == "cpu" and not observed()


def observed() -> bool:
    """Whether somebody looks at the single ops: the reference, a compiler, autocast, torch.func."""
    traced = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    return traced or under_torch_func() or wished_backend() == "reference"


def plain(part: nn.Module, *kinds: type[Kind]) -> TypeGuard[Kind]:
    """Whether a layer may be read instead of called: it is of one of these classes themselves, not
    a subclass (LoRA, quantisation, parametrisation), no hook hangs on it (pruning, GradCAM), and
    its `forward` is that of its class (accelerate replaces it)."""
    hooks = part._forward_pre_hooks or part._backward_pre_hooks
    hooks = hooks or part._forward_hooks or part._backward_hooks
    return type(part) in kinds and not hooks and "forward" not in vars(part)


def share_of(drop: nn.Module | None) -> float:
    """The share that a dropout drops now."""
    return drop.p if isinstance(drop, nn.Dropout) and drop.training else 0.0


class _MapRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, dropout: float
    ) -> Tensor:
        out = scratch(len(rows), len(weight), like=weight)
        for _, some in chunks(0, len(rows)):
            product(rows[some].to(weight.dtype), weight.t(), bias, relu=relu, out=out[some])
            if dropout:
                drop_(out[some], dropout)
        ctx.save_for_backward(rows, weight, out if relu else None)
        ctx.scale = 1 / Draws(dropout).kept
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, out = ctx.saved_tensors
        for_rows, for_weight, for_bias = ctx.needs_input_grad[:3]
        of_rows = scratch(*rows.shape, like=weight) if for_rows else None
        of_weight = zeros(weight) if for_weight else None
        of_bias = weight.new_zeros(len(weight)) if for_bias else None
        for _, some in chunks(0, len(rows)):
            part = slope[some]
            if out is not None:  # what was dropped is 0, as what was negative
                part = torch.ops.aten.threshold_backward(part, out[some], 0).mul_(ctx.scale)
            if of_rows is not None:
                product(part, weight, out=of_rows[some])
            if of_weight is not None:
                outer(part, rows[some].to(weight.dtype), of_weight)
            if of_bias is not None:
                of_bias += part.sum(0)
        given = None if of_rows is None else of_rows.to(rows.dtype)
        return given, of_weight, of_bias, None, None
