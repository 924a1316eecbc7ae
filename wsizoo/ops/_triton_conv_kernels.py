"""The causal convolution in Triton: programs are (BR, BE), rows times channels.

This file imports triton, which is optional and has no types.
"""

# mypy: ignore-errors
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

constexpr = tl.constexpr


@triton.jit
def _square(T, E, BR: constexpr, BE: constexpr):
    """A program's rows and channels, and which of them there are."""
    rows = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    es = tl.program_id(1) * BE + tl.arange(0, BE)
    return rows, es, (rows < T)[:, None] & (es < E)[None, :]


@triton.jit
def _earlier(x, rows, es, E, back, there, REVERSE: constexpr):
    """Values as many steps before these rows in the walk, 0 where the sequence has none."""
    source = rows + back if REVERSE else rows - back
    return tl.load(x + source[:, None] * E + es[None, :], mask=there, other=0.0).to(tl.float32)


@triton.jit
def _sum(x, weight, bias, place, rows, es, T, E, mask, TAPS: constexpr, REVERSE: constexpr):
    """Before the activation."""
    before = tl.load(place + rows, mask=rows < T, other=0)
    total = tl.zeros(mask.shape, tl.float32)
    total += tl.load(bias + es, mask=es < E, other=0.0)[None, :]
    for back in range(TAPS):
        tap = tl.load(weight + es * TAPS + (TAPS - 1 - back), mask=es < E, other=0.0)
        there = mask & (before >= back)[:, None]
        total += _earlier(x, rows, es, E, back, there, REVERSE) * tap[None, :]
    return total, before


@triton.jit
def forward(
    x, weight, bias, place, y, T, E, TAPS: constexpr, BR: constexpr, BE: constexpr,
    REVERSE: constexpr, SILU: constexpr,
):  # fmt: skip
    """y (T, E)."""
    rows, es, mask = _square(T, E, BR, BE)
    total, _ = _sum(x, weight, bias, place, rows, es, T, E, mask, TAPS, REVERSE)
    if SILU:
        total = total / (1.0 + tl.exp(-total))
    tl.store(y + rows[:, None] * E + es[None, :], total.to(y.dtype.element_ty), mask=mask)


@triton.jit
def of_parameters(
    x, weight, bias, place, slope, of_sum, of_weight, of_bias, T, E, TAPS: constexpr, BR: constexpr,
    BE: constexpr, REVERSE: constexpr, SILU: constexpr,
):  # fmt: skip
    """of_sum (T, E), before the activation; of_weight (., TAPS, E), of_bias (., E), by program."""
    rows, es, mask = _square(T, E, BR, BE)
    at, block = rows[:, None] * E + es[None, :], tl.program_id(0).to(tl.int64)
    total, before = _sum(x, weight, bias, place, rows, es, T, E, mask, TAPS, REVERSE)
    own = tl.load(slope + at, mask=mask, other=0.0).to(tl.float32)
    if SILU:
        sig = 1.0 / (1.0 + tl.exp(-total))
        own *= sig * (1.0 + total * (1.0 - sig))
    tl.store(of_sum + at, own, mask=mask)
    tl.store(of_bias + block * E + es, tl.sum(own, 0), mask=es < E)
    for back in range(TAPS):
        there = mask & (before >= back)[:, None]
        of_tap = tl.sum(own * _earlier(x, rows, es, E, back, there, REVERSE), 0)
        tl.store(of_weight + (block * TAPS + TAPS - 1 - back) * E + es, of_tap, mask=es < E)


@triton.jit
def of_rows(
    of_sum, weight, place, of_x, T, E, TAPS: constexpr, BR: constexpr, BE: constexpr,
    REVERSE: constexpr,
):  # fmt: skip
    """of_x (T, E): each row's share in the steps after it that see it."""
    rows, es, mask = _square(T, E, BR, BE)
    own = tl.zeros((BR, BE), tl.float32)
    for back in range(TAPS):
        tap = tl.load(weight + es * TAPS + (TAPS - 1 - back), mask=es < E, other=0.0)
        later = rows - back if REVERSE else rows + back
        there = (later >= 0) & (later < T)
        seen = tl.load(place + later, mask=there, other=-1) >= back
        there = mask & seen[:, None]
        own += _earlier(of_sum, rows, es, E, -back, there, REVERSE) * tap[None, :]
    at = rows[:, None] * E + es[None, :]
    tl.store(of_x + at, own.to(of_x.dtype.element_ty), mask=mask)
