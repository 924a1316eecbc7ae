"""The selective scan on a GPU through Triton, which comes with torch: nothing is compiled before.

Steps are cut into chunks that advance side by side, so that a long sequence of few channels fills a
GPU: each from states of 0, to find what it hands on; then these are chained; then each from what it
is handed. Backward does the same with the states' slopes, from the last chunk to the first. Only
the states at starts of chunks are kept, those between are computed again some chunks at a time.

With TRITON_INTERPRET=1 in the environment the kernels run on a CPU, slowly, to be checked.
"""

# ruff: noqa: N803

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsizoo.ops._dispatch import under_torch_func
from wsizoo.ops.selective_scan import check_scan, marks, selective_scan

STEPS = (64, 128, 256, 512)  # of a chunk: the first that makes no more than MOST_CHUNKS
MOST_CHUNKS = 2048  # they are chained one after another
CHANNELS = 32  # of a program
AGAIN = 1 << 24  # states that backward computes at a time
CHAINED = 128  # states of a program that chains chunks
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _kernels() -> Any:
    from wsizoo.ops import _triton_kernels

    return _triton_kernels


def selective_scan_triton(
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
    """As `selective_scan`; copies what is not contiguous."""
    check_scan(u, delta, A, B, C, D, z, delta_bias, offsets)
    run: Any = _Scan.apply if u.numel() and A.numel() else selective_scan.reference
    found: tuple[Tensor, Tensor] = run(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, offsets, reverse
    )
    return found


def why_not(*args: Any, **kwargs: Any) -> str | None:
    """It needs triton, and tensors on CUDA of single or half precision."""
    if not _installed():
        return "triton is not installed; torch for CUDA on Linux brings it"
    if not _interpreted() and not torch.cuda.is_available():
        return "there is no CUDA device"
    if under_torch_func():
        return "torch.func runs the reference only"
    device = "cpu" if _interpreted() else "cuda"
    for x in (*args, *kwargs.values()):
        if isinstance(x, Tensor) and x.is_floating_point() and x.device.type != device:
            return f"tensors are on {x.device.type}, the kernels run on {device}"
        if isinstance(x, Tensor) and x.is_floating_point() and x.dtype not in DTYPES:
            return f"tensors are {str(x.dtype).removeprefix('torch.')}, the kernels compute float32"
    return None


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def current(x: Tensor) -> Any:
    """Within it the device of x is the current one, on which Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        offsets = args[9]
        given = _Given(args)
        with current(given.u):
            y, last, starts, sums = _forward(given, 1 if offsets is None else len(offsets) - 1)
        ctx.save_for_backward(*args[:8], offsets, starts, sums)
        ctx.flags = args[8], args[10]
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *parts, offsets, starts, sums = ctx.saved_tensors
        softplus, reverse = ctx.flags
        given = _Given((*parts, softplus, offsets, reverse))
        with current(given.u):
            found = _backward(given, slope.contiguous(), starts, sums)
        slopes = (
            None if part is None else own.to(part.dtype)
            for own, part in zip(found, parts, strict=True)
        )
        return *slopes, None, None, None


class _Given:
    """The arguments as kernels take them, and how programs share the work."""

    def __init__(self, args: Sequence[Any]) -> None:
        u, delta, A, B, C, D, z, bias, softplus, offsets, reverse = args
        none = u.new_zeros(u.shape[1])
        self.u, self.delta, self.b, self.c = (x.contiguous() for x in (u, delta, B, C))
        self.z = self.u if z is None else z.contiguous()
        self.a, self.d, self.bias = (
            (none if x is None else x).float().contiguous() for x in (A, D, bias)
        )
        begins, ends = marks(offsets, len(u), reverse)
        t, (e, n) = len(u), A.shape
        self.size = t, e, n
        self.steps = next((s for s in STEPS if s * MOST_CHUNKS >= t), STEPS[-1])
        self.chunks = -(-t // self.steps)
        walk = begins.flip(0) if reverse else begins
        cut = torch.nn.functional.pad(walk, (0, self.chunks * self.steps - t))
        cut = cut.view(self.chunks, self.steps).any(1)
        self.begins, self.cut = (x.to(u.device, torch.int32) for x in (begins, cut))
        self.ends = ends.to(u.device)
        wide = min(CHANNELS, 1 << (e - 1).bit_length())
        self.blocks = -(-e // wide)
        states = 1 << (n - 1).bit_length()
        self.ways = {"SOFTPLUS": softplus, "REVERSE": reverse}
        self.ways |= {"STEPS": self.steps, "BE": wide, "BN": states}
        self.gated = {"GATED": z is not None}

    def new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.u.device)


def _chain(given: _Given, handed: Tensor, sums: Tensor, *, back: bool) -> Tensor:
    """(chunks, E, N), what each chunk is handed."""
    _, e, n = given.size
    starts = given.new(*handed.shape)
    grid = (-(-e * n // CHAINED),)
    _kernels().carry[grid](
        handed, sums, given.a, given.cut, starts, given.chunks, e, n, BLOCK=CHAINED, BACK=back
    )
    return starts


def _forward(given: _Given, sequences: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y (T, E), last (S, E, N), states at the starts of chunks, sums of dt (chunks, E)."""
    kernels, (t, e, n), g = _kernels(), given.size, given
    y, last = torch.empty_like(g.u), g.new(sequences, e, n).zero_()
    handed, sums = g.new(g.chunks, e, n), g.new(g.chunks, e)
    grid = g.chunks, g.blocks
    kernels.hand_on[grid](g.u, g.delta, g.a, g.b, g.bias, g.begins, handed, sums, t, e, n, **g.ways)
    starts = _chain(g, handed, sums, back=False)
    read = g.u, g.delta, g.a, g.b, g.c, g.d, g.z, g.bias, g.begins, g.ends, starts
    kernels.forward[grid](*read, y, last, t, e, n, **g.ways, **g.gated)
    return y, last, starts, sums


def _backward(given: _Given, slope: Tensor, starts: Tensor, sums: Tensor) -> list[Tensor]:
    """Gradients of u, delta, A, B, C, D, z and the bias."""
    kernels, (t, e, n), g = _kernels(), given.size, given
    handed = g.new(g.chunks, e, n)
    kernels.hand_back[g.chunks, g.blocks](
        *(g.delta, g.a, g.c, g.z, g.bias, g.begins, slope, handed, t, e, n), **g.ways, **g.gated
    )
    handed = _chain(g, handed, sums, back=True)
    of_u, of_delta, of_z = (torch.empty_like(x) for x in (g.u, g.delta, g.z))
    of_b, of_c = g.new(t, n), g.new(t, n)
    of_a, of_d, of_bias = g.new(g.chunks, e, n), g.new(g.chunks, e), g.new(g.chunks, e)
    most = max(1, AGAIN // (g.steps * e * n))
    for start in range(0, g.chunks, most):
        count = min(most, g.chunks - start)
        steps = slice(start * g.steps, min((start + count) * g.steps, t))
        rows = steps.stop - steps.start
        before, parts = g.new(count * g.steps, e, n), g.new(2, g.blocks, rows, n)
        grid = count, g.blocks
        kernels.again[grid](
            *(g.u, g.delta, g.a, g.b, g.bias, g.begins, starts, before, t, e, n, start), **g.ways
        )
        read = g.u, g.delta, g.a, g.b, g.c, g.d, g.z, g.bias, g.begins, slope, before, handed
        found = of_u, of_delta, of_z, *parts, of_a, of_d, of_bias
        kernels.backward[grid](*read, *found, t, e, n, start, rows, **g.ways, **g.gated)
        place = slice(t - steps.stop, t - steps.start) if g.ways["REVERSE"] else steps
        for total, part in zip((of_b, of_c), parts.sum(1), strict=True):
            total[place] = part.flip(0) if g.ways["REVERSE"] else part
    return [of_u, of_delta, of_a.sum(0), of_b, of_c, of_d.sum(0), of_z, of_bias.sum(0)]
