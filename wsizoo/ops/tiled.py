"""`attention` on a CPU in tiles that its cache holds, forward and backward.

A tile is the scores of `KEYS` keys and `QUERIES` queries of one head, keys first: so a number a
query is added by the product that makes the scores, where a linear layer adds its bias, and no pass
over the tile is for it alone. Scores are in base 2, see `base_2`. Nothing of a pair is kept: the
backward pass makes the weights again, from the log-sum-exp of a query's scores, and draws the
dropout again.

A softmax subtracts the largest score, which takes a pass to find. Scores between -`SAFE` and `SAFE`
need none, as neither exp2 nor sums of it leave what float32 can say; no score is beyond the longest
query times the longest key. Where these are too long, each query's largest score is found first, by
making all scores once more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsizoo.ops._dispatch import under_torch_func
from wsizoo.ops.attention import check_attention
from wsizoo.ops.base_2 import LN_2, LOG2_E
from wsizoo.ops.draws import Draws, new_seed
from wsizoo.ops.memory import scratch, side_by_side
from wsizoo.ops.products import exact

KEYS, QUERIES = 1024, 256  # of a tile
UNIT = 128  # rows are filled up to multiples of it, so that products have few shapes
SAFE = 60.0
FEW = 1 << 16  # pairs below which torch's kernel takes less time


class _Head:
    """Queries, keys and values of one head, contiguous, with rows of zeros after the last.

    Args:
        q: (m, d). k: (n, d). v: (n, e). dropout: of its weights; they are drawn tile by tile.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, dropout: Draws | None) -> None:
        self.q = _filled(q * (LOG2_E / math.sqrt(q.shape[1])))
        self.k, self.v, self.n, self.dropout = _filled(k), _filled(v), len(k), dropout
        self.keys = _slices(len(self.k), KEYS)
        # a whole unit of them, and more where keys are few
        wide = KEYS * QUERIES // min(KEYS, len(self.k))
        self.queries = _slices(len(self.q), wide - wide % UNIT)
        longest = (x.square().sum(1).amax().sqrt() for x in (self.q, self.k))
        self.safe = bool(math.prod(longest) <= SAFE)  # False also of NaN

    def scores(self, keys: slice, queries: slice, level: Tensor | None) -> Tensor:
        """(K, L) in base 2, less the level (L,)."""
        return exact(self.k[keys], self.q[queries].t(), None if level is None else -level)

    def highest(self, queries: slice) -> Tensor | None:
        """(L,) the largest score of each query; None where no softmax needs it."""
        if self.safe:
            return None
        all_scores = (self.scores(keys, queries, None)[: self.n - keys.start] for keys in self.keys)
        return torch.stack([scores.amax(0) for scores in all_scores]).amax(0)

    def weights(self, keys: slice, queries: slice, level: Tensor | None) -> Tensor:
        """(K, L) exp2 of scores less the level; 0 of rows that are no keys."""
        scores = self.scores(keys, queries, level)
        weights = torch.exp2(scores, out=scores)
        weights[self.n - keys.start :] = 0
        return weights

    def attend(self, out: Tensor, lse: Tensor) -> None:
        """Fill in (m, e) what the queries attend to, and (m,) log2 of the sum of exp2 of scores."""
        values = [self.v[keys].t().contiguous() for keys in self.keys]  # (e, K)
        for queries in self.queries:
            level, size = self.highest(queries), queries.stop - queries.start
            mixed, total = self.v.new_zeros(self.v.shape[1], size), self.v.new_zeros(size)
            for keys, value in zip(self.keys, values, strict=True):
                weights = self.weights(keys, queries, level)
                total += weights.sum(0)
                if self.dropout is not None:
                    weights *= self.dropout.keep(weights)
                mixed = exact(value, weights, added=mixed)
            mixed /= total if self.dropout is None else total * self.dropout.kept
            level = total.log2() if level is None else total.log2_().add_(level)
            n = len(out[queries])
            out[queries], lse[queries] = mixed.t()[:n], level[:n]

    def backward(
        self, out: Tensor | None, lse: Tensor, slope: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v for `slope`, that of the output.

        Args:
            out: None where all keys are in one tile, which tells the inner product of both.
        """
        inner = None if out is None else _filled(torch.linalg.vecdot(slope, out))
        slope, lse = _filled(slope), _filled(lse)
        if self.dropout is not None:
            slope = slope / self.dropout.kept
        keyed = [self.k[keys].t().contiguous() for keys in self.keys]  # (d, K)
        of_q, of_k, of_v = (scratch(*x.shape, like=x).zero_() for x in (self.q, self.k, self.v))
        for queries in self.queries:
            q, given = self.q[queries], slope[queries]
            mine = q.new_zeros(q.shape[::-1])
            for keys, key in zip(self.keys, keyed, strict=True):
                weights = kept = self.weights(keys, queries, lse[queries])
                if self.dropout is not None:
                    kept = self.dropout.keep(weights).mul_(weights)
                of_scores = exact(self.v[keys], given.t(), times=kept)
                whole = of_scores.sum(0) if inner is None else inner[queries]
                of_scores.addcmul_(weights, whole, value=-1)
                of_v[keys] = exact(kept, given, added=of_v[keys])
                of_k[keys] = exact(of_scores, q, added=of_k[keys])
                mine = exact(key, of_scores, added=mine)
            of_q[queries] = mine.t()
        return of_q.mul_(1 / math.sqrt(q.shape[1])), of_k.mul_(LN_2), of_v


def _slices(size: int, step: int) -> list[slice]:
    return [slice(at, min(at + step, size)) for at in range(0, size, step)]


def _filled(x: Tensor) -> Tensor:
    return F.pad(x, (*[0] * (2 * x.ndim - 1), -len(x) % UNIT)).contiguous()


def _places(lead: torch.Size) -> Iterator[tuple[int, ...]]:
    return itertools.product(*map(range, lead))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        ctx.drawn = dropout, new_seed(dropout)
        draws = Draws.of(*ctx.drawn)
        out = side_by_side(q, v.shape[-1])
        lse = q.new_empty(q.shape[:-1])
        for at in _places(q.shape[:-2]):
            _Head(q[at], k[at], v[at], draws).attend(out[at], lse[at])
        ctx.save_for_backward(q, k, v, out if k.shape[-2] > KEYS else None, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        draws = Draws.of(*ctx.drawn)
        slopes = [side_by_side(x) for x in (q, k, v)]
        for at in _places(q.shape[:-2]):
            mixed = None if out is None else out[at]
            made = _Head(q[at], k[at], v[at], draws).backward(mixed, lse[at], slope[at])
            for whole, own in zip(slopes, made, strict=True):
                whole[at] = own[: whole.shape[-2]]
        return *slopes, None


def why_not(
    q: Tensor | None = None,
    k: Tensor | None = None,
    v: Tensor | None = None,
    dropout: float = 0.0,
) -> str | None:
    """It needs a CPU, one of two dtypes, and many pairs."""
    if under_torch_func() or torch.is_autocast_enabled("cpu"):
        return "torch.func and autocast run the reference only"
    given = [x for x in (q, k, v) if x is not None]
    if len(given) == 3 and given[0].shape[-2] * given[1].shape[-2] < FEW:
        return f"of fewer than {FEW} pairs"
    if any(x.device.type != "cpu" for x in given):
        return "it runs on CPUs only"
    if any(x.dtype not in (torch.float32, torch.float64) for x in given):
        return "it takes float32 and float64"
    return None


def attention_tiled(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """As `attention`; memory is linear in queries and keys. It is differentiable once."""
    check_attention(q, k, v, dropout)
    apply: Any = _Attention.apply
    attended: Tensor = apply(q, k, v, dropout)
    return attended
