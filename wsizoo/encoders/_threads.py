"""Work on tensors shared out to threads, so that its result does not depend on their number."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


def in_threads(work: Callable[[Tensor], Tensor], parts: Sequence[Tensor]) -> list[Tensor]:
    """What `work` gives of each part, on the CPU, in as many threads as torch has.

    Each part is one thread's from beginning to end, and torch has no others in it: it gives the
    same bits whatever it is computed with. torch's own threads would also have to meet after each
    of some hundred short operations: where one of their processors is busy, with reading slides
    say, all wait for it, and a tenth of the speed is left.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return [work(part) for part in parts]
    try:
        return list(_pool(threads, os.getpid()).map(work, parts))
    finally:
        torch.set_num_threads(threads)  # what a thread sets is the default of later ones


@functools.cache
def _pool(count: int, process: int) -> ThreadPoolExecutor:
    """Threads that stay, as memory that one has freed is not another's; a fork begins its own."""
    del process
    return ThreadPoolExecutor(count, "encode", torch.set_num_threads, (1,))
