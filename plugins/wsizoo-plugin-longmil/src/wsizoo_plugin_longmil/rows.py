"""Linear maps of many rows on CPUs, by the faster of torch's libraries, into memory used before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wsizoo.ops import chunks, outer, product, scratch, under_torch_func, wished_backend


def linear(rows: Tensor, part: nn.Linear) -> Tensor:
    """part(rows): (N, D) of any float dtype -> (N, E) in that of the weights.

    Cost: a training step of longmil-uni at 10,000 patches takes a third less than by `nn.Linear`
    where oneDNN is the faster library; see `wsizoo.ops.products`.
    """
    if not fits(rows, part):
        plain: Tensor = part(rows.to(part.weight.dtype))
        return plain
    apply: Any = _Linear.apply
    mapped: Tensor = apply(rows, part.weight, part.bias)
    return mapped


def fits(rows: Tensor, *parts: nn.Module) -> bool:
    """Whether weights may be read, not called: on a CPU, unless somebody looks at the parts.

    They must be what their names say, and nothing may hang on them.
    """
    exact = all(part.weight.dtype in (torch.float32, torch.float64) for part in parts)
    here = rows.device.type == "cpu" and rows.ndim == 2
    return exact and here and all(map(_is_plain, parts)) and not _observed()


def _is_plain(part: nn.Module) -> bool:
    """Neither a subclass (LoRA, quantisation, parametrisation) nor hooked (pruning, GradCAM)."""
    hooks = part._forward_hooks, part._forward_pre_hooks, part._backward_hooks
    hooked = any(hooks) or bool(part._backward_pre_hooks)
    return type(part) is nn.Linear and not hooked


def _observed() -> bool:
    """Whether somebody looks at the single ops: the reference, a compiler, autocast, torch.func."""
    traced = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    return traced or under_torch_func() or wished_backend() == "reference"


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out = scratch(len(rows), len(weight), like=weight)
        for _, some in chunks(0, len(rows)):
            product(rows[some].to(weight.dtype), weight.t(), bias, out=out[some])
        ctx.save_for_backward(rows, weight)
        return out

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
