"""The network that scores patches for attention pooling, as one op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wsizoo.ops import products
from wsizoo.ops.draws import Draws
from wsizoo.ops.memory import scratch, zeros
from wsizoo.ops.products import chunks, outer, product
from wsizoo.ops.rows import RowLinear, drop_, fits, plain, share_of

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[Activation, tuple[Activation, Callable[[Tensor, Tensor], Tensor]]] = {
    torch.tanh: (torch.tanh_, torch.ops.aten.tanh_backward),
    torch.relu: (torch.relu_, lambda slope, out: torch.ops.aten.threshold_backward(slope, out, 0)),
}
"""in place, and the slope from the result"""


def attention_scores(
    rows: Tensor,
    value: nn.Linear,
    gate: nn.Linear | None,
    score: nn.Linear,
    drop: nn.Dropout | None = None,
    activation: Activation = torch.tanh,
) -> Tensor:
    """score(drop(act(value(h))) * drop(sigmoid(gate(h)))), or score(drop(act(value(h)))).

    On a CPU in float32 it goes by chunks of rows, with `torch.tanh` and `torch.relu`; its draws are
    then others than those of `drop`, and it cannot be differentiated twice.

    Args:
        rows: (N, E). value, gate: from width E to A. score: from A to K.

    Returns:
        (N, K).

    Cost: N A ((1 + gated) E + K) multiply-adds; two N x A are kept for the backward pass.
    Source: Ilse, Tomczak and Welling, ICML 2018, Eq. 8 and 9, https://arxiv.org/abs/1802.04712
    """
    layers = [value, score] if gate is None else [value, score, gate]
    readable = all(plain(layer, nn.Linear, RowLinear) for layer in layers)
    readable &= drop is None or plain(drop, nn.Dropout)
    share = share_of(drop)
    known = activation in ACTIVATIONS and rows.ndim == 2 and share < 1
    if readable and known and fits(rows, value.weight) and _agree(value, gate, score):
        return map_scores(rows, value, gate, score, share, activation)
    dropped = nn.Identity() if drop is None else drop
    hidden = dropped(activation(value(rows)))  # (N, A)
    if gate is not None:
        hidden = hidden * dropped(torch.sigmoid(gate(rows)))
    scores: Tensor = score(hidden)
    return scores


def _agree(value: nn.Linear, gate: nn.Linear | None, score: nn.Linear) -> bool:
    """Whether the layers fit one another; or else torch itself says what is wrong."""
    alike = gate is None or gate.weight.shape == value.weight.shape
    return alike and score.weight.shape[1] == len(value.weight)


def map_scores(
    rows: Tensor,
    value: nn.Linear,
    gate: nn.Linear | None,
    score: nn.Linear,
    dropout: float,
    activation: Activation,
) -> Tensor:
    """The same by chunks, whoever looks; of any float dtype."""
    apply: Any = _Scores.apply
    of_gate = (None, None) if gate is None else (gate.weight, gate.bias)
    weights = value.weight, value.bias, *of_gate, score.weight, score.bias
    scores: Tensor = apply(rows, *weights, dropout, activation, torch.is_grad_enabled())
    return scores


class _Scores(torch.autograd.Function):
    """Kept: a = act(value(h)), and what it is multiplied with: f = sigmoid(gate(h)) with dropout.

    A product with two dropouts of share p is one with a single dropout of share 1 - (1 - p)^2.
    Where f was dropped, all gradients are 0, so f tells both the gate and what was dropped.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        value: Tensor,
        value_bias: Tensor | None,
        gate: Tensor | None,
        gate_bias: Tensor | None,
        score: Tensor,
        score_bias: Tensor | None,
        dropout: float,
        activation: Activation,
        keep: bool,
    ) -> Tensor:
        share = dropout if gate is None else 1 - (1 - dropout) ** 2
        n = len(rows) if keep else min(len(rows), products.FEW)
        acts = scratch(n, len(value), like=value)
        factors = None if gate is None and not share else scratch(*acts.shape, like=acts)
        scores = rows.new_empty(len(rows), len(score))
        for _, some in chunks(0, len(rows)):
            at = some if keep else slice(some.stop - some.start)
            hidden = product(rows[some], value.t(), value_bias, out=acts[at])
            ACTIVATIONS[activation][0](hidden)
            if factors is not None:
                factor = factors[at].fill_(1)
                if gate is not None:
                    product(rows[some], gate.t(), gate_bias, out=factor).sigmoid_()
                if share:
                    drop_(factor, share)
                hidden = hidden * factor
            torch.mm(hidden, score.t(), out=scores[some])
        if score_bias is not None:
            scores += score_bias
        if keep:
            ctx.save_for_backward(rows, value, gate, score, acts, factors)
        ctx.kept, ctx.slope_of = Draws(share).kept, ACTIVATIONS[activation][1]
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        rows, value, gate, score, acts, factors = ctx.saved_tensors
        of_rows = scratch(*rows.shape, like=rows) if ctx.needs_input_grad[0] else None
        layers = [value] if gate is None else [value, gate]
        found = [(zeros(layer), layer.new_zeros(len(layer))) for layer in layers]
        of_score = torch.zeros_like(score)
        for _, some in chunks(0, len(rows)):
            act, part = acts[some], slope[some] @ score  # (n, A)
            hidden = act
            if factors is not None:
                hidden = act * factors[some]
                part *= factors[some]
            of_score.addmm_(slope[some].t(), hidden)
            parts = [ctx.slope_of(part, act)]
            if gate is not None:
                part *= act
                parts.append(part.addcmul_(part, factors[some], value=-ctx.kept))  # 1 - sigmoid
            for i, (each, layer, found_of) in enumerate(zip(parts, layers, found, strict=True)):
                outer(each, rows[some], found_of[0])
                found_of[1].add_(each.sum(0))
                if of_rows is not None:
                    to = of_rows[some]
                    product(each, layer, added=to if i else None, out=to)
        of_gate = found[1] if gate is not None else (None, None)
        given = of_rows, *found[0], *of_gate, of_score, slope.sum(0), None, None, None
        needed = ctx.needs_input_grad
        return tuple(x if need else None for x, need in zip(given, needed, strict=True))
