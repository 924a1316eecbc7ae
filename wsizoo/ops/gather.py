"""Sparse convolutions as one product a kernel position, of which backward keeps x alone.

Rows are gathered, multiplied and added up position by position, forward and backward, so that no
gathered copy outlives its position. Products run in the dtype of x (under autocast: in autocast's),
sums in float32 at least.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsizoo.ops.memory import scratch
from wsizoo.ops.products import chunks, outer, product
from wsizoo.ops.rulebook import Pairs, Rulebook
from wsizoo.ops.sparse_conv import conv_taps, make_up, shuffle_taps, swapped, transpose_taps


def sparse_conv2d_gather(
    x: Tensor,
    weight: Tensor,
    rulebook: Rulebook,
    bias: Tensor | None = None,
    edge: str = "none",
    edge_eps: float = 1e-6,
    bias_after_edge: bool = False,
) -> Tensor:
    """As `sparse_conv2d`."""
    taps = conv_taps(x, weight, rulebook, bias)
    total = _spread(x, taps, rulebook.pairs, len(rulebook.out_cells))
    total = make_up(total, weight, rulebook, bias, edge, edge_eps, bias_after_edge)
    return total.to(x.dtype)


def sparse_conv_transpose2d_gather(
    x: Tensor, weight: Tensor, rulebook: Rulebook, bias: Tensor | None = None, groups: int = 1
) -> Tensor:
    """As `sparse_conv_transpose2d`."""
    taps = transpose_taps(x, weight, rulebook, bias, groups)
    total = _spread(x, taps, swapped(rulebook.pairs), len(rulebook.cells))
    return (total if bias is None else total + bias).to(x.dtype)


def pixel_shuffle_linear_gather(
    x: Tensor, weight: Tensor, rulebook: Rulebook, bias: Tensor | None = None
) -> Tensor:
    """As `pixel_shuffle_linear`: a transposed convolution with a bias of its own a position."""
    taps = shuffle_taps(x, weight, rulebook, bias)
    total = _spread(x, taps, swapped(rulebook.pairs), len(rulebook.cells))
    if bias is not None:
        of_places = bias.reshape(-1, len(taps)).T.to(total.dtype)  # (s^2, C)
        for own, (inputs, _) in zip(of_places, rulebook.pairs, strict=True):
            total = total.index_add(0, inputs, own.expand(len(inputs), -1))
    return total.to(x.dtype)


def _spread(x: Tensor, taps: Tensor, pairs: Pairs, n: int) -> Tensor:
    """As `_spread` of the reference, (N, C_in) -> (n, C_out) in float32 at least."""
    kind, dtype = x.device.type, x.dtype
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    apply: Any = _Spread.apply
    total: Tensor = apply(x.to(dtype), taps.to(dtype), pairs, n)
    return total


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, pairs: Pairs, n: int) -> Tensor:
        ctx.save_for_backward(x, taps)
        ctx.pairs = pairs
        return _add_up(x, _for_products(taps), pairs, n)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, taps = ctx.saved_tensors
        slope, back = slope.to(x.dtype), _for_products(taps).mT
        of_x, of_taps = _zeros(x, *x.shape), torch.empty_like(taps)
        needs_x, needs_taps = ctx.needs_input_grad[:2]
        for p, (sources, targets) in enumerate(ctx.pairs):
            given = _take(slope, targets)
            if needs_taps:
                _outer(_take(x, sources), given, out=of_taps[p])
            if needs_x:
                of_x.index_add_(0, sources, _times(given, back[p]).to(of_x.dtype))
        return of_x.to(x.dtype) if needs_x else None, of_taps if needs_taps else None, None, None


def _for_products(taps: Tensor) -> Tensor:
    """The same with unit stride along a side of each matrix, copied only where it has none."""
    if 1 in taps.stride()[2:]:
        return taps
    return taps.contiguous() if taps.stride(3) < taps.stride(2) else taps.mT.contiguous().mT


def _add_up(x: Tensor, taps: Tensor, pairs: Pairs, n: int) -> Tensor:
    """Sum over positions of x[sources] times the tap, at targets."""
    total = _zeros(x, n, taps.shape[1] * taps.shape[3])
    for tap, (sources, targets) in zip(taps, pairs, strict=True):
        total.index_add_(0, targets, _times(_take(x, sources), tap).to(total.dtype))
    return total


def _zeros(like: Tensor, *shape: int) -> Tensor:
    """Float32 at least."""
    wide = torch.promote_types(like.dtype, torch.float32)
    return scratch(*shape, like=like.new_empty(0, dtype=wide)).zero_()


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """A copy of these rows."""
    taken = scratch(len(rows), x.shape[1], like=x)
    return torch.index_select(x, 0, rows, out=taken)


def _times(rows: Tensor, tap: Tensor) -> Tensor:
    """(m, groups i) times (groups, i, o) -> (m, groups o); rows may be overwritten."""
    groups, i, o = tap.shape
    if groups == 1:
        out = scratch(len(rows), o, like=rows)
        for _, some in chunks(0, len(rows)):
            product(rows[some], tap[0], out=out[some])
        return out
    if i == o == 1:
        return rows.mul_(tap.view(groups))
    grouped = rows.view(len(rows), groups, i)
    if i == 1:
        return (grouped * tap[:, 0]).flatten(1)
    if o == 1:
        return grouped.mul_(tap[:, :, 0]).sum(-1)
    return torch.einsum("mgi,gio->mgo", grouped, tap).flatten(1)


def _outer(rows: Tensor, given: Tensor, out: Tensor) -> None:
    """Products (m, groups i) by (m, groups o), summed: (groups, i, o); rows may be overwritten."""
    groups, i, o = out.shape
    if groups == 1:
        out.zero_()
        for _, some in chunks(0, len(rows)):
            outer(rows[some], given[some], out[0])
    elif i == o == 1:
        out[:, 0, 0] = rows.mul_(given).sum(0)
    else:
        left, right = rows.view(len(rows), groups, i), given.view(len(rows), groups, o)
        if 1 in (i, o):
            out.copy_((left * right).sum(0).view(groups, i, o))
        else:
            out.copy_(torch.einsum("mgi,mgo->gio", left, right))
