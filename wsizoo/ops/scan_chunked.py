"""The selective scan in plain torch, many segments of steps at a time, recomputing backward.

Steps are taken in blocks, a block as S segments of K steps that advance together: first from states
of 0, to find what each segment hands on; then from the states that it is handed. So a block costs
K short calls rather than S K, and only the states at starts of segments outlive it.

A sequence's first step has the factor 0 instead of exp(dt A), which parts packed sequences; what it
would multiply is put to 0 as well, since a NaN of the sequence before would outlive it.
"""

# ruff: noqa: N803

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsizoo.ops.memory import scratch
from wsizoo.ops.selective_scan import check_scan, marks

STEPS = 64  # K, of a segment
MOST_SEGMENTS = 128
BLOCK = 1 << 19  # states of a block, so that a cache holds what is made of them
GPU_BLOCK = 1 << 24


def selective_scan_chunked(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    offsets: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """As `selective_scan`."""
    check_scan(u, delta, A, B, C, D, z, delta_bias, offsets)
    apply: Any = _Scan.apply
    with torch.autocast(u.device.type, enabled=False):
        found: tuple[Tensor, Tensor] = apply(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, offsets, reverse
        )
    return found


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        u, offsets, given = args[0], args[9], _Given(args)
        state = given.A.new_zeros(given.A.shape)  # (E, N)
        last = state.new_zeros(1 if offsets is None else len(offsets) - 1, *state.shape)
        y, starts = scratch(*u.shape, like=u), []
        for rows, segments in _blocks(given):
            block = _Block(given, rows, segments)
            starts.append(block.starts(state))
            state = block.walk(starts[-1])
            block.put(y, block.gated(block.outputs()))
            ending = block.ends >= 0
            last[block.ends[ending]] = block.states[ending]
        ctx.save_for_backward(*args[:8], offsets, *(starts if any(ctx.needs_input_grad) else ()))
        ctx.flags = args[8], args[10]
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # may be asked for only once under a checkpoint
        *parts, offsets = saved[:9]
        softplus, reverse = ctx.flags
        given = _Given((*parts, softplus, offsets, reverse))
        slopes = _Slopes(given)
        plan = zip(_blocks(given), saved[9:], strict=True)
        with torch.autocast(slope.device.type, enabled=False):
            for (rows, segments), starts in reversed(list(plan)):
                slopes.add(_Block(given, rows, segments), starts, slope)
        return *slopes.of(parts), None, None, None


class _Given:
    """The arguments, those without rows in float32 at least."""

    def __init__(self, args: Sequence[Any]) -> None:
        u, delta, A, B, C, D, z, bias, softplus, offsets, reverse = args
        self.u, self.delta, self.B, self.C, self.z = u, delta, B, C, z
        self.wide = torch.promote_types(u.dtype, torch.float32)
        none = u.new_zeros(u.shape[1])
        self.A, self.D, self.bias = ((none if x is None else x).to(self.wide) for x in (A, D, bias))
        self.softplus, self.reverse = softplus, reverse
        self.first, self.ends = (x.to(u.device) for x in marks(offsets, len(u), reverse))


def _blocks(given: _Given) -> Iterator[tuple[slice, int]]:
    """Rows of each block in the order of the walk, and how many segments they are."""
    t, most = len(given.u), BLOCK if given.u.device.type == "cpu" else GPU_BLOCK
    segments = min(max(1, most // max(1, STEPS * given.A.numel())), MOST_SEGMENTS)
    at = 0
    while at < t:
        segments = min(segments, max(1, (t - at) // STEPS))
        end = min(at + segments * STEPS, t)
        yield (slice(t - end, t - at) if given.reverse else slice(at, end)), segments
        at = end


class _Block:
    """Some steps in the order of the walk, (K, S, ...): step by step, segments side by side.

    `states` (K, S, E, N) are what each step adds, and from `walk` on the states themselves;
    `factors` are what a step multiplies the state before it by.
    """

    def __init__(self, given: _Given, rows: slice, segments: int) -> None:
        self.given, self.rows, self.segments = given, rows, segments
        self.u, self.b, self.c = (self.take(x) for x in (given.u, given.B, given.C))
        self.z = None if given.z is None else self.take(given.z)
        self.raw = self.take(given.delta) + given.bias
        self.dt = F.softplus(self.raw) if given.softplus else self.raw
        self.x = self.dt * self.u
        self.ends = self.take(given.ends)
        self.first = self.take(given.first)[..., None, None]  # (K, S, 1, 1)
        self.parts = self.first.flatten(1).any(1).tolist()  # K, of steps that part sequences
        self.factors = self.product(self.dt[..., None], given.A).exp_()
        self.factors[self.first[..., 0, 0]] = 0
        self.states = self.product(self.x[..., None], self.b[:, :, None])

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """(K, S, E, N)."""
        shape = *self.dt.shape, self.b.shape[-1]
        return torch.mul(left, right, out=scratch(*shape, like=self.dt))

    def take(self, x: Tensor) -> Tensor:
        """(T, ...) -> (K, S, ...)."""
        x = x[self.rows]
        x = x.flip(0) if self.given.reverse else x
        x = x.to(self.given.wide) if x.is_floating_point() else x
        return x.reshape(self.segments, -1, *x.shape[1:]).transpose(0, 1)

    def put(self, target: Tensor, values: Tensor) -> None:
        """Write (K, S, ...) to its rows of the target (T, ...)."""
        values = values.transpose(0, 1).flatten(0, 1)
        target[self.rows] = (values.flip(0) if self.given.reverse else values).to(target.dtype)

    def starts(self, state: Tensor) -> Tensor:
        """From the state before the block (E, N), that before each segment (S, E, N)."""
        if self.segments == 1:
            return state[None]
        handed, total = self.states[0], self.factors[0]
        for k in range(1, len(self.states)):
            added, factor = self.states[k], self.factors[k]
            handed, total = (
                torch.addcmul(added, factor, self.parted(handed, k)),
                self.parted(total, k) * factor,
            )
        return _chained(state, total, handed, self.first.any(0))

    def walk(self, starts: Tensor) -> Tensor:
        """Fill in the states; returns the last one (E, N), in memory of its own."""
        before = starts
        for k, (state, factor) in enumerate(zip(self.states, self.factors, strict=True)):
            before = state.addcmul_(factor, self.parted(before, k))
        return before[-1].clone()  # a view would keep the states of all steps

    def walk_back(self, slopes: Tensor, handed: Tensor) -> Tensor:
        """Fill in the slopes (K, S, E, N) of the states, from what each gives to the output.

        Args:
            handed: (E, N) from behind the block. Returns what goes before it.
        """
        steps = range(len(slopes))[::-1]
        own, total = torch.zeros_like(slopes[0]), torch.ones_like(slopes[0])
        if self.segments > 1:
            for k in steps:
                factor = self.factors[k]
                own, total = (
                    self.parted(slopes[k] + own, k) * factor,
                    self.parted(total, k) * factor,
                )
            own = _chained(handed, total.flip(0), own.flip(0), self.first.any(0).flip(0)).flip(0)
        else:
            own = handed[None]
        for k in steps:
            own = self.parted(slopes[k].add_(own), k) * self.factors[k]
        return own[0]

    def parted(self, x: Tensor, k: int) -> Tensor:
        """(S, E, N) that step k multiplies by its factor, 0 where a sequence begins there."""
        return x.masked_fill(self.first[k], 0) if self.parts[k] else x

    def outputs(self) -> Tensor:
        """(K, S, E), before the gate."""
        y = torch.matmul(self.states, self.c[..., None])[..., 0]
        return y.addcmul_(self.given.D, self.u)

    def gated(self, y: Tensor) -> Tensor:
        return y if self.z is None else y * F.silu(self.z)


def _chained(state: Tensor, totals: Tensor, handed: Tensor, parted: Tensor) -> Tensor:
    """(S, E, N), the state before each segment, if each makes totals state + handed of it.

    Args:
        parted: (S, 1, 1) bool, a sequence begins in it, so that nothing of the state gets through.
    """
    starts = torch.empty_like(handed)
    for start, total, added, new in zip(
        starts, totals, handed, parted.flatten().tolist(), strict=True
    ):
        start.copy_(state)
        state = added if new else torch.addcmul(added, total, state)
    return starts


class _Slopes:
    """Gradients of the arguments, to which blocks add from the last to the first."""

    def __init__(self, given: _Given) -> None:
        self.u, self.delta, self.B, self.C = (
            scratch(*x.shape, like=x) for x in (given.u, given.delta, given.B, given.C)
        )
        self.z = None if given.z is None else scratch(*given.z.shape, like=given.z)
        self.A, self.D, self.bias = (torch.zeros_like(x) for x in (given.A, given.D, given.bias))
        self.adjoint = torch.zeros_like(given.A)

    def add(self, block: _Block, starts: Tensor, slope: Tensor) -> None:
        given = block.given
        block.walk(starts)
        of_y = block.take(slope)  # (K, S, E)
        if self.z is not None and block.z is not None:
            sig = torch.sigmoid(block.z)
            by_gate = sig * (1 + block.z * (1 - sig))
            block.put(self.z, of_y * block.outputs() * by_gate)
            of_y = block.gated(of_y)
        g = block.product(of_y[..., None], block.c[:, :, None])
        self.adjoint = block.walk_back(g, self.adjoint)
        block.put(self.C, torch.matmul(of_y[:, :, None], block.states)[:, :, 0])
        block.put(self.B, torch.matmul(block.x[:, :, None], g)[:, :, 0])
        of_x = torch.matmul(g, block.b[..., None])[..., 0]
        of_exponent = block.factors.mul_(g)
        of_exponent[0].mul_(starts)
        of_exponent[1:].mul_(block.states[:-1])
        of_exponent[block.first[..., 0, 0]] = 0  # also of a NaN before
        self.A += torch.einsum("ksen,kse->en", of_exponent, block.dt)
        of_dt = torch.einsum("ksen,en->kse", of_exponent, given.A).addcmul_(block.u, of_x)
        of_delta = of_dt * torch.sigmoid(block.raw) if given.softplus else of_dt
        block.put(self.delta, of_delta)
        block.put(self.u, (block.dt * of_x).addcmul_(given.D, of_y))
        self.D += (block.u * of_y).sum((0, 1))
        self.bias += of_delta.sum((0, 1))

    def of(self, parts: Sequence[Tensor | None]) -> list[Tensor | None]:
        """In the dtypes of the arguments, None for those that are."""
        found = self.u, self.delta, self.A, self.B, self.C, self.D, self.z, self.bias
        return [
            None if part is None or own is None else own.to(part.dtype)
            for own, part in zip(found, parts, strict=True)
        ]
