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

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsizoo.ops import chunks, product, scratch
from wsizoo.ops.blocked import Attended, attend, attend_backward
from wsizoo_plugin_span.fused_globals import Heard, Meeting, Plan, Weights
from wsizoo_plugin_span.fused_pieces import NORM, NORM_BACKWARD, Total

LOCAL = ("q", "k", "v")


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
        ctx.meeting = None
        if w.asks is None:
            return out.flatten(1), x
        ctx.meeting = Meeting(scores, w, plan)
        ctx.meeting.replies.add_to(out, w.replies)
        return out.flatten(1), x, *ctx.meeting.asks.heard(x, *statistics, w)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, of_x: Tensor, *of_heard: Tensor) -> tuple[Any, ...]:
        x, *saved = ctx.saved_tensors
        grads: dict[str, Tensor | None] = dict.fromkeys(Weights.__dataclass_fields__)
        w, (rows, out, lse, *kept) = Weights(*saved[: len(grads)]), saved[len(grads) :]
        plan, slope = ctx.plan, slope.view_as(out[:-1])  # (T, H, D)
        delta = slope.new_empty(slope.shape[:2])  # (T, H) of both attentions
        for _, some in chunks(0, len(slope)):
            torch.linalg.vecdot(slope[some], out[some], out=delta[some])
        if ctx.meeting is not None:
            ctx.meeting.begin(slope, delta, *of_heard)
        found = Attended(out, lse, kept)
        nearby = plan.neighbourhood, w.table, found, slope, delta, plan.dropout
        slopes, grads["table"] = attend_backward(rows, *nearby)
        wanted = {name for name, asks in zip(grads, ctx.needs_input_grad[2:], strict=True) if asks}
        _project_backward(x, of_x, slopes.flatten(1), ctx.meeting, w, plan, wanted, grads)
        if ctx.meeting is not None:
            grads.update(ctx.meeting.grads())
        return of_x, None, *grads.values()


def _project(x: Tensor, w: Weights, plan: Plan) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Rows for `attend`, scores of asks and replies (T, 1 or 2 x H M), mean and rstd of x."""
    t, width = x.shape
    rows = scratch(t + 1, 3 * width, like=x)
    rows[t] = 0  # of nobody
    columns = [c for c in (w.asks, w.reply_keys) if c is not None]
    columns_of = torch.cat(columns, 1).mT if columns else x.new_empty(len(plan.bounds), width, 0)
    scores = x.new_empty(t, columns_of.shape[-1])
    mean, rstd = x.new_empty(t, 1), x.new_empty(t, 1)
    for slide, some in chunks(*plan.bounds):
        normed, mean[some], rstd[some] = NORM(
            x[some], x.shape[1:], w.norm_weight, w.norm_bias, plan.eps
        )
        for name, part in zip(LOCAL, rows[some].split(width, 1), strict=True):
            weight, bias = getattr(w, name), getattr(w, f"{name}_bias")
            product(normed, weight.t(), bias, out=part)
        rows[some, :width] *= plan.scale
        product(normed, columns_of[slide], out=scores[some])
    return rows.view(t + 1, 3, plan.heads, -1), scores, (mean, rstd)


def _project_backward(
    x: Tensor,
    of_x: Tensor,
    slopes: Tensor,
    meeting: Meeting | None,
    w: Weights,
    plan: Plan,
    wanted: set[str],
    grads: dict[str, Tensor | None],
) -> None:
    """Add to `of_x`, and fill `grads` of wanted weights. slopes: (T + 1, 3 E), overwritten."""
    names = [*LOCAL, *(f"{name}_bias" for name in LOCAL), "norm_weight", "norm_bias"]
    totals = {name: Total(getattr(w, name), name in wanted) for name in names}
    for slide, some in chunks(*plan.bounds):
        normed, mean, rstd = NORM(x[some], x.shape[1:], w.norm_weight, w.norm_bias, plan.eps)
        of_normed = None
        slopes[some, : x.shape[1]] *= plan.scale
        for name, part in zip(LOCAL, slopes[some].split(x.shape[1], 1), strict=True):
            slope = part.contiguous()
            of_normed = product(slope, getattr(w, name), added=of_normed)
            totals[name].add_outer(slope, normed)
            totals[f"{name}_bias"].add(slope.sum(0))
        if meeting is not None:
            of_normed = meeting.backward(slide, some, normed, of_normed)
        of_chunk, of_scale, of_shift = NORM_BACKWARD(
            *(of_normed, x[some], x.shape[1:], mean, rstd),
            *(w.norm_weight, w.norm_bias, [True] * 3),
        )
        of_x[some] += of_chunk
        totals["norm_weight"].add(of_scale)
        totals["norm_bias"].add(of_shift)
    grads.update({name: total.gradient for name, total in totals.items()})
