"""The selective scan on a CPU through numba: as fast as C++, without a compiler on the machine.

Beside inputs, outputs and gradients it keeps the states at every 256th step, and B's and C's
gradients of some thousand steps for each thread.
"""

# ruff: noqa: N803

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsizoo.ops._numba import flat, memory, spans, team_of
from wsizoo.ops.selective_scan import check_scan, marks


def _kernels() -> Any:
    """Compiled on their first call; the next process finds them in numba's cache."""
    from wsizoo.ops import _scan_kernels

    return _scan_kernels


def selective_scan_numba(
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
    """As `selective_scan`; exponents dt A beyond 88 count as 88."""
    check_scan(u, delta, A, B, C, D, z, delta_bias, offsets)
    apply: Any = _Scan.apply
    found: tuple[Tensor, Tensor] = apply(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, offsets, reverse
    )
    return found


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        u, _, A, *_, softplus, offsets, reverse = args
        sequences = 1 if offsets is None else len(offsets) - 1
        y, last, starts = _forward(_given(args), sequences, any(ctx.needs_input_grad))
        ctx.save_for_backward(*args[:8], offsets, starts)
        ctx.flags = softplus, reverse
        last = last[..., : A.shape[1]].contiguous()
        ctx.mark_non_differentiable(last)
        return y.to(u.dtype), last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *parts, offsets, starts = ctx.saved_tensors
        softplus, reverse = ctx.flags
        given = _given((*parts, softplus, offsets, reverse))
        found = _backward(given, slope.float().contiguous(), starts)
        of_parts = (
            None if part is None else own[..., : part.shape[-1]].to(part.dtype)
            for own, part in zip(found, parts, strict=True)
        )
        return *of_parts, None, None, None


def _forward(given: Any, sequences: int, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y (T, E), last (S, E, N), and the states at the starts of chunks (chunks or 0, E, N)."""
    kernels = _kernels()
    t, (e, n) = len(given.first), given.A.shape
    y, last = memory(t, e), torch.zeros(sequences, e, n)
    starts = memory(-(-t // kernels.STEPS) if keep else 0, e, n)
    state = torch.zeros(e, n)
    carried = state.numpy(), starts.numpy(), last.numpy()
    with team_of(t * e * n, e) as team:
        for chunks, rows in spans(t, given.reverse):

            def run(i: int, span: Any, own: list[Any]) -> None:
                kernels.forward(given, span, *own, *carried)

            team.run(run, chunks, rows, [y])
    return y, last, starts


def _backward(given: Any, slope: Tensor, starts: Tensor) -> list[Tensor]:
    """Gradients of u, delta, A, B, C, D, z and the bias, N filled up as in `given`."""
    kernels = _kernels()
    t, (e, n) = len(given.first), given.A.shape
    results = [memory(t, e), memory(t, e), memory(t if given.gated else 0, e)]
    of_b, of_c, of_a = memory(t, n), memory(t, n), torch.zeros(e, n)
    each = torch.zeros(2, e, dtype=torch.float64)
    carried = of_a.numpy(), each.numpy(), torch.zeros(e, n).numpy()
    read = slope.numpy(), starts.numpy()
    with team_of(t * e * n, e) as team:
        pieces = spans(t, given.reverse)
        most = max((rows.stop - rows.start for _, rows in pieces), default=0)
        parts = np.empty((2, team.threads, most, n), np.float32)
        for chunks, rows in reversed(pieces):
            some = parts[:, :, : rows.stop - rows.start]

            def run(i: int, span: Any, own: list[Any], some: Any = some) -> None:
                some[:, i] = 0
                slopes = kernels.Slopes(*own, *some[:, i], *carried)
                kernels.backward(given, span, *read, slopes)

            team.run(run, chunks, rows, results)
            for part, total in zip(some, (of_b, of_c), strict=True):
                np.sum(part, 0, out=total[rows].numpy())
    return [*results[:2], of_a, of_b, of_c, each[0], results[2], each[1]]


def _given(args: Sequence[Any]) -> Any:
    """`Given` of the kernels; copies what is not float32 with unit stride, and N not of 16."""
    u, delta, A, B, C, D, z, bias, softplus, offsets, reverse = args
    kernels = _kernels()

    def whole(x: Tensor) -> Tensor:
        x = x.detach().float()
        missing = -x.shape[-1] % kernels.LANES
        return F.pad(x, (0, missing)) if missing else x

    def row(x: Tensor | None) -> Any:
        return (u.new_zeros(u.shape[1]) if x is None else x.detach()).float().contiguous().numpy()

    gate = u.new_empty(0, u.shape[1]) if z is None else z
    rows = [x.detach().float() for x in (u, delta, gate)] + [whole(B), whole(C)]
    rows = [x if x.stride(1) == 1 else x.contiguous() for x in rows]
    begins, ends = (x.numpy() for x in marks(offsets, len(u), reverse))
    strides = tuple(x.stride(0) for x in rows)
    return kernels.Given(
        *(flat(x) for x in rows),
        strides,
        whole(A).contiguous().numpy(),
        row(D),
        row(bias),
        begins,
        ends,
        z is not None,
        softplus,
        reverse,
    )
