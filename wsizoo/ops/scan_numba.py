"""The selective scan on a CPU through numba: as fast as C++, without a compiler on the machine.

Channels are shared among torch's threads, so that each has its own and sums have one order. Beside
inputs, outputs and gradients it keeps the states at every 256th step, and B's and C's gradients of
a few thousand steps for each thread.
"""

# ruff: noqa: N803

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsizoo.ops._dispatch import under_torch_func
from wsizoo.ops.memory import scratch
from wsizoo.ops.selective_scan import check_scan, marks

SPAN = 32  # chunks between two meetings of the threads in backward
WORTH = 1 << 18  # updates of a state that are worth a thread of their own


def why_not(u: Tensor | None = None, *args: Any, **kwargs: Any) -> str | None:
    """Why numba cannot run these arguments, or anything at all."""
    if not _installed():
        return 'numba is not installed; scans run 3 to 8 times as long. pip install "wsizoo[scan]"'
    if under_torch_func():
        return "torch.func runs the reference only"
    if u is not None and u.device.type != "cpu":
        return f"u is on {u.device.type}, numba's kernels run on a CPU"
    if u is not None and u.dtype == torch.float64:
        return "u is float64, numba's kernels compute in float32"
    return None


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("numba") is not None


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
    y, last = _memory(t, e), torch.zeros(sequences, e, n)
    starts = _memory(-(-t // kernels.STEPS) if keep else 0, e, n)
    state = torch.zeros(e, n)
    carried = state.numpy(), starts.numpy(), last.numpy()
    with _team(t, e, n) as team:
        for chunks, rows in _spans(t, given.reverse):

            def run(i: int, span: Any, own: list[Any]) -> None:
                kernels.forward(given, span, *own, *carried)

            team.run(run, chunks, rows, [y])
    return y, last, starts


def _backward(given: Any, slope: Tensor, starts: Tensor) -> list[Tensor]:
    """Gradients of u, delta, A, B, C, D, z and the bias, N filled up as in `given`."""
    kernels = _kernels()
    t, (e, n) = len(given.first), given.A.shape
    results = [_memory(t, e), _memory(t, e), _memory(t if given.gated else 0, e)]
    of_b, of_c, of_a = _memory(t, n), _memory(t, n), torch.zeros(e, n)
    each = torch.zeros(2, e, dtype=torch.float64)
    carried = of_a.numpy(), each.numpy(), torch.zeros(e, n).numpy()
    read = slope.numpy(), starts.numpy()
    with _team(t, e, n) as team:
        parts = np.empty((2, team.threads, min(t, SPAN * kernels.STEPS), n), np.float32)
        for chunks, rows in reversed(_spans(t, given.reverse)):
            some = parts[:, :, : rows.stop - rows.start]

            def run(i: int, span: Any, own: list[Any], some: Any = some) -> None:
                some[:, i] = 0
                slopes = kernels.Slopes(*own, *some[:, i], *carried)
                kernels.backward(given, span, *read, slopes)

            team.run(run, chunks, rows, results)
            for part, total in zip(some, (of_b, of_c), strict=True):
                np.sum(part, 0, out=total[rows].numpy())
    return [*results[:2], of_a, of_b, of_c, each[0], results[2], each[1]]


def _spans(t: int, reverse: bool) -> list[tuple[tuple[int, int], slice]]:
    """Chunks between two meetings of the threads, first and behind the last, and their rows."""
    kernels = _kernels()
    spans, most = [], SPAN * kernels.STEPS
    for at in range(0, t, most):
        end = min(at + most, t)
        rows = slice(t - end, t - at) if reverse else slice(at, end)
        spans.append(((at // kernels.STEPS, -(-end // kernels.STEPS)), rows))
    return spans


class _Team:
    """Threads that have channels each.

    Two that write to one line of a cache wait for each other. So where their shares of a row are
    not whole lines, each writes to memory of its own, which is copied when all have met: by numpy,
    since torch's own threads would spin between these short calls.
    """

    def __init__(self, threads: int, channels: int, pool: ThreadPoolExecutor | None) -> None:
        kernels = _kernels()
        self.threads, self.pool = threads, pool
        self.apart = threads > 1 and channels % (threads * kernels.LANES) != 0
        self.bounds = [channels * i // threads for i in range(threads + 1)]

    def run(
        self,
        kernel: Callable[[int, Any, list[Any]], None],
        chunks: tuple[int, int],
        rows: slice,
        results: list[Tensor],
    ) -> None:
        """Call `kernel` on each thread: its number, its span, its share of results (T, E)."""
        kernels = _kernels()
        shares, calls = [], []
        for begin, end in itertools.pairwise(self.bounds):
            own = [result[rows, begin:end] for result in results]
            if self.apart:
                own = [torch.empty(part.shape) for part in own]
            span = kernels.Span(begin, end, chunks, rows.start, own[0].stride(0))
            shares.append(own)
            calls.append((span, [_flat(part) for part in own]))
        if self.pool is None:
            kernel(0, *calls[0])
        else:
            list(self.pool.map(kernel, range(self.threads), *zip(*calls, strict=True)))
        if self.apart:
            for result, *parts in zip(results, *shares, strict=True):
                if len(result):
                    np.concatenate(parts, 1, out=result[rows].numpy())


@contextlib.contextmanager
def _team(steps: int, channels: int, states: int) -> Iterator[_Team]:
    """As many threads as torch has, the channels and the work are worth."""
    threads = min(torch.get_num_threads(), channels, steps * channels * states // WORTH)
    if threads < 2:
        yield _Team(1, channels, None)
    else:
        with ThreadPoolExecutor(threads) as pool:
            yield _Team(threads, channels, pool)


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
        *(_flat(x) for x in rows),
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


def _flat(x: Tensor) -> Any:
    """Memory from the first to the last element of rows with unit stride."""
    size = (len(x) - 1) * x.stride(0) + x.shape[1] if x.numel() else 0
    return x.as_strided((size,), (1,)).numpy()


def _memory(*shape: int) -> Tensor:
    return scratch(*shape, like=torch.empty(0))
