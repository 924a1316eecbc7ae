"""What backends through numba share: when they can run, their threads, their memory.

Kernels take channels one by one in chunks of rows; each thread has channels of its own, so that
nothing is summed in an order that changes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsizoo.ops._dispatch import under_torch_func
from wsizoo.ops.memory import scratch

SPAN = 32  # chunks between two meetings of the threads
WORTH = 1 << 18  # updates of a state that are worth a thread of their own


def why_not(*args: Any, **kwargs: Any) -> str | None:
    """Why numba cannot run these arguments, or anything at all."""
    if not _installed():
        return 'without numba scans take several times as long: pip install "wsizoo[scan]"'
    if under_torch_func():
        return "torch.func runs the reference only"
    for x in (*args, *kwargs.values()):
        if isinstance(x, Tensor) and x.device.type != "cpu":
            return f"tensors are on {x.device.type}, numba's kernels run on a CPU"
        if isinstance(x, Tensor) and x.dtype == torch.float64:
            return "tensors are float64, numba's kernels compute in float32"
    return None


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("numba") is not None


def spans(t: int, reverse: bool) -> list[tuple[tuple[int, int], slice]]:
    """Chunks between two meetings of the threads, first and behind the last, and their rows."""
    steps = _kernels().STEPS
    found, most = [], SPAN * steps
    for at in range(0, t, most):
        end = min(at + most, t)
        rows = slice(t - end, t - at) if reverse else slice(at, end)
        found.append(((at // steps, -(-end // steps)), rows))
    return found


class Team:
    """Threads that have channels each.

    Two that write to one line of a cache wait for each other. So where their shares of a row are
    not whole lines, each writes to memory of its own, which is copied when all have met: by numpy,
    since torch's own threads would spin between these short calls.
    """

    def __init__(self, threads: int, channels: int, pool: ThreadPoolExecutor | None) -> None:
        self.threads, self.pool = threads, pool
        self.apart = threads > 1 and channels % (threads * _kernels().LANES) != 0
        self.bounds = [channels * i // threads for i in range(threads + 1)]

    def run(
        self,
        kernel: Callable[[int, Any, list[Any]], None],
        chunks: tuple[int, int],
        rows: slice,
        results: list[Tensor],
    ) -> None:
        """Call `kernel` on each thread: its number, its span, its share of results (T, E)."""
        shares, calls = [], []
        for begin, end in itertools.pairwise(self.bounds):
            own = [result[rows, begin:end] for result in results]
            if self.apart:
                own = [torch.empty(part.shape) for part in own]
            span = _kernels().Span(begin, end, chunks, rows.start, own[0].stride(0))
            shares.append(own)
            calls.append((span, [flat(part) for part in own]))
        if self.pool is None:
            kernel(0, *calls[0])
        else:
            list(self.pool.map(kernel, range(self.threads), *zip(*calls, strict=True)))
        if self.apart:
            for result, *parts in zip(results, *shares, strict=True):
                if len(result):
                    np.concatenate(parts, 1, out=result[rows].numpy())


@contextlib.contextmanager
def team_of(updates: int, channels: int) -> Iterator[Team]:
    """As many threads as torch has, the channels and the work are worth."""
    threads = min(torch.get_num_threads(), channels, updates // WORTH)
    if threads < 2:
        yield Team(1, channels, None)
    else:
        with ThreadPoolExecutor(threads) as pool:
            yield Team(threads, channels, pool)


def _kernels() -> Any:
    from wsizoo.ops import _scan_kernels

    return _scan_kernels


def flat(x: Tensor) -> Any:
    """Memory from the first to the last element of rows with unit stride."""
    size = (len(x) - 1) * x.stride(0) + x.shape[1] if x.numel() else 0
    return x.as_strided((size,), (1,)).numpy()


def memory(*shape: int) -> Tensor:
    return scratch(*shape, like=torch.empty(0))
