"""How tokens and global tokens hear each other on the fused paths; see `fused_attention.py`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from wsizoo.ops import Neighbourhood, chunks, product
from wsizoo.ops.base_2 import LOG2_E, NEVER, keep_mask


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


class Meeting:
    """Tokens and global tokens: what each hears of the other."""

    def __init__(self, scores: Tensor, w: Weights, plan: Plan) -> None:
        """scores: (T, H M) of asks, and behind them of replies where M > 1."""
        assert w.asks is not None and w.replies is not None
        asked = w.asks.shape[1]
        self.w, self.asks = w, _Asks(scores[:, :asked], plan)
        self.replies = _Replies(scores[:, asked:], w, plan)
        self.of_asks = self.of_keys = None

    def begin(self, slope: Tensor, delta: Tensor, *of_heard: Tensor) -> None:
        """Take the gradients of all that came of it; leave in `delta` the local attention's."""
        self.asks.hear_back(*of_heard)
        self.of_replies = self.replies.backward(slope, delta, self.w.replies)
        self.of_asks = torch.zeros_like(self.w.asks)
        if self.w.reply_keys is not None:
            self.of_keys = torch.zeros_like(self.w.reply_keys)

    def backward(self, slide: int, some: slice, normed: Tensor, of_normed: Tensor) -> Tensor:
        """Add what some rows of a slide give to gradients; `of_normed` comes back."""
        of_score = self.asks.of_score(slide, some, normed)
        left, right = [of_score, self.asks.weights[some]], [self.w.asks, self.asks.of_mean]
        self.of_asks[slide].addmm_(of_score.t(), normed)
        if self.of_keys is not None:
            of_reply = self.replies.of_scores[some]
            left, right = [*left, of_reply], [*right, self.w.reply_keys]
            self.of_keys[slide].addmm_(of_reply.t(), normed)
        asked = torch.cat([part[slide] for part in right])
        return product(torch.cat(left, 1), asked, added=of_normed)

    def grads(self) -> dict[str, Tensor | None]:
        """Of `Weights`, by name."""
        return {
            "asks": self.of_asks,
            "reply_keys": self.of_keys,
            "reply_bias": self.replies.of_bias(),
            "replies": self.of_replies,
        }


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
        # aliases: what a function keeps must not be what it returned, or neither is ever freed
        return (kept.view_as(kept) for kept in (self.mean, self.mass, self.lse))

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
        for slide, some in chunks(*self.plan.bounds):
            for m in range(replies.shape[2]):
                out[some].addcmul_(self.weights[some, :, m, None], replies[slide, :, m])

    def backward(self, slope: Tensor, delta: Tensor, replies: Tensor) -> Tensor:
        """Gradient of `replies`; takes from `delta` (T, H) what is the replies' own."""
        of_replies = torch.zeros_like(replies)
        of_weights = torch.empty_like(self.weights)
        for slide, some in chunks(*self.plan.bounds):
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
