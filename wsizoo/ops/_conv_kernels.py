"""The causal convolution as machine code, channel by channel in the chunks of the scan.

A chunk's column is copied together with the steps before it, and for backward with those behind it,
whose results its own steps touch. Only where sequences begin is a step looked at by itself.
"""

# mypy: ignore-errors

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wsizoo.ops._scan_kernels import ONE, STEPS, ZERO, _chunk, _sigmoid, _write, compiled
from wsizoo.ops._vectors import LANES, load, splat, store, total

MOST_TAPS = LANES
ROOM = STEPS + 3 * LANES  # of a column, with the steps before and behind a chunk


class Given(NamedTuple):
    """What both kernels read.

    Args:
        x: (T, E) as flat memory, `stride` floats from row to row. weight: (E, W). bias: (E,).
        first: (T,) int32, steps of its sequence before each in the walk, at most W - 1.
        silu, reverse: as of `causal_conv1d`.
    """

    x: np.ndarray
    stride: int
    weight: np.ndarray
    bias: np.ndarray
    first: np.ndarray
    silu: bool
    reverse: bool


@compiled
def forward(given, span, y):
    """The channels of a span; y is flat memory of its rows and channels."""
    column, found = np.zeros(ROOM, np.float32), np.zeros(ROOM, np.float32)
    for number in range(span.chunks[0], span.chunks[1]):
        chunk = _chunk(given, number)
        inside = _inside(given, chunk, chunk.m)
        for channel in range(span.begin, span.end):
            _read(column, given, channel, chunk, chunk.m)
            _weigh(found, column, given, channel, chunk, chunk.m, inside)
            if given.silu:
                for k in range(0, chunk.m, LANES):
                    value = load(found, k)
                    store(found, k, value * _sigmoid(value))
            _write(y, found, span, channel, chunk)


@compiled
def backward(given, span, slope, of_x, each):
    """Gradients of a span's channels.

    Args:
        slope: (T, E) of y. of_x: flat memory of the span's rows and channels.
        each: (E, W + 1) float64 of weight and bias, added to.
    """
    behind = given.weight.shape[1] - 1
    column, found = np.zeros(ROOM, np.float32), np.zeros(ROOM, np.float32)
    for number in range(span.chunks[0], span.chunks[1]):
        chunk = _chunk(given, number)
        count = min(chunk.m + behind, given.first.size - number * STEPS)
        inside = _inside(given, chunk, count)
        for channel in range(span.begin, span.end):
            _read(column, given, channel, chunk, count)
            _weigh(found, column, given, channel, chunk, count, inside)
            _slope_before(found, slope, given, channel, chunk, count)
            _sum(each[channel], column, found, given, chunk, inside)
            _back(column, found, given, channel, chunk, count, inside)
            _write(of_x, column, span, channel, chunk)


@compiled
def _inside(given, chunk, count):
    """Whether each of these steps has all of its taps within its sequence."""
    for k in range(count):
        if given.first[chunk.start + k * chunk.step] < given.weight.shape[1] - 1:
            return False
    return True


@compiled
def _read(column, given, channel, chunk, count):
    """x of W - 1 steps before the chunk, then of `count` steps from its start on."""
    before = given.weight.shape[1] - 1
    for k in range(before + count):
        row = chunk.start + (k - before) * chunk.step
        there = 0 <= row < given.first.size
        column[k] = given.x[row * given.stride + channel] if there else ZERO


@compiled
def _weigh(found, column, given, channel, chunk, count, inside):
    """Bias and weighted sum at each step, before the activation."""
    taps, bias = given.weight[channel], given.bias[channel]
    if inside:
        for k in range(0, count, LANES):
            value = splat(bias)
            for i in range(taps.size):
                value = value + splat(taps[i]) * load(column, k + i)
            store(found, k, value)
        return
    for k in range(count):
        found[k] = bias
        least = taps.size - 1 - given.first[chunk.start + k * chunk.step]
        for i in range(max(least, 0), taps.size):
            found[k] += taps[i] * column[k + i]


@compiled
def _slope_before(found, slope, given, channel, chunk, count):
    """In place of what the activation got the slope of it; 0 behind these steps."""
    for k in range(0, count if given.silu else 0, LANES):
        value = load(found, k)
        sig = _sigmoid(value)
        store(found, k, sig * (splat(ONE) + value * (splat(ONE) - sig)))
    for k in range(count):
        own = slope[chunk.start + k * chunk.step, channel]
        found[k] = found[k] * own if given.silu else own
    found[count:] = ZERO


@compiled
def _sum(each, column, found, given, chunk, inside):
    """Add this chunk's slopes of a channel's weight and bias."""
    size = given.weight.shape[1]
    whole = chunk.m - chunk.m % LANES if inside else 0
    for i in range(size):
        value = splat(ZERO)
        for k in range(0, whole, LANES):
            value = value + load(found, k) * load(column, k + i)
        each[i] += total(value)
        for k in range(whole, chunk.m):
            if given.first[chunk.start + k * chunk.step] >= size - 1 - i:
                each[i] += found[k] * column[k + i]
    for k in range(chunk.m):
        each[size] += found[k]


@compiled
def _back(column, found, given, channel, chunk, count, inside):
    """Fill the column with the slope of x: each step's from those behind it that saw it."""
    taps = given.weight[channel]
    last = taps.size - 1
    if inside:
        for k in range(0, chunk.m, LANES):
            value = splat(ZERO)
            for back in range(taps.size):
                value = value + splat(taps[last - back]) * load(found, k + back)
            store(column, k, value)
        return
    for k in range(chunk.m):
        column[k] = ZERO
        for back in range(min(taps.size, count - k)):
            if given.first[chunk.start + (k + back) * chunk.step] >= back:
                column[k] += taps[last - back] * found[k + back]
