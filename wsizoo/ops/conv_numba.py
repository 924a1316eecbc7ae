"""The causal convolution on a CPU through numba: backward keeps x alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsizoo.ops._numba import flat, memory, spans, team_of
from wsizoo.ops.causal_conv1d import causal_conv1d, check_conv, places


def causal_conv1d_numba(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "silu",
    offsets: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    """As `causal_conv1d`; through its reference where there are more than 16 taps."""
    check_conv(x, weight, bias, activation, offsets)
    if weight.shape[1] > _kernels().MOST_TAPS:
        plain: Tensor = causal_conv1d.reference(x, weight, bias, activation, offsets, reverse)
        return plain
    apply: Any = _Conv.apply
    found: Tensor = apply(x, weight, bias, activation == "silu", offsets, reverse)
    return found


def _kernels() -> Any:
    from wsizoo.ops import _conv_kernels

    return _conv_kernels


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        silu: bool,
        offsets: Tensor | None,
        reverse: bool,
    ) -> Tensor:
        given, y = _given(x, weight, bias, silu, offsets, reverse), memory(*x.shape)

        def run(i: int, span: Any, own: list[Any]) -> None:
            _kernels().forward(given, span, *own)

        with team_of(x.numel() * weight.shape[1], x.shape[1]) as team:
            for chunks, rows in spans(len(x), reverse):
                team.run(run, chunks, rows, [y])
        ctx.save_for_backward(x, weight, bias, offsets)
        ctx.flags = silu, reverse
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, offsets = ctx.saved_tensors
        silu, reverse = ctx.flags
        given = _given(x, weight, bias, silu, offsets, reverse)
        of_x, each = memory(*x.shape), torch.zeros(len(weight), weight.shape[1] + 1).double()
        read, added = slope.float().contiguous().numpy(), each.numpy()

        def run(i: int, span: Any, own: list[Any]) -> None:
            _kernels().backward(given, span, read, *own, added)

        with team_of(2 * x.numel() * weight.shape[1], x.shape[1]) as team:
            for chunks, rows in spans(len(x), reverse):
                team.run(run, chunks, rows, [of_x])
        of_bias = None if bias is None else each[:, -1].to(bias.dtype)
        return of_x.to(x.dtype), each[:, :-1].to(weight.dtype), of_bias, None, None, None


def _given(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    offsets: Tensor | None,
    reverse: bool,
) -> Any:
    """`Given` of the kernels; copies what is not float32 with unit stride."""
    x = x.detach().float()
    x = x if x.stride(1) == 1 else x.contiguous()
    first = places(x, offsets, reverse)[:, 0].clamp(max=weight.shape[1] - 1).int().numpy()
    bias = x.new_zeros(len(weight)) if bias is None else bias.detach().float().contiguous()
    taps = weight.detach().float().contiguous().numpy()
    return _kernels().Given(flat(x), x.stride(0), taps, bias.numpy(), first, silu, bool(reverse))
