"""The two attentions of a SPAN layer with everything around them fused, for CPUs.

The same numbers as the modules of `layers.py`, in less time and memory:

- The tokens' second queries, keys and values are never computed. A global token's score of token t
  is n_t . (Wk2^T q2), and what it receives is Wv2 (sum_t a_t n_t): matrices with as many columns as
  there are heads and global tokens.
- Normalised rows and attention weights are computed again in the backward pass, never kept.
- Rows go in chunks that a cache holds; large tensors lie where those of the last step lay.

Symbols: T tokens of all B slides, E wide, H heads of D, M global tokens a slide; "asks" are the
scores that global tokens give tokens, "replies" what tokens receive from global tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsizoo.ops import Neighbourhood, scratch
from wsizoo.ops.blocked import LOG2_E, NEVER, Attended, attend, attend_backward, keep_mask

ROWS = 1024  # of a chunk
NORM = torch.ops.aten.native_layer_norm
NORM_BACKWARD = torch.ops.aten.native_layer_norm_backward
LOCAL = ("q", "k", "v")


@dataclass(frozen=True)
class Plan:
    """What a layer's attention is about, besides tensors.

    Args:
        neighbourhood: of the local attention.
        bounds: slide b's tokens are rows bounds[b] to bounds[b + 1].
        outsiders: (F,) int64, tokens without global attention.
        heads, head_dim: H and D.
        dropout: share of attention weights dropped, 0 outside of training.
        eps: of the norm.
    """

    neighbourhood: Neighbourhood
    bounds: tuple[int, ...]
    outsiders: Tensor
    heads: int
    head_dim: int
    dropout: float
    eps: float

    @property
    def scale(self) -> float:
        """Of queries, as `attend` wants them."""
        return LOG2_E / math.sqrt(self.head_dim)


@dataclass
class Weights:
    """Tensors of a layer's attention, arranged for it.

    Args:
        norm_weight, norm_bias: (E,).
        q, k, v: (E, E) of the local attention. q_bias, k_bias, v_bias: (E,).
        table: (H, 2 R + 1, 2 R + 1) or None.
        asks: (B, H M, E), a token's normed row times it is a global token's score of the token.
        reply_keys: (B, H M, E), likewise the token's score of the global token; None where M = 1.
        reply_bias: (B, H M), what is added; None where M = 1.
        replies: (B, H, M, D), the global tokens' values.
    """

    norm_weight: Tensor
    norm_bias: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    q_bias: Tensor
    k_bias: Tensor
    v_bias: Tensor
    table: Tensor | None
    asks: Tensor | None
    reply_keys: Tensor | None
    reply_bias: Tensor | None
    replies: Tensor | None


class Total:
    """A gradient summed over chunks; memory of a large one is the last step's, and not zeroed."""

    def __init__(self, like: Tensor) -> None:
        self._value = scratch(*like.shape, like=like)
        self._begun = False

    def add(self, part: Tensor) -> None:
        self._value = self._value.add_(part) if self._begun else self._value.copy_(part)
        self._begun = True

    def add_product(self, left: Tensor, right: Tensor) -> None:
        if self._begun:
            self._value.addmm_(left, right)
        else:
            torch.mm(left, right, out=self._value)
        self._begun = True

    @property
    def value(self) -> Tensor:
        return self._value if self._begun else self._value.zero_()


@dataclass
class Heard:
    """What the global tokens heard from the tokens.

    Args:
        mean: (B, H M, E) weighted mean of the normed tokens, weights of the softmax over tokens.
        mass: (B, H M) sum of those weights, 1 but for dropout.
        lse: (B, H M) log of the sum of the exponentials of the scores.
    """

    mean: Tensor
    mass: Tensor
    lse: Tensor


def attention(x: Tensor, weights: Weights, plan: Plan) -> tuple[Tensor, Tensor, Heard | None]:
    """Local attention plus the replies of the global tokens, before the output projection.

    Args:
        x: (T, E).

    Returns:
        (T, E); x itself, to be added to what comes of it (so gradients meet without one more copy);
        and what the global tokens heard, None where there are none.
    """
    apply: Any = _Attention.apply
    out, same, *heard = apply(x, plan, *vars(weights).values())
    return out, same, Heard(*heard) if heard else None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Plan, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        w = Weights(*tensors)  # type: ignore[arg-type]
        rows, scores, statistics = _project(x, w, plan)
        found = attend(rows, plan.neighbourhood, w.table, plan.dropout)
        ctx.plan = plan
        ctx.save_for_backward(x, *tensors, rows, found.out, found.lse, *found.kept)
        out = found.out[:-1]  # (T, H, D)
        if w.asks is None or w.replies is None:
            return out.flatten(1), x
        asked = w.asks.shape[1]  # H M columns
        ctx.replies = _Replies(scores[:, asked:], w, plan)
        ctx.replies.add_to(out, w.replies)
        ctx.asks = _Asks(scores[:, :asked], plan)
        return out.flatten(1), x, *ctx.asks.heard(x, *statistics, w)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, of_x: Tensor, *of_heard: Tensor) -> tuple[Any, ...]:
        x, *saved = ctx.saved_tensors
        grads: dict[str, Tensor | None] = dict.fromkeys(Weights.__dataclass_fields__)
        w, (rows, out, lse, *kept) = Weights(*saved[: len(grads)]), saved[len(grads) :]
        plan, slope = ctx.plan, slope.view_as(out[:-1])  # (T, H, D)
        delta = torch.linalg.vecdot(slope, out[:-1])  # (T, H) of both attentions
        asks = replies = None
        if w.replies is not None:
            asks, replies = ctx.asks, ctx.replies
            asks.hear_back(*of_heard)
            grads["replies"] = replies.backward(slope, delta, w.replies)  # leaves the local delta
        found = Attended(out, lse, kept)
        nearby = plan.neighbourhood, w.table, found, slope, delta, plan.dropout
        slopes, grads["table"] = attend_backward(rows, *nearby)
        _project_backward(x, of_x, slopes.flatten(1), asks, replies, w, plan, grads)
        return of_x, None, *grads.values()


def _chunks(plan: Plan) -> Iterator[tuple[int, slice]]:
    """The rows of each slide in chunks."""
    for slide, (start, end) in enumerate(itertools.pairwise(plan.bounds)):
        for at in range(start, end, ROWS):
            yield slide, slice(at, min(at + ROWS, end))


def _project(x: Tensor, w: Weights, plan: Plan) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Rows for `attend`, scores of asks and replies (T, 1 or 2 x H M), mean and rstd of x."""
    t, width = x.shape
    rows = scratch(t + 1, 3 * width, like=x)
    rows[t] = 0  # of nobody
    columns = [c for c in (w.asks, w.reply_keys) if c is not None]
    columns_of = torch.cat(columns, 1).mT if columns else x.new_empty(len(plan.bounds), width, 0)
    scores = x.new_empty(t, columns_of.shape[-1])
    mean, rstd = x.new_empty(t, 1), x.new_empty(t, 1)
    for slide, some in _chunks(plan):
        normed, mean[some], rstd[some] = NORM(
            x[some], x.shape[1:], w.norm_weight, w.norm_bias, plan.eps
        )
        for name, part in zip(LOCAL, rows[some].split(width, 1), strict=True):
            weight, bias = getattr(w, name), getattr(w, f"{name}_bias")
            torch.mm(normed, weight.t(), out=part).add_(bias)
        rows[some, :width] *= plan.scale
        torch.mm(normed, columns_of[slide], out=scores[some])
    return rows.view(t + 1, 3, plan.heads, -1), scores, (mean, rstd)


def _project_backward(
    x: Tensor,
    of_x: Tensor,
    slopes: Tensor,
    asks: _Asks | None,
    replies: _Replies | None,
    w: Weights,
    plan: Plan,
    grads: dict[str, Tensor | None],
) -> None:
    """Add to `of_x`, and fill `grads`."""
    names = [*LOCAL, *(f"{name}_bias" for name in LOCAL), "norm_weight", "norm_bias"]
    totals = {name: Total(getattr(w, name)) for name in names}
    of_asks = None if asks is None else torch.zeros_like(w.asks)
    of_keys = None if w.reply_keys is None else torch.zeros_like(w.reply_keys)
    for slide, some in _chunks(plan):
        normed, mean, rstd = NORM(x[some], x.shape[1:], w.norm_weight, w.norm_bias, plan.eps)
        of_normed = Total(normed)
        slopes[some, : x.shape[1]] *= plan.scale
        for name, slope in zip(LOCAL, slopes[some].split(x.shape[1], 1), strict=True):
            of_normed.add_product(slope, getattr(w, name))
            totals[name].add_product(slope.t(), normed)
            totals[f"{name}_bias"].add(slope.sum(0))
        if asks is not None:
            of_score = asks.of_score(slide, some, normed)
            parts = [(of_score, w.asks[slide]), (asks.weights[some], asks.of_mean[slide])]
            of_asks[slide].addmm_(of_score.t(), normed)
            if of_keys is not None:
                parts.append((replies.of_scores[some], w.reply_keys[slide]))
                of_keys[slide].addmm_(replies.of_scores[some].t(), normed)
            left, right = zip(*parts, strict=True)
            of_normed.add_product(torch.cat(left, 1), torch.cat(right))
        of_chunk, of_scale, of_shift = NORM_BACKWARD(
            *(of_normed.value, x[some], x.shape[1:], mean, rstd),
            *(w.norm_weight, w.norm_bias, [True] * 3),
        )
        of_x[some] += of_chunk
        totals["norm_weight"].add(of_scale)
        totals["norm_bias"].add(of_shift)
    grads.update({name: total.value for name, total in totals.items()})
    grads.update(asks=of_asks, reply_keys=of_keys)
    if replies is not None:
        grads["reply_bias"] = replies.of_bias()


class _Asks:
    """The softmax of each global token's head over a slide's tokens."""

    def __init__(self, scores: Tensor, plan: Plan) -> None:
        """scores: (T, H M)."""
        scores[plan.outsiders] = NEVER
        self.plan = plan
        ends = list(itertools.pairwise(plan.bounds))
        self.lse = torch.stack([scores[a:b].logsumexp(0) for a, b in ends])  # (B, H M)
        self.full = torch.cat([(scores[a:b] - self.lse[i]).exp_() for i, (a, b) in enumerate(ends)])
        self.keep = None
        self.weights = self.full
        if plan.dropout:
            self.keep = keep_mask(scores, plan.dropout) / (1 - plan.dropout)
            self.weights = self.full * self.keep  # (T, H M)

    def heard(self, x: Tensor, mean: Tensor, rstd: Tensor, w: Weights) -> Iterator[Tensor]:
        """The fields of `Heard`, from rows that were not kept normed."""
        means, masses = [], []
        for a, b in itertools.pairwise(self.plan.bounds):
            weights = self.weights[a:b]
            scaled = weights * rstd[a:b]
            masses.append(mass := weights.sum(0))
            centred = scaled.t() @ x[a:b] - (scaled.t() @ mean[a:b])  # (H M, E)
            means.append(centred * w.norm_weight + mass[:, None] * w.norm_bias)
        self.mean, self.mass = torch.stack(means), torch.stack(masses)
        return iter((self.mean, self.mass, self.lse))

    def hear_back(self, of_mean: Tensor, of_mass: Tensor, of_lse: Tensor) -> None:
        """Take the gradients of `Heard`."""
        self.of_mean, self.of_mass = of_mean, of_mass
        inner = (of_mean * self.mean).sum(-1) + of_mass * self.mass
        self.lift = of_lse - inner  # (B, H M)

    def of_score(self, slide: int, some: slice, normed: Tensor) -> Tensor:
        """(t, H M) gradient of the scores of some rows."""
        of_weight = torch.addmm(self.of_mass[slide], normed, self.of_mean[slide].t())
        if self.keep is not None:
            of_weight *= self.keep[some]
        return of_weight.add_(self.lift[slide]).mul_(self.full[some])


class _Replies:
    """What each token's head receives: a softmax over the M global tokens of its slide."""

    def __init__(self, scores: Tensor, w: Weights, plan: Plan) -> None:
        """scores: (T, H M), or (T, 0) where M is 1."""
        self.plan, self.of_scores = plan, scores
        t = plan.bounds[-1]
        if w.reply_bias is None:
            full = scores.new_ones(t, plan.heads, 1)
        else:
            bias = w.reply_bias.repeat_interleave(_lengths(plan, scores), 0, output_size=t)
            full = (scores + bias).view(t, plan.heads, -1).softmax(-1)
        full[plan.outsiders] = 0
        self.full, self.keep = full, None  # (T, H, M)
        if plan.dropout:
            self.keep = keep_mask(full, plan.dropout) / (1 - plan.dropout)
        self.weights = full if self.keep is None else full * self.keep

    def add_to(self, out: Tensor, replies: Tensor) -> None:
        """out: (T, H, D). replies: (B, H, M, D)."""
        for slide, some in _chunks(self.plan):
            for m in range(replies.shape[2]):
                out[some].addcmul_(self.weights[some, :, m, None], replies[slide, :, m])

    def backward(self, slope: Tensor, delta: Tensor, replies: Tensor) -> Tensor:
        """Gradient of `replies`; takes from `delta` (T, H) what is the replies' own."""
        of_replies = torch.zeros_like(replies)
        of_weights = torch.empty_like(self.weights)
        for slide, some in _chunks(self.plan):
            own = slope[some].transpose(0, 1)  # (H, t, D)
            of_weights[some] = torch.bmm(own, replies[slide].mT).transpose(0, 1)
            of_replies[slide].baddbmm_(self.weights[some].permute(1, 2, 0), own)
        own_delta = (of_weights * self.weights).sum(-1)  # (T, H)
        delta -= own_delta
        if self.of_scores.shape[1]:
            if self.keep is not None:
                of_weights *= self.keep
            self.of_scores = (self.full * (of_weights - own_delta[..., None])).flatten(1)
        return of_replies

    def of_bias(self) -> Tensor | None:
        """(B, H M) gradient of `reply_bias`, after `backward`."""
        if not self.of_scores.shape[1]:
            return None
        ends = itertools.pairwise(self.plan.bounds)
        return torch.stack([self.of_scores[a:b].sum(0) for a, b in ends])


def _lengths(plan: Plan, like: Tensor) -> Tensor:
    return torch.tensor(plan.bounds, device=like.device).diff()
