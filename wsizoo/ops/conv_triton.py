"""The causal convolution on a GPU through Triton, in one pass over the rows; backward takes two."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsizoo.ops.causal_conv1d import causal_conv1d, check_conv, places
from wsizoo.ops.scan_triton import current

ROWS, CHANNELS = 64, 32  # of a program


def _kernels() -> Any:
    from wsizoo.ops import _triton_conv_kernels

    return _triton_conv_kernels


def causal_conv1d_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "silu",
    offsets: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    """As `causal_conv1d`; copies what is not contiguous."""
    check_conv(x, weight, bias, activation, offsets)
    run: Any = _Conv.apply if x.numel() else causal_conv1d.reference
    found: Tensor = run(x, weight, bias, activation, offsets, reverse)
    return found


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        x, weight, bias, activation, offsets, reverse = args
        ctx.save_for_backward(x, weight, bias, offsets)
        ctx.ways = {"SILU": activation == "silu", "REVERSE": reverse}
        given, grid, sizes = _given(x, weight, bias, offsets, reverse)
        y = torch.empty_like(given[0])
        with current(x):
            _kernels().forward[grid](*given, y, *x.shape, **sizes, **ctx.ways)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, offsets = ctx.saved_tensors
        reverse = ctx.ways["REVERSE"]
        given, grid, sizes = _given(x, weight, bias, offsets, reverse)
        own, taps, _, place = given
        (e, w), new = weight.shape, taps.new_empty
        of_x, of_sum = torch.empty_like(own), new(x.shape)
        of_weight, of_bias = new(grid[0], w, e), new(grid[0], e)
        found = of_sum, of_weight, of_bias
        with current(x):
            _kernels().of_parameters[grid](
                *given, slope.contiguous(), *found, *x.shape, **sizes, **ctx.ways
            )
            _kernels().of_rows[grid](of_sum, taps, place, of_x, *x.shape, **sizes, REVERSE=reverse)
        slope_of_bias = None if bias is None else of_bias.sum(0).to(bias.dtype)
        return of_x, of_weight.sum(0).t().to(weight.dtype), slope_of_bias, None, None, None


def _given(
    x: Tensor, weight: Tensor, bias: Tensor | None, offsets: Tensor | None, reverse: bool
) -> tuple[tuple[Tensor, ...], tuple[int, int], dict[str, int]]:
    """What kernels read, their grid, their sizes."""
    t, e = x.shape
    none = weight.new_zeros(e)
    place = places(x, offsets, reverse)[:, 0].contiguous()
    taps, shift = (part.float().contiguous() for part in (weight, none if bias is None else bias))
    wide = min(CHANNELS, 1 << (e - 1).bit_length())
    sizes = {"TAPS": weight.shape[1], "BR": ROWS, "BE": wide}
    return (x.contiguous(), taps, shift, place), (-(-t // ROWS), -(-e // wide)), sizes
