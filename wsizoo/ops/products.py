"""Products of many rows with weights on a CPU, by whichever of torch's two libraries is fast there.

`torch.mm` asks MKL, which runs AMD's processors on AVX2. oneDNN, which comes with torch too, uses
AVX-512 wherever it is: 490 against 215 GFLOP/s on two cores of an EPYC 9005. Which one is asked
depends on the processor and on shapes only, so that results are the same in every run.

oneDNN keeps up to a MB for every shape that it has seen, and slides have as many rows as they like.
So rows go in `chunks`, and those of a chunk are filled up with zeros to a multiple of `UNIT`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from wsizoo.ops.memory import scratch

ROWS = 512  # of a chunk, so that a cache holds it
FEW = 1024  # rows that are one chunk: calls cost more than caches
UNIT = 128
SMALL = 1 << 21  # multiply-adds below which `torch.mm` is as fast


def chunks(*bounds: int) -> Iterator[tuple[int, slice]]:
    """The rows between each two of the bounds in chunks: which two, and the rows."""
    for i, (start, end) in enumerate(itertools.pairwise(bounds)):
        step = FEW if end - start <= FEW else ROWS
        for at in range(start, end, step):
            yield i, slice(at, min(at + step, end))


def product(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    added: Tensor | None = None,
    relu: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """rows @ weight + bias + added, or relu(rows @ weight + bias); not differentiable.

    Args:
        rows: (n, k), at most those of a chunk. weight: (k, m). bias: (m,).
        added: (n, m), not beside `relu`.
        out: (n, m) memory for the result, which may be that of `added`; new where None.
    """
    fast = _onednn() if _suits(rows, weight) else None
    if fast is None:
        return _by_mkl(rows, weight, bias, added, relu, out)
    n, rows, weight = len(rows), _filled(_dense(rows)), _dense(weight).t()
    if added is not None:
        made: Tensor = fast.binary(rows, _filled(added), weight, bias, "add")[:n]
    else:
        made = fast(rows, weight, bias, "relu" if relu else "none", [], "")[:n]
    return made if out is None else out.copy_(made)


def outer(left: Tensor, right: Tensor, total: Tensor | None = None) -> Tensor:
    """left.T @ right: (n, k) and (n, m) -> (k, m), n rows of a chunk; added to `total` in place."""
    fast = _onednn() if _suits(left, right) else None
    if fast is None:
        return _by_mkl(left.t(), right, None, total, False, total)
    sides = _filled(_dense(left)).t(), _filled(_dense(right)).t()
    if total is None:
        made: Tensor = fast(*sides, None, "none", [], "")
        return made
    return total.copy_(fast.binary(sides[0], total, sides[1], None, "add"))


def exact(
    left: Tensor,
    right: Tensor,
    bias: Tensor | None = None,
    *,
    added: Tensor | None = None,
    times: Tensor | None = None,
) -> Tensor:
    """left @ right + bias + added, or (left @ right + bias) * times; nothing is filled up.

    Args:
        left, right: (n, k), (k, m), of shapes that are few. bias: (m,).
        added, times: (n, m), contiguous, at most one of them.
    """
    fast = _onednn() if _suits_as_it_is(left, right) else None
    if fast is None:
        made = left @ right if bias is None else torch.addmm(bias, left, right)
        if added is not None:
            made += added
        return made if times is None else made.mul_(times)
    left, right = _dense(left), _dense(right).t()
    other, how = (added, "add") if times is None else (times, "mul")
    found: Tensor = (
        fast(left, right, bias, "none", [], "")
        if other is None
        else fast.binary(left, other, right, bias, how)
    )
    return found


def stacked(left: Tensor, right: Tensor) -> Tensor:
    """(n, r, k) @ (n, k, m) -> (n, r, m), of shapes that are few: nothing is filled up."""
    if _onednn() is None or not _suits_as_it_is(left[0], right[0]):
        return torch.bmm(left, right)
    made = [exact(a, b) for a, b in zip(left, right, strict=True)]
    return made[0][None] if len(made) == 1 else torch.stack(made)


def _suits_as_it_is(left: Tensor, right: Tensor) -> bool:
    plain = left.dtype == torch.float32 and left.device.type == "cpu"
    return plain and left.numel() * right.shape[1] >= SMALL


def _by_mkl(
    left: Tensor,
    right: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    relu: bool,
    out: Tensor | None,
) -> Tensor:
    if out is None:
        out = scratch(len(left), right.shape[1], like=left)
    if added is None:
        torch.mm(left, right, out=out)
    else:
        torch.addmm(added, left, right, out=out)
    if bias is not None:
        out += bias  # addmm writes the bias to all rows first, which takes longer
    return out.relu_() if relu else out


def _suits(left: Tensor, right: Tensor) -> bool:
    plain = all(x.dtype == torch.float32 and x.device.type == "cpu" for x in (left, right))
    large = left.numel() * right.numel() >= SMALL * len(right)
    return plain and large and 2 * len(left) > UNIT


def _filled(x: Tensor) -> Tensor:
    n, missing = len(x), -len(x) % UNIT
    if not missing:
        return x
    full = x.new_empty(n + missing, x.shape[1])
    full[:n], full[n:] = x, 0
    return full


def _dense(x: Tensor) -> Tensor:
    """oneDNN takes other layouts to its reference code, which is a thousand times slower."""
    return x if x.t().is_contiguous() else x.contiguous()


@functools.cache
def _onednn() -> Any:
    """torch's linear layer through oneDNN, or None where it is not the faster one.

    It is private to torch (its compiler calls it), so it is tried once: where it is gone, or does
    something else, nobody misses it.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    x, bias = torch.arange(6.0).view(2, 3), torch.tensor([-9.0, 1.0])
    expected = torch.tensor([[0.0, 15.0], [5.0, 51.0]])  # of relu(x @ x.t() + bias)
    try:
        found = torch.ops.mkldnn._linear_pointwise
        tried = found(x, x, bias, "relu", [], "")
        sums = found.binary(x, expected, x, None, "add")
        scaled = found.binary(x, expected, x, bias, "mul")
    except (AttributeError, RuntimeError, TypeError):
        return None
    plain = x @ x.t()
    pairs = (tried, expected), (sums, plain + expected), (scaled, (plain + bias) * expected)
    return found if all(torch.equal(ours, theirs) for ours, theirs in pairs) else None
