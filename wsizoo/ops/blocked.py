"""Grid attention as dense products over blocks, forward and backward, without a pair stored.

The pieces `attend` and `attend_backward` are also for layers that fuse more around them.

Each block is one small dense softmax. Blocks of several kinds are merged by the log-sum-exp of
their parts, which makes them one softmax over the union; the backward pass computes the weights
again from it. Scores are in base 2: see `base_2`, which says too what `striped` is for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsizoo.ops._dispatch import why_not_under_torch_func
from wsizoo.ops.base_2 import LN_2, LOG2_E, NEVER, NOBODY, keep_mask, run, wide
from wsizoo.ops.grid_attention import OffsetBias
from wsizoo.ops.memory import scratch
from wsizoo.ops.neighbourhoods import Blocks, Neighbourhood

CHUNK = 1 << 18  # scores at a time on a CPU, so that they stay in its cache; more on a GPU
GPU_CHUNK = 1 << 26


@dataclass
class Attended:
    """What `attend` found.

    Args:
        out: (T + 1, H, D), the last row is of nobody. lse: (T + 1, H) log2 of the sum of exp2 of
            the scores; inf for a token without a key.
        kept: bool masks of the dropout by chunk.
    """

    out: Tensor
    lse: Tensor
    kept: list[Tensor]


def attend(
    rows: Tensor, neighbourhood: Neighbourhood, bias: Tensor | None, dropout: float = 0.0
) -> Attended:
    """Softmax attention of every token over its neighbourhood.

    Args:
        rows: (T + 1, 3, H, D), queries, keys and values, the queries scaled by log2(e) / sqrt(D);
            the last row is 0.
        bias: (H, 2 R + 1, 2 R + 1) as of `grid_attention`, or None.
        dropout: share of weights dropped.
    """
    t, _, heads, dim = rows.shape
    lse = wide(rows.new_empty(t, heads))
    out = scratch(t, heads, dim, like=lse)
    lse[-1] = torch.inf
    kept: list[Tensor] = []
    for chunk in _chunks(neighbourhood, rows, bias):
        scores = chunk.scores()
        highest = scores.amax(-1, keepdim=True)
        weights = torch.exp2(scores.sub_(highest), out=scores)  # (c, L, K)
        total = weights.sum(-1, keepdim=True)  # (c, L, 1)
        if dropout:
            kept.append(keep_mask(weights, dropout))
            weights *= kept[-1]
        part = chunk.product(weights, chunk.v).div_(total * (1 - dropout))  # (c, L, D)
        chunk.merge(out, lse, part, highest.add_(total.log2_()))
    _silence(out, lse)
    return Attended(out, lse, kept)


def attend_backward(
    rows: Tensor,
    neighbourhood: Neighbourhood,
    bias: Tensor | None,
    found: Attended,
    slope: Tensor,
    delta: Tensor,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of `attend`.

    Args:
        slope: (T, H, D) gradient of `out` without its last row.
        delta: (T, H) its inner product with `out`.

    Returns:
        (T + 1, 3, H, D) of `rows`, and of `bias`.
    """
    slopes = scratch(*rows.shape, like=delta).zero_()
    of_bias: dict[int, Tensor] = {}
    kept = iter(found.kept)
    for chunk in _chunks(neighbourhood, rows, bias):
        scores = chunk.scores()
        weights = torch.exp2(scores.sub_(chunk.of_queries(found.lse)), out=scores)  # (c, L, K)
        given = chunk.of_queries(slope)  # (c, L, D)
        if dropout:
            given.div_(1 - dropout)
        inner = chunk.product(given, chunk.v.mT)  # (c, L, K)
        keep = next(kept) if dropout else None
        if keep is not None:
            inner.mul_(keep)
        inner.sub_(chunk.of_queries(delta)).mul_(weights)
        if keep is not None:
            weights.mul_(keep)
        chunk.add_slopes(slopes, inner.mul_(LN_2), chunk.product(weights.mT, given))
        if bias is not None:
            chunk.add_bias_slope(of_bias, inner)
    return slopes, _bias_slope(neighbourhood, bias, of_bias)


class _Chunk:
    """Some blocks of one kind, all heads: c = blocks x heads small attentions."""

    def __init__(
        self, kind: int, blocks: Blocks, some: slice, rows: Tensor, added: Tensor | None
    ) -> None:
        self.kind, (self.heads, self.dim) = kind, rows.shape[2:]
        queries, keys = blocks.queries[some], blocks.keys[some]
        self.queries = self._at(queries, self.heads)
        places = self._at(queries, 3 * self.heads)  # of queries among rows, keys and values behind
        others = places if blocks.keys is blocks.queries else self._at(keys, 3 * self.heads)
        self.places = places, others + self.heads, others + 2 * self.heads
        self.empty = keys == len(rows) - 1  # (n, K)
        self.added = added
        at = blocks.forbidden
        self.forbidden = at[(at[:, 0] >= some.start) & (at[:, 0] < some.stop)]
        self.start = some.start
        self.shape = len(keys) * self.heads, -1
        flat = rows.view(-1, self.dim)
        self.q, self.k, self.v = (
            flat.index_select(0, place).view(*self.shape, self.dim) for place in self.places
        )

    def _at(self, tokens: Tensor, width: int) -> Tensor:
        """(n, L) -> (n H L,), a token's first head among rows of so many heads a token."""
        heads = torch.arange(self.heads, device=tokens.device)
        return (tokens[:, None] * width + heads[:, None]).flatten()

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """Batched product of factors in the rows' dtype, at least float32."""
        return wide(torch.bmm(left.to(self.q.dtype), right.to(self.q.dtype)))

    def scores(self) -> Tensor:
        """(c, L, K) in base 2."""
        scores = self.product(self.q, self.k.mT)
        by_head = scores.view(-1, self.heads, *scores.shape[1:])  # (n, H, L, K)
        if self.added is not None:
            by_head += self.added
        by_head += (self.empty * NEVER).to(scores.dtype)[:, None, None]
        if len(self.forbidden):
            block, query, key = self.forbidden.unbind(1)
            by_head[block - self.start, :, query, key] = NEVER
        return scores

    def of_queries(self, values: Tensor) -> Tensor:
        """(T or T + 1, H, ...) -> (c, L, ...), three dimensions or more; any number for nobody."""
        flat = values.flatten(0, 1)
        at = self.queries.clamp(max=len(flat) - 1)
        return flat.index_select(0, at).view(*self.shape, flat[0].numel())

    def merge(self, out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
        """Take a further part of the softmax into `out` and `lse`."""
        if self.kind:
            old = self.of_queries(lse)
            new = torch.logaddexp2(old, part_lse)
            part.mul_(torch.exp2(part_lse - new))
            part.addcmul_(self.of_queries(out), torch.exp2(old - new))
            part_lse = new
        out.view(-1, self.dim).index_copy_(0, self.queries, part.view(-1, self.dim))
        lse.view(-1).index_copy_(0, self.queries, part_lse.view(-1))

    def add_slopes(self, slopes: Tensor, inner: Tensor, of_v: Tensor) -> None:
        """Add what these blocks give to q, k and v."""
        parts = self.product(inner, self.k), self.product(inner.mT, self.q), of_v
        for place, part in zip(self.places, parts, strict=True):
            slopes.view(-1, self.dim).index_add_(0, place, part.view(-1, self.dim))

    def add_bias_slope(self, sums: dict[int, Tensor], inner: Tensor) -> None:
        own = inner.view(-1, self.heads, *inner.shape[1:]).sum(0)  # (H, L, K)
        sums[self.kind] = sums[self.kind].add_(own) if self.kind in sums else own


def _chunks(neighbourhood: Neighbourhood, rows: Tensor, bias: Tensor | None) -> Iterator[_Chunk]:
    limit = CHUNK if rows.device.type == "cpu" else GPU_CHUNK
    for kind, blocks in enumerate(neighbourhood.blocks):
        step = max(1, limit // (rows.shape[2] * blocks.allowed.numel()))
        added = _added(neighbourhood, blocks, rows, bias)
        for start in range(0, len(blocks.queries), step):
            some = slice(start, min(start + step, len(blocks.queries)))
            yield _Chunk(kind, blocks, some, rows, added)


def _added(
    neighbourhood: Neighbourhood, blocks: Blocks, rows: Tensor, bias: Tensor | None
) -> Tensor | None:
    """(H or 1, L, K), added to the score of a pair of places: bias, NEVER where not allowed."""
    never = wide(torch.where(blocks.allowed, 0.0, NEVER).to(rows.device, rows.dtype))
    if bias is None:
        return never[None]
    at = blocks.offset + neighbourhood.reach
    added = bias.to(never.dtype)[:, at[..., 0], at[..., 1]] * LOG2_E + never
    return added.clamp_(min=NEVER)  # of an infinite bias


def _bias_slope(
    neighbourhood: Neighbourhood, bias: Tensor | None, sums: dict[int, Tensor]
) -> Tensor | None:
    """Sums over the blocks (H, L, K) of each kind -> the gradient of the bias, by offset."""
    if bias is None:
        return None
    edge = bias.shape[-1]
    slope = wide(bias.new_zeros(len(bias), edge * edge))
    for kind, own in sums.items():
        offset = neighbourhood.blocks[kind].offset + neighbourhood.reach
        at = offset[..., 0] * edge + offset[..., 1]  # (L, K)
        slope.index_add_(1, at.flatten(), own.flatten(1).to(slope.dtype), alpha=LOG2_E)
    return slope.view_as(bias).to(bias.dtype)


def _silence(out: Tensor, lse: Tensor) -> None:
    """Zero the rows of nobody and of tokens that have no key."""
    out[-1], lse[-1] = 0, torch.inf
    alone = lse < NOBODY
    if bool(alone.any()):
        out[alone], lse[alone] = 0, torch.inf


class _GridAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        neighbourhood: Neighbourhood,
        bias: Tensor | None,
        dropout: float,
    ) -> Tensor:
        t, heads, dim = q.shape
        rows = scratch(t + 1, 3, heads, dim, like=q)
        torch.mul(q, LOG2_E / math.sqrt(dim), out=rows[:t, 0])
        rows[:t, 1], rows[:t, 2], rows[t] = k, v, 0
        found = attend(rows, neighbourhood, bias, dropout)
        ctx.save_for_backward(rows, bias, found.out, found.lse, *found.kept)
        ctx.neighbourhood, ctx.dropout = neighbourhood, dropout
        return found.out[:t].to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        rows, bias, out, lse, *kept = ctx.saved_tensors
        t, dim, slope = len(slope), slope.shape[-1], wide(slope)
        found, nearby = Attended(out, lse, kept), ctx.neighbourhood
        with torch.autocast(rows.device.type, enabled=False):
            delta = torch.linalg.vecdot(slope, out[:t])
            slopes, of_bias = attend_backward(rows, nearby, bias, found, slope, delta, ctx.dropout)
        of_q, of_k, of_v = slopes[:t].unbind(1)
        return of_q * (LOG2_E / math.sqrt(dim)), of_k, of_v, None, of_bias, None


def why_not(
    q: Tensor | None = None,
    k: Tensor | None = None,
    v: Tensor | None = None,
    neighbourhood: Neighbourhood | None = None,
    bias: Tensor | OffsetBias | None = None,
    dropout: float = 0.0,
) -> str | None:
    """It needs a neighbourhood in blocks, and a bias that is a table."""
    if neighbourhood is not None and not neighbourhood.in_blocks:
        return f"a {type(neighbourhood).__name__} is not made of blocks"
    if callable(bias) and not isinstance(bias, Tensor):
        return "the bias is a function, blocks take a table"
    return why_not_under_torch_func()


def grid_attention_blocked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    neighbourhood: Neighbourhood,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """As `grid_attention`; memory and products by pairs of places in blocks, not by T x T."""
    return run(_GridAttention, q, k, v, neighbourhood, bias, dropout)
