"""Memory for the large tensors of a training step, used again by the next one.

Freed memory of many MB goes back to the system, and the next step pays for every page of it anew:
copying into fresh memory runs at a fifth of the speed of copying into memory that was used before.
`scratch` gives tensors out of one reserved range of addresses, lowest free place first. A tensor's
place is free again when the last tensor that shares its memory is gone, whoever holds it, so that
nothing needs to be handed back and nothing can be overwritten while it is in use.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import functools
import math
import mmap
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

SMALLEST = 1 << 18  # bytes; less comes from torch, whose allocator keeps small memory itself
RESERVED = 1 << 36  # addresses only: pages count when they are first written
KEPT = 1 << 30  # bytes that stay with the process behind those in use
ALIGNED = 1 << 12
NORESERVE = 0x4000  # of Linux; the module mmap does not name it before Python 3.13


def scratch(*shape: int, like: Tensor) -> Tensor:
    """A contiguous tensor of this shape, with dtype and device of `like`; its values are undefined.

    Plain `torch.empty` where the tensor is small, not on a CPU, or the system reserves no range.
    """
    size = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or size < SMALLEST or (arena := _arena()) is None:
        return like.new_empty(shape)
    piece = arena.take(size)
    if piece is None:
        return like.new_empty(shape)
    return piece.view(like.dtype).view(shape).data  # no view: autograd adds to it in place


def zeros(like: Tensor) -> Tensor:
    """As `scratch`, of the shape of `like`, and 0."""
    return scratch(*like.shape, like=like).zero_()


def side_by_side(like: Tensor, width: int | None = None) -> Tensor:
    """(..., H, n, d) as of `like`, or of another width, where the heads of a row lie side by side.

    Linear layers give and take rows in that way.
    """
    *lead, heads, n, d = like.shape
    rows = scratch(*lead, n, heads, d if width is None else width, like=like)
    return rows.transpose(-3, -2).data  # no view, so that it may change in place


def give_back() -> None:
    """Free memory that the C library holds goes back to the system: glibc's; elsewhere nothing.

    glibc keeps what is freed below blocks that are in use, and finds aligned blocks, which torch
    asks for, in few of its holes; so a process that works in pieces would hold up to twice what it
    uses. Nothing else in the process changes, but each page that is used again costs a fresh one:
    for once a layer of a large slide, not for once an op.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """glibc's `malloc_trim`, None where the C library has none."""
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # TypeError: Windows, which has no such handle
        return None
    return found


class Arena:
    """A range of addresses of which pieces are in use, first fit."""

    def __init__(self, size: int) -> None:
        """Raises OSError or ValueError where the system does not reserve so much."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
        self._map = mmap.mmap(-1, size, flags=flags)
        with contextlib.suppress(OSError):  # a kernel without large pages
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._free = [(0, size)]  # start and length, ascending, none beside another
        self._top = 0  # beyond it no page was written
        self._gone: deque[tuple[int, int]] = deque()  # filled by whichever thread drops a tensor
        self._lock = threading.Lock()
        if hasattr(os, "register_at_fork"):  # another thread of the parent may have held it
            os.register_at_fork(after_in_child=self._unlock)

    def _unlock(self) -> None:
        self._lock = threading.Lock()

    def take(self, size: int) -> Tensor | None:
        """(size,) uint8; None where no free place is so large."""
        asked, size = size, -(-size // ALIGNED) * ALIGNED
        with self._lock:
            while self._gone:
                self._give(*self._gone.popleft())
            fitting = (i for i, (_, length) in enumerate(self._free) if length >= size)
            at = next(fitting, None)
            if at is None:
                return None
            start, length = self._free[at]
            self._free[at : at + 1] = [(start + size, length - size)] if length > size else []
            self._top = max(self._top, start + size)
        piece = self._bytes[start : start + asked]
        weakref.finalize(piece, self._gone.append, (start, size)).atexit = False
        return torch.from_numpy(piece)

    def _give(self, start: int, size: int) -> None:
        at = bisect.bisect(self._free, (start, size))
        if at < len(self._free) and self._free[at][0] == start + size:
            size += self._free.pop(at)[1]
        if at and sum(self._free[at - 1]) == start:
            start, before = self._free.pop(at - 1)
            size, at = size + before, at - 1
        self._free.insert(at, (start, size))
        last = self._free[-1][0] + KEPT  # of the free end
        if last < self._top and sum(self._free[-1]) == len(self._bytes):
            self._map.madvise(mmap.MADV_DONTNEED, last, self._top - last)
            self._top = last


_made: list[Arena | None] = []


def _arena() -> Arena | None:
    """The process's own, made on first use; None where the system has no such thing."""
    if not _made:
        try:
            _made.append(Arena(RESERVED) if sys.platform == "linux" else None)
        except (OSError, ValueError, OverflowError):
            _made.append(None)  # little address space (ulimit -v), or overcommit forbidden
    return _made[0]
