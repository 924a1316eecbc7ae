"""The selective scan in Triton: imported only where triton is, compiled on the first call.

Programs are chunks of STEPS steps times blocks of BE channels with all their states, (BE, BN).
A step behind the last has dt = 0 and changes nothing; a sequence's first step drops the state
before it. `step` counts along the walk, `row` is where it lies.

This file imports triton, which is optional and has no types.
"""

# mypy: ignore-errors
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

constexpr = tl.constexpr


@triton.jit
def _positive(raw):
    """log(1 + exp(raw)), exact for small exp(raw), which log(1 + .) rounds away."""
    x = tl.exp(raw)
    w = 1.0 + x
    small = tl.where(w == 1.0, x, tl.log(w) * (x / (w - 1.0)))
    return tl.where(raw > 20.0, raw, small)


@triton.jit
def _put(x, at, values, mask):
    tl.store(x + at, values.to(x.dtype.element_ty), mask=mask)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _row(x, row, width, at, mask):
    """Of (T, width) the values of a row, float32, 0 where they are masked."""
    return tl.load(x + row * width + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _place(block, E, N, BE: constexpr, BN: constexpr):
    """A block's channels, the states, where these lie in (E, N), and which of them there are."""
    es, ns = block * BE + tl.arange(0, BE), tl.arange(0, BN)
    return es, ns, es[:, None] * N + ns[None, :], (es < E)[:, None] & (ns < N)[None, :]


@triton.jit
def _step(
    delta, bias, begins, step, T, E, es, SOFTPLUS: constexpr, REVERSE: constexpr
):  # fmt: skip
    """Its row, which channels have it, delta + bias, dt, and whether a sequence begins here."""
    row = T - 1 - step if REVERSE else step
    mask = (es < E) & (step < T)
    raw = _row(delta, row, E, es, mask) + _row(bias, 0, E, es, mask)
    dt = tl.where(mask, _positive(raw) if SOFTPLUS else raw, 0.0)
    return row, mask, raw, dt, tl.load(begins + row, mask=step < T, other=0) != 0


@triton.jit
def hand_on(
    u, delta, a, b, bias, begins, handed, sums, T, E, N, STEPS: constexpr, BE: constexpr,
    BN: constexpr, SOFTPLUS: constexpr, REVERSE: constexpr,
):  # fmt: skip
    """Each chunk from states of 0: what it hands on (chunks, E, N), and its sum of dt (., E)."""
    chunk = tl.program_id(0).to(tl.int64)
    es, ns, flat, both = _place(tl.program_id(1), E, N, BE, BN)
    rate = tl.load(a + flat, mask=both, other=0.0)
    state, total = tl.zeros((BE, BN), tl.float32), tl.zeros((BE,), tl.float32)
    for i in range(STEPS):
        step = chunk * STEPS + i
        row, mask, _, dt, fresh = _step(delta, bias, begins, step, T, E, es, SOFTPLUS, REVERSE)
        x = dt * _row(u, row, E, es, mask)
        added = x[:, None] * _row(b, row, N, ns, (ns < N) & (step < T))[None, :]
        state = tl.where(fresh, 0.0, tl.exp(dt[:, None] * rate) * state) + added
        total += dt
    tl.store(handed + chunk * E * N + flat, state, mask=both)
    tl.store(sums + chunk * E + es, total, mask=es < E)


@triton.jit
def carry(handed, sums, a, cut, starts, chunks, E, N, BLOCK: constexpr, BACK: constexpr):
    """(chunks, E, N), what each chunk is handed; nothing goes past one where a sequence begins."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < E * N
    rate = tl.load(a + at, mask=mask, other=0.0)
    state = tl.zeros((BLOCK,), tl.float32)
    count = tl.full((), 0, tl.int64)
    while count < chunks:
        chunk = chunks - 1 - count if BACK else count
        tl.store(starts + chunk * E * N + at, state, mask=mask)
        factor = tl.exp(rate * tl.load(sums + chunk * E + at // N, mask=mask, other=0.0))
        kept = tl.where(tl.load(cut + chunk) != 0, 0.0, factor * state)
        state = kept + tl.load(handed + chunk * E * N + at, mask=mask, other=0.0)
        count += 1


@triton.jit
def forward(
    u, delta, a, b, c, d, z, bias, begins, ends, starts, y, last, T, E, N, STEPS: constexpr,
    BE: constexpr, BN: constexpr, SOFTPLUS: constexpr, REVERSE: constexpr, GATED: constexpr,
):  # fmt: skip
    """Each chunk from the states that it is handed: y (T, E), and the last states (S, E, N)."""
    chunk = tl.program_id(0).to(tl.int64)
    es, ns, flat, both = _place(tl.program_id(1), E, N, BE, BN)
    rate = tl.load(a + flat, mask=both, other=0.0)
    skip = _row(d, 0, E, es, es < E)
    state = tl.load(starts + chunk * E * N + flat, mask=both, other=0.0)
    for i in range(STEPS):
        step = chunk * STEPS + i
        row, mask, _, dt, fresh = _step(delta, bias, begins, step, T, E, es, SOFTPLUS, REVERSE)
        mask_n = (ns < N) & (step < T)
        x = _row(u, row, E, es, mask)
        added = (dt * x)[:, None] * _row(b, row, N, ns, mask_n)[None, :]
        state = tl.where(fresh, 0.0, tl.exp(dt[:, None] * rate) * state) + added
        out = tl.sum(state * _row(c, row, N, ns, mask_n)[None, :], 1) + skip * x
        if GATED:
            gate = _row(z, row, E, es, mask)
            out *= gate * _sigmoid(gate)
        _put(y, row * E + es, out, mask)
        end = tl.load(ends + row, mask=step < T, other=-1)
        tl.store(last + end * E * N + flat, state, mask=both & (end >= 0))


@triton.jit
def hand_back(
    delta, a, c, z, bias, begins, slope, handed, T, E, N, STEPS: constexpr, BE: constexpr,
    BN: constexpr, SOFTPLUS: constexpr, REVERSE: constexpr, GATED: constexpr,
):  # fmt: skip
    """As `hand_on`, of the states' slopes: what each chunk hands to the one before it."""
    chunk = tl.program_id(0).to(tl.int64)
    es, ns, flat, both = _place(tl.program_id(1), E, N, BE, BN)
    rate = tl.load(a + flat, mask=both, other=0.0)
    own = tl.zeros((BE, BN), tl.float32)
    for i in range(STEPS):
        step = chunk * STEPS + (STEPS - 1 - i)
        row, mask, _, dt, fresh = _step(delta, bias, begins, step, T, E, es, SOFTPLUS, REVERSE)
        of_y = _row(slope, row, E, es, mask)
        if GATED:
            gate = _row(z, row, E, es, mask)
            of_y *= gate * _sigmoid(gate)
        own += of_y[:, None] * _row(c, row, N, ns, (ns < N) & (step < T))[None, :]
        own = tl.where(fresh, 0.0, tl.exp(dt[:, None] * rate) * own)
    tl.store(handed + chunk * E * N + flat, own, mask=both)


@triton.jit
def again(
    u, delta, a, b, bias, begins, starts, before, T, E, N, START, STEPS: constexpr, BE: constexpr,
    BN: constexpr, SOFTPLUS: constexpr, REVERSE: constexpr,
):  # fmt: skip
    """Chunks from START on: the state before each step, (chunks, STEPS, E, N)."""
    local = tl.program_id(0).to(tl.int64)
    chunk = local + START
    es, ns, flat, both = _place(tl.program_id(1), E, N, BE, BN)
    rate = tl.load(a + flat, mask=both, other=0.0)
    state = tl.load(starts + chunk * E * N + flat, mask=both, other=0.0)
    for i in range(STEPS):
        step = chunk * STEPS + i
        row, mask, _, dt, fresh = _step(delta, bias, begins, step, T, E, es, SOFTPLUS, REVERSE)
        tl.store(before + (local * STEPS + i) * E * N + flat, state, mask=both)
        x = dt * _row(u, row, E, es, mask)
        added = x[:, None] * _row(b, row, N, ns, (ns < N) & (step < T))[None, :]
        state = tl.where(fresh, 0.0, tl.exp(dt[:, None] * rate) * state) + added


@triton.jit
def _ungate(of_z, z, at, mask, of_y, ungated):
    """Put the gate's slopes; returns those of what is gated."""
    gate = tl.load(z + at, mask=mask, other=0.0).to(tl.float32)
    sig = _sigmoid(gate)
    _put(of_z, at, of_y * ungated * sig * (1.0 + gate * (1.0 - sig)), mask)
    return of_y * gate * sig


@triton.jit
def _slopes(own, kept, dt, x, raw, rate, own_b, SOFTPLUS: constexpr):
    """From the slopes of a step's states: those of dt A (E, N), of dt u and of delta (E,)."""
    of_exponent = own * kept
    of_added = tl.sum(own * own_b, 1)
    of_raw = tl.sum(of_exponent * rate, 1) + x * of_added
    return of_exponent, of_added, of_raw * _sigmoid(raw) if SOFTPLUS else of_raw


@triton.jit
def backward(
    u, delta, a, b, c, d, z, bias, begins, slope, before, handed, of_u, of_delta, of_z, of_b,
    of_c, of_a, of_d, of_bias, T, E, N, START, ROWS, STEPS: constexpr, BE: constexpr,
    BN: constexpr, SOFTPLUS: constexpr, REVERSE: constexpr, GATED: constexpr,
):  # fmt: skip
    """Chunks from START on: gradients.

    of_b, of_c: (blocks, ROWS, N), ROWS steps of these chunks in the order of the walk. of_a:
    (chunks, E, N); of_d, of_bias: (chunks, E). All to be summed over their first axis.
    """
    local, block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    es, ns, flat, both = _place(block, E, N, BE, BN)
    rate, skip = tl.load(a + flat, mask=both, other=0.0), _row(d, 0, E, es, es < E)
    chunk = local + START
    own = tl.load(handed + chunk * E * N + flat, mask=both, other=0.0)
    sum_a = tl.zeros((BE, BN), tl.float32)
    sum_d, sum_bias = tl.zeros((BE,), tl.float32), tl.zeros((BE,), tl.float32)
    for i in range(STEPS):
        inside = (local + 1) * STEPS - 1 - i
        step = START * STEPS + inside
        row, mask, raw, dt, fresh = _step(delta, bias, begins, step, T, E, es, SOFTPLUS, REVERSE)
        at, mask_n = row * E + es, (ns < N) & (step < T)
        x, of_y = _row(u, row, E, es, mask), _row(slope, row, E, es, mask)
        own_b, own_c = _row(b, row, N, ns, mask_n)[None, :], _row(c, row, N, ns, mask_n)[None, :]
        factor = tl.exp(dt[:, None] * rate)
        kept = tl.load(before + inside * E * N + flat, mask=both & (fresh == 0), other=0.0) * factor
        state = kept + (dt * x)[:, None] * own_b
        if GATED:
            of_y = _ungate(of_z, z, at, mask, of_y, tl.sum(state * own_c, 1) + skip * x)
        own += of_y[:, None] * own_c
        place = (block * ROWS + inside) * N + ns
        _put(of_c, place, tl.sum(state * of_y[:, None], 0), mask_n)
        _put(of_b, place, tl.sum(own * (dt * x)[:, None], 0), mask_n)
        grown, of_added, of_raw = _slopes(own, kept, dt, x, raw, rate, own_b, SOFTPLUS)
        sum_a += grown * dt[:, None]
        sum_d += x * of_y
        sum_bias += tl.where(mask, of_raw, 0.0)
        _put(of_delta, at, of_raw, mask)
        _put(of_u, at, dt * of_added + skip * of_y, mask)
        own = tl.where(fresh, 0.0, factor * own)
    tl.store(of_a + chunk * E * N + flat, sum_a, mask=both)
    tl.store(of_d + chunk * E + es, sum_d, mask=es < E)
    tl.store(of_bias + chunk * E + es, sum_bias, mask=es < E)
