"""The selective scan as machine code: channel by channel in chunks of steps, recomputing backward.

The states of a channel are vectors of 16. A chunk's B and C stay in a cache while all channels pass
over them; a channel's columns of a chunk are copied together before its walk.

Backward knows the state at the start of each chunk only. It takes the chunks from the last to the
first, computes a chunk's states again, and walks down them with their adjoint in a register.

This file and `_vectors` import numba, which is optional and has no types.
"""

# mypy: ignore-errors

from __future__ import annotations

import contextlib
from typing import NamedTuple

import numpy as np
from numba import njit

from wsizoo.ops._vectors import LANES, exp, load, magnitude, positive, splat, store, total

STEPS = 256  # of a chunk
U, RAW, DT, X, Y, Z, SLOPE, OF_Y, OF_X, OF_DT = range(10)  # columns of a channel in a chunk
N_COLUMNS = 10
FACTORS, DECAYED = 0, 1  # of a channel's states: exp(dt A), and that times the state before
ODDS = np.array([1 / n for n in (15, 13, 11, 9, 7, 5, 3, 1)], np.float32)  # artanh's series
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)


def compiled(function):
    """Machine code without the interpreter's lock, kept for the next process where there is room.

    It lies beside this file (in __pycache__), else in NUMBA_CACHE_DIR or the user's cache.
    """
    kernel = njit(nogil=True)(function)
    with contextlib.suppress(RuntimeError):  # no such folder can be written to
        kernel.enable_caching()
    return kernel


class Given(NamedTuple):
    """What both kernels read, float32; N is a multiple of 16.

    Args:
        u, delta, z: (T, E) and B, C: (T, N) as flat memory from their first to their last element.
        strides: floats from a row to the next of u, delta, z, B and C.
        A: (E, N). D, bias: (E,).
        first: (T,) bool, a sequence begins here in the walk.
        ends: (T,) int64, the sequence whose walk ends here, else -1.
        gated: z counts. softplus, reverse: as of `selective_scan`.
    """

    u: np.ndarray
    delta: np.ndarray
    z: np.ndarray
    B: np.ndarray
    C: np.ndarray
    strides: tuple[int, int, int, int, int]
    A: np.ndarray
    D: np.ndarray
    bias: np.ndarray
    first: np.ndarray
    ends: np.ndarray
    gated: bool
    softplus: bool
    reverse: bool


class Span(NamedTuple):
    """What one call computes: some chunks of some channels.

    Args:
        begin, end: the channels. chunks: number of the first, and behind the last.
        low: the first of the chunks' rows; those of results count from it.
        stride: floats from a row of results to the next; their channels count from `begin`.
    """

    begin: int
    end: int
    chunks: tuple[int, int]
    low: int
    stride: int


class Slopes(NamedTuple):
    """Gradients that `backward` fills.

    Args:
        u, delta, z: flat memory of the span's rows and channels.
        B, C: (rows of the span, N), added to. A: (E, N), added to.
        each: (2, E) float64 of D and bias, added to.
        adjoint: (E, N) of the state, carried from later chunks to earlier ones.
    """

    u: np.ndarray
    delta: np.ndarray
    z: np.ndarray
    B: np.ndarray
    C: np.ndarray
    A: np.ndarray
    each: np.ndarray
    adjoint: np.ndarray


class Chunk(NamedTuple):
    """m steps from row `start` on, `step` 1 or -1 rows apart."""

    start: int
    step: int
    m: int


@compiled
def forward(given, span, y, state, starts, last):
    """The scan of some chunks.

    Args:
        y: flat memory of the span's rows and channels. state: (E, N), carried between calls.
        starts: (chunks, E, N), filled unless it is empty. last: (S, E, N).
    """
    n, size = given.A.shape[1], given.A.size
    columns = np.zeros((N_COLUMNS, STEPS), np.float32)
    kept = np.empty((2, STEPS * LANES), np.float32)
    for number in range(span.chunks[0], span.chunks[1]):
        chunk = _chunk(given, number)
        for channel in range(span.begin, span.end):
            _read(columns, given, channel, chunk)
            for at in range(channel * n, (channel + 1) * n, LANES):
                if starts.size:
                    store(starts, number * size + at, load(state, at))
                _ahead(columns, given, state, at, chunk, kept, last)
            d = splat(given.D[channel])
            for k in range(0, chunk.m, LANES):
                found = load(columns[Y], k) + d * load(columns[U], k)
                if given.gated:
                    gate = load(columns[Z], k)
                    found = found * gate * _sigmoid(gate)
                store(columns[Y], k, found)
            _write(y, columns[Y], span, channel, chunk)


@compiled
def backward(given, span, slope, starts, slopes):
    """Gradients of some chunks, the last first; slope (T, E) is that of y."""
    n, size = given.A.shape[1], given.A.size
    columns = np.zeros((N_COLUMNS, STEPS), np.float32)
    kept = np.empty((2, STEPS * LANES), np.float32)
    state, nowhere = np.empty(size, np.float32), np.empty(0, np.float32)
    for number in range(span.chunks[1] - 1, span.chunks[0] - 1, -1):
        chunk = _chunk(given, number)
        for channel in range(span.begin, span.end):
            _read(columns, given, channel, chunk)
            _read_slope(columns, slope, channel, chunk, given.gated)
            for at in range(channel * n, (channel + 1) * n, LANES):
                store(state, at, load(starts, number * size + at))
                _ahead(columns, given, state, at, chunk, kept, nowhere)
                _behind(columns, given, at, chunk, kept, span.low, slopes)
            _finish(columns, given, channel, chunk.m, slopes.each)
            _write(slopes.u, columns[OF_X], span, channel, chunk)
            _write(slopes.delta, columns[OF_DT], span, channel, chunk)
            if given.gated:
                _write(slopes.z, columns[Z], span, channel, chunk)


@compiled
def _chunk(given, number):
    t, at = given.first.size, number * STEPS
    m = min(STEPS, t - at)
    return Chunk(t - 1 - at, -1, m) if given.reverse else Chunk(at, 1, m)


@compiled
def _read(columns, given, channel, chunk):
    """A channel's u, delta with its bias, dt, dt u and z in the order of the walk; y = 0."""
    bias = given.bias[channel]
    for k in range(chunk.m):
        row = chunk.start + k * chunk.step
        columns[U, k] = given.u[row * given.strides[0] + channel]
        columns[RAW, k] = given.delta[row * given.strides[1] + channel] + bias
        if given.gated:
            columns[Z, k] = given.z[row * given.strides[2] + channel]
    for k in range(0, chunk.m, LANES):
        raw = load(columns[RAW], k)
        dt = _softplus(raw) if given.softplus else raw
        store(columns[DT], k, dt)
        store(columns[X], k, dt * load(columns[U], k))
        store(columns[Y], k, splat(ZERO))


@compiled
def _read_slope(columns, slope, channel, chunk, gated):
    """The slope of y, before the gate too; 0 in what `_behind` adds to."""
    for k in range(chunk.m):
        columns[SLOPE, k] = slope[chunk.start + k * chunk.step, channel]
    for k in range(0, chunk.m, LANES):
        found = load(columns[SLOPE], k)
        if gated:
            gate = load(columns[Z], k)
            found = found * gate * _sigmoid(gate)
        store(columns[OF_Y], k, found)
        store(columns[OF_X], k, splat(ZERO))
        store(columns[OF_DT], k, splat(ZERO))


@compiled
def _ahead(columns, given, state, at, chunk, kept, last):
    """Walk 16 states of a channel; they are those from flat index `at` of A on."""
    dt, x, y = columns[DT], columns[X], columns[Y]
    n, size = given.A.shape[1], given.A.size
    a, s = load(given.A, at), load(state, at)
    for k in range(chunk.m):
        row = chunk.start + k * chunk.step
        if given.first[row]:
            s = splat(ZERO)
        factor = exp(splat(dt[k]) * a)
        s = factor * s
        store(kept[FACTORS], k * LANES, factor)
        store(kept[DECAYED], k * LANES, s)
        s = s + splat(x[k]) * load(given.B, row * given.strides[3] + at % n)
        y[k] += total(s * load(given.C, row * given.strides[4] + at % n))
        if last.size and given.ends[row] >= 0:
            store(last, given.ends[row] * size + at, s)
    store(state, at, s)


@compiled
def _behind(columns, given, at, chunk, kept, low, slopes):
    """Walk back over the same 16 states: what y's slope gives to each of the scan's parts."""
    dt, x, of_y, of_x, of_dt = (
        columns[DT], columns[X], columns[OF_Y], columns[OF_X], columns[OF_DT],
    )  # fmt: skip
    n = given.A.shape[1]
    a, g, of_a = load(given.A, at), load(slopes.adjoint, at), splat(ZERO)
    for k in range(chunk.m - 1, -1, -1):
        row = chunk.start + k * chunk.step
        own = (row - low) * n + at % n
        if given.ends[row] >= 0:
            g = splat(ZERO)
        b = load(given.B, row * given.strides[3] + at % n)
        c = load(given.C, row * given.strides[4] + at % n)
        decayed, slope = load(kept[DECAYED], k * LANES), splat(of_y[k])
        g = g + c * slope
        of_exponent = g * decayed
        of_a = of_a + of_exponent * splat(dt[k])
        of_dt[k] += total(of_exponent * a)
        of_x[k] += total(g * b)
        store(slopes.B, own, load(slopes.B, own) + g * splat(x[k]))
        store(slopes.C, own, load(slopes.C, own) + (decayed + splat(x[k]) * b) * slope)
        g = g * load(kept[FACTORS], k * LANES)
    store(slopes.adjoint, at, g)
    store(slopes.A, at, load(slopes.A, at) + of_a)


@compiled
def _finish(columns, given, channel, m, each):
    """From slopes of dt u and of dt those of u, delta and z (in place), of D and of the bias."""
    d = splat(given.D[channel])
    for k in range(0, m, LANES):
        u, of_x, of_y = load(columns[U], k), load(columns[OF_X], k), load(columns[OF_Y], k)
        of_delta = load(columns[OF_DT], k) + u * of_x
        if given.softplus:
            of_delta = of_delta * _sigmoid(load(columns[RAW], k))
        store(columns[OF_DT], k, of_delta)
        store(columns[OF_X], k, load(columns[DT], k) * of_x + d * of_y)
        if given.gated:
            gate = load(columns[Z], k)
            sig, one = _sigmoid(gate), splat(ONE)
            by_gate = sig * (one + gate * (one - sig))
            y = load(columns[Y], k) + d * u
            store(columns[Z], k, load(columns[SLOPE], k) * y * by_gate)
    of_d = of_bias = 0.0
    for k in range(m):
        of_d += columns[U, k] * columns[OF_Y, k]
        of_bias += columns[OF_DT, k]
    each[0, channel] += of_d
    each[1, channel] += of_bias


@compiled
def _write(target, column, span, channel, chunk):
    for k in range(chunk.m):
        row = chunk.start + k * chunk.step - span.low
        target[row * span.stride + channel - span.begin] = column[k]


@compiled
def _softplus(x):
    """max(x, 0) + log(1 + e) with e = exp(-|x|), whose log is 2 artanh(e / (e + 2))."""
    e = exp(splat(ZERO) - magnitude(x))
    s = e / (e + splat(TWO))
    square, series = s * s, splat(ODDS[0])
    for i in range(1, ODDS.size):
        series = series * square + splat(ODDS[i])
    return positive(x) + splat(TWO) * s * series


@compiled
def _sigmoid(x):
    one = splat(ONE)
    return one / (one + exp(splat(ZERO) - x))
