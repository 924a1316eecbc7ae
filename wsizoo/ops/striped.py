"""Grid attention of tokens in strips: dense products of slices, forward and backward.

Nothing of a pair is kept: the backward pass computes the weights again, from the log-sum-exp of a
token's scores, and draws the dropout again, so that memory is linear in tokens. Scores are in base
2: see `base_2`, which says too what `blocked` is for. Pairs that are too far away have weight 0,
and 0 times what is not finite is NaN: one NaN in v reaches all queries whose slice holds it.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsizoo.ops._dispatch import why_not_under_torch_func
from wsizoo.ops.attention import attention
from wsizoo.ops.base_2 import LN_2, LOG2_E, NEVER, NOBODY, run, wide
from wsizoo.ops.disks import Everywhere
from wsizoo.ops.draws import Draws, new_seed
from wsizoo.ops.grid_attention import OffsetBias, bias_at, check_attention
from wsizoo.ops.memory import scratch
from wsizoo.ops.neighbourhoods import Neighbourhood
from wsizoo.ops.products import stacked
from wsizoo.ops.strips import Block, Strip

SILENT = 1e30  # a log-sum-exp that makes all weights 0


class _Added:
    """What is added to the score of a pair: its bias; `NEVER` where it does not count.

    Args:
        like: of the dtype and on the device of scores.
    """

    def __init__(
        self, nearby: Neighbourhood, bias: Tensor | OffsetBias | None, heads: int, like: Tensor
    ) -> None:
        self.nearby, self.bias, self.heads, self.like = nearby, bias, heads, like
        self.strips = nearby.strips
        self.table: Tensor | None = None  # (H, offsets) by number
        if isinstance(bias, Tensor) or (bias is not None and self.strips.few):
            self.table = self._of(bias, self.strips.offsets(like.device))
        self.slopes: Tensor | None = None  # as the table
        if isinstance(bias, Tensor):
            self.slopes = like.new_zeros(heads, self.strips.n_offsets)

    def _of(self, bias: Tensor | OffsetBias, offset: Tensor) -> Tensor:
        """(H, ...) for offsets (..., 2)."""
        if isinstance(bias, Tensor):
            added = bias.flatten(1)[:, self._places(offset)]
        else:
            added = bias_at(bias, offset, self.heads)
        added = added.to(self.like.dtype) * LOG2_E
        added = added.masked_fill(self.strips.too_far(offset), NEVER)
        return added.clamp(min=NEVER)  # of an infinite bias

    def _places(self, offset: Tensor) -> Tensor:
        """(..., 2) -> (...) of offsets in a table by offset, flattened."""
        reach = self.nearby.reach
        first, second = (offset.clamp(-reach, reach) + reach).unbind(-1)
        return first * (2 * reach + 1) + second

    def _of_pairs(
        self, bias: Tensor | OffsetBias, strip: Strip, queries: slice, keys: slice
    ) -> Tensor:
        """(H, L, K) for a block."""
        if self.table is not None:
            at = self.strips.numbers(strip, queries, keys)
            return self.table.index_select(1, at).view(self.heads, -1, keys.stop - keys.start)
        cells = self.nearby.cells
        ours, theirs = cells[strip.queries[queries]], cells[strip.keys[keys]]
        return self._of(bias, theirs - ours[:, None])

    def add(self, scores: Tensor, strip: Strip, block: Block, keys: slice) -> None:
        """To the scores (H, L, K) of a block and a slice of its keys, in place."""
        if self.bias is not None:
            scores += self._of_pairs(self.bias, strip, block.queries, keys)
        elif (far := self.strips.far(strip, block, keys)) is not None:
            scores.add_(far.to(scores.dtype), alpha=NEVER)
        if keys.stop > strip.n_keys:
            scores[..., max(0, strip.n_keys - keys.start) :] = NEVER

    def take_slopes(self, slopes: Tensor, strip: Strip, queries: slice, keys: slice) -> None:
        """Where the bias is a table: of the scores (H, L, K) of a block."""
        if self.slopes is not None:
            at = self.strips.numbers(strip, queries, keys)
            self.slopes.index_add_(1, at, slopes.flatten(1))

    def slope(self) -> Tensor | None:
        """Gradient of the bias, of all slopes that were taken."""
        if self.slopes is None or not isinstance(self.bias, Tensor):
            return None
        at = self._places(self.strips.offsets(self.like.device))
        flat = self.slopes.new_zeros(self.heads, self.bias[0].numel())
        return flat.index_add_(1, at, self.slopes).view_as(self.bias).to(self.bias.dtype)


class _Pass:
    """All blocks once, forward or backward.

    Args:
        like: of the dtype and on the device of scores. seed: of the dropout's draws.
    """

    def __init__(
        self,
        nearby: Neighbourhood,
        bias: Tensor | OffsetBias | None,
        shape: torch.Size,
        like: Tensor,
        dropout: float,
        seed: int,
    ) -> None:
        self.strips, self.scale = nearby.strips.strips, LOG2_E / math.sqrt(shape[2])
        self.added = _Added(nearby, bias, shape[1], like)
        self.dropout, self.dtype = dropout, like.dtype
        # on a CPU it hardly matters which keys of weight 0 lie in between where a sum is float64
        self.summing = torch.float64 if like.device.type == "cpu" else like.dtype
        self.draws = Draws(dropout, torch.Generator(like.device).manual_seed(seed))

    def gathered(self, x: Tensor, rows: Tensor) -> Tensor:
        """(T, H, D) -> (H, n, D)."""
        return x.index_select(0, rows).to(self.dtype).transpose(0, 1).contiguous()

    def queries(self, q: Tensor, strip: Strip) -> Tensor:
        return self.gathered(q, strip.queries) * self.scale

    def scores(self, q: Tensor, k: Tensor, strip: Strip, block: Block, part: slice) -> Tensor:
        """(H, L, K) in base 2."""
        scores = stacked(q[:, block.queries], k[:, part].mT)
        self.added.add(scores, strip, block, part)
        return scores

    def forward(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> None:
        for strip in self.strips:
            queries = self.queries(q, strip)
            keys, values = (self.gathered(x, strip.keys) for x in (k, v))
            for block in strip.blocks:
                mixed, level = self._mixed(queries, keys, values, strip, block)
                some = block.queries
                rows = strip.queries[some.start : min(some.stop, strip.n_queries)]
                out.index_copy_(0, rows, mixed[:, : len(rows)].transpose(0, 1))
                lse.index_copy_(0, rows, level[:, : len(rows), 0].t())

    def _mixed(
        self, q: Tensor, k: Tensor, v: Tensor, strip: Strip, block: Block
    ) -> tuple[Tensor, Tensor]:
        """(H, L, D) what a block's queries attend to, and (H, L, 1) their log-sum-exp."""
        sums: tuple[Tensor, ...] = ()
        for part in block.keys:
            scores = self.scores(q, k, strip, block, part)
            highest = scores.amax(-1, keepdim=True)
            weights = torch.exp2(scores.sub_(highest), out=scores)
            total = weights.sum(-1, keepdim=True, dtype=self.summing).to(self.dtype)
            if self.dropout:
                weights *= self.draws.keep(weights)
            sums = _merged(sums, (stacked(weights, v[:, part]), total, highest))
        mixed, total, highest = sums
        alone = highest < NOBODY
        mixed = mixed.div_(total * self.draws.kept).masked_fill_(alone, 0)
        return mixed, total.log2_().add_(highest).masked_fill_(alone, SILENT)

    def backward(self, saved: tuple[Tensor, ...], slope: Tensor, slopes: list[Tensor]) -> None:
        """Add to the gradients `slopes` of q, k, v what `slope`, that of the output, gives."""
        q, k, v, out, lse = saved
        delta = torch.linalg.vecdot(slope, out)  # (T, H)
        for strip in self.strips:
            queries, given = self.queries(q, strip), self.gathered(slope, strip.queries)
            keys, values = (self.gathered(x, strip.keys) for x in (k, v))
            level, inner = (self.gathered(x[..., None], strip.queries) for x in (lse, delta))
            given[:, strip.n_queries :], inner[:, strip.n_queries :] = 0, 0
            of = [scratch(*x.shape, like=x).zero_() for x in (queries, keys, values)]
            for block in strip.blocks:
                some = block.queries
                for part in block.keys:
                    scores = self.scores(queries, keys, strip, block, part)
                    weights = torch.exp2(scores.sub_(level[:, some]), out=scores)
                    mine = stacked(given[:, some], values[:, part].mT)
                    kept = weights
                    if self.dropout:
                        keep = self.draws.keep(weights).div_(self.draws.kept)
                        mine *= keep
                        kept = keep.mul_(weights)
                    mine.sub_(inner[:, some]).mul_(weights)  # of the scores
                    self.added.take_slopes(mine, strip, some, part)
                    of[0][:, some] += stacked(mine, keys[:, part])
                    of[1][:, part] += stacked(mine.mT, queries[:, some])
                    of[2][:, part] += stacked(kept.mT, given[:, some])
            rows = strip.queries[: strip.n_queries], strip.keys, strip.keys
            for total, at, own in zip(slopes, rows, of, strict=True):
                total.index_add_(0, at, own[:, : len(at)].transpose(0, 1))
        slopes[0] *= 1 / math.sqrt(q.shape[2])
        slopes[1] *= LN_2


def _merged(old: tuple[Tensor, ...], new: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Sums of weighted values and of weights, and the score that both are relative to."""
    if not old:
        return new
    highest = torch.maximum(old[2], new[2])
    for sums in (old, new):
        shrunk = torch.exp2(sums[2] - highest)
        sums[0].mul_(shrunk), sums[1].mul_(shrunk)
    return old[0].add_(new[0]), old[1].add_(new[1]), highest


class _GridAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        nearby: Neighbourhood,
        bias: Tensor | OffsetBias | None,
        dropout: float,
    ) -> Tensor:
        ctx.rest = nearby, dropout, new_seed(dropout)
        lse = wide(q.new_empty(q.shape[:2]))
        out = scratch(*q.shape, like=lse)
        nearby, *drawn = ctx.rest
        _Pass(nearby, bias, q.shape, lse, *drawn).forward(q, k, v, out, lse)
        ctx.function = None if isinstance(bias, Tensor) else bias
        ctx.save_for_backward(q, k, v, out, lse, bias if isinstance(bias, Tensor) else None)
        return out.to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        *saved, table = ctx.saved_tensors
        nearby, dropout, seed = ctx.rest
        bias = ctx.function if table is None else table
        with torch.autocast(slope.device.type, enabled=False):
            q, lse = saved[0], saved[-1]
            back = _Pass(nearby, bias, q.shape, lse, dropout, seed)
            slopes = [scratch(*q.shape, like=lse).zero_() for _ in range(3)]
            back.backward(tuple(saved), wide(slope), slopes)
            of = (x.to(own.dtype) for x, own in zip(slopes, saved, strict=False))
            return *of, None, back.added.slope(), None


def why_not(
    q: Tensor | None = None,
    k: Tensor | None = None,
    v: Tensor | None = None,
    neighbourhood: Neighbourhood | None = None,
    bias: Tensor | OffsetBias | None = None,
    dropout: float = 0.0,
) -> str | None:
    """It needs a neighbourhood in strips."""
    if neighbourhood is not None and not neighbourhood.in_strips:
        return f"a {type(neighbourhood).__name__} is not made of strips"
    return why_not_under_torch_func()


def grid_attention_striped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    neighbourhood: Neighbourhood,
    bias: Tensor | OffsetBias | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """As `grid_attention`; memory is linear in tokens.

    Where all attend to all and nothing is added to scores, it is `attention`, slide by slide.
    """
    if bias is None and isinstance(neighbourhood, Everywhere):
        check_attention(q, k, v, neighbourhood, bias)
        return _of_slides(q, k, v, neighbourhood, dropout)
    return run(_GridAttention, q, k, v, neighbourhood, bias, dropout)


def _of_slides(
    q: Tensor, k: Tensor, v: Tensor, neighbourhood: Everywhere, dropout: float
) -> Tensor:
    sizes = [b - a for a, b in itertools.pairwise(neighbourhood.bounds)]
    slides = (torch.split(wide(x).transpose(0, 1), sizes, 1) for x in (q, k, v))  # (H, n, D)
    with torch.autocast(q.device.type, enabled=False):
        mixed = [attention(*part, dropout) for part in zip(*slides, strict=True) if part[0].numel()]
    return torch.cat(mixed or [v.transpose(0, 1)], 1).transpose(0, 1).to(q.dtype)
