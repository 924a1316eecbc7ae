"""What a SPAN network does row by row, fused for CPUs: input projection, the rest of a layer after
attention, and depthwise pooling.

As in `fused_attention.py`: rows in chunks that a cache holds, nothing kept that is cheap to compute
again, large tensors in memory that the step before has used.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsizoo.ops import Rulebook, chunks, product, scratch
from wsizoo.ops.base_2 import keep_mask
from wsizoo_plugin_span.fused_pieces import (
    NORM,
    NORM_BACKWARD,
    RELU_BACKWARD,
    Total,
    pieces,
)

KEPT = 2048  # rows; of more, the hidden layer is computed again rather than kept


def _split(tensors: Sequence[Tensor], *lengths: int) -> list[Sequence[Tensor]]:
    """Groups of these lengths, and the rest."""
    ends = [0, *itertools.accumulate(lengths), len(tensors)]
    return [tensors[a:b] for a, b in itertools.pairwise(ends)]


def project(features: Tensor, weight: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    """Linear, then dropout: (N, D) of any float dtype -> (N, E) in that of `weight` (E, D)."""
    apply: Any = _Project.apply
    projected: Tensor = apply(features, weight, bias, dropout)
    return projected


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, dropout: float
    ) -> Tensor:
        out = scratch(len(features), len(weight), like=weight)
        keep = scratch(*out.shape, like=out.new_empty(0, dtype=torch.bool)) if dropout else None
        for _, some in chunks(0, len(out)):
            product(features[some].to(weight.dtype), weight.t(), bias, out=out[some])
            if keep is not None:
                keep[some] = keep_mask(out[some], dropout)
                out[some].mul_(keep[some]).div_(1 - dropout)
        ctx.save_for_backward(features, weight, keep)
        ctx.dropout = dropout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, keep = ctx.saved_tensors
        of_weight = Total(weight, ctx.needs_input_grad[1])
        of_bias = Total(weight[:, 0], ctx.needs_input_grad[2])
        of_features = torch.empty_like(features) if ctx.needs_input_grad[0] else None
        for _, some in chunks(0, len(slope)):
            given = slope[some]
            if keep is not None:
                given = (given * keep[some]).div_(1 - ctx.dropout)
            of_weight.add_outer(given, features[some].to(weight.dtype))
            of_bias.add(given.sum(0))
            if of_features is not None:
                of_features[some] = product(given, weight)
        return of_features, of_weight.gradient, of_bias.gradient, None


def finish(
    attended: Tensor, x: Tensor, told: Tensor, globals_: Tensor, eps: float, *weights: Tensor
) -> tuple[Tensor, Tensor]:
    """y = x + out(attended); y + ffn_out(relu(ffn_in(norm(y)))), of tokens and of global tokens.

    Args:
        attended, x: (T, E) of tokens. told, globals_: (G, E) of global tokens; G or T may be 0.
        weights: weight and bias of out, norm, ffn_in and ffn_out.
    """
    apply: Any = _Finish.apply
    finished: tuple[Tensor, Tensor] = apply(attended, x, told, globals_, eps, *weights)
    return finished


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, attended: Tensor, x: Tensor, told: Tensor, g: Tensor, eps: float, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        out, out_bias, scale, shift, w1, b1, w2, b2 = weights
        given, before = (attended, told), (x, g)
        y, z = ([scratch(*part.shape, like=x) for part in before] for _ in range(2))
        hidden = [
            scratch(len(part) if len(part) <= KEPT else 0, len(w1), like=x) for part in before
        ]
        for i, some in pieces(before):
            product(given[i][some], out.t(), out_bias, added=before[i][some], out=y[i][some])
            normed = NORM(y[i][some], x.shape[1:], scale, shift, eps)[0]
            room = hidden[i][some] if len(hidden[i]) else None
            active = product(normed, w1.t(), b1, relu=True, out=room)
            product(active, w2.t(), b2, added=y[i][some], out=z[i][some])
        ctx.eps = eps
        ctx.save_for_backward(*given, *y, *hidden, *weights)
        return tuple(z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        given, y, hidden, weights = _split(ctx.saved_tensors, 2, 2, 2)
        out, _, scale, shift, w1, b1, w2, _ = weights
        wanted = ctx.needs_input_grad[5:]
        of_weights = [Total(w, asks) for w, asks in zip(weights, wanted, strict=True)]
        of_out, of_out_bias, of_scale, of_shift, of_w1, of_b1, of_w2, of_b2 = of_weights
        of_given, of_before = ([scratch(*part.shape, like=part) for part in y] for _ in range(2))
        for i, some in pieces(y):
            slope, row = slopes[i][some], y[i][some]
            normed, mean, rstd = NORM(row, row.shape[1:], scale, shift, ctx.eps)
            kept = hidden[i][some] if len(hidden[i]) else None
            active = product(normed, w1.t(), b1, relu=True) if kept is None else kept
            of_w2.add_outer(slope, active)
            of_b2.add(slope.sum(0))
            of_hidden = product(slope, w2)
            RELU_BACKWARD(of_hidden, active, 0, grad_input=of_hidden)
            of_w1.add_outer(of_hidden, normed)
            of_b1.add(of_hidden.sum(0))
            of_y, by_scale, by_shift = NORM_BACKWARD(
                *(product(of_hidden, w1), row, row.shape[1:], mean, rstd, scale, shift, [True] * 3)
            )
            of_scale.add(by_scale)
            of_shift.add(by_shift)
            of_y = torch.add(of_y, slope, out=of_before[i][some])
            of_out.add_outer(of_y, given[i][some])
            of_out_bias.add(of_y.sum(0))
            product(of_y, out, out=of_given[i][some])
        pairs = zip(of_given, of_before, strict=True)
        return *itertools.chain(*pairs), None, *(total.gradient for total in of_weights)


def pool(
    z: Tensor, scale: Tensor, shift: Tensor, kernel: Tensor, rulebook: Rulebook, eps: float
) -> Tensor:
    """Norm, depthwise convolution over occupied cells, mean over those under the kernel.

    Args:
        z: (T, E). scale, shift: (E,) of the norm. kernel: (E, k k).

    Returns:
        (T_out, E).
    """
    apply: Any = _Pool.apply
    pooled: Tensor = apply(z, scale, shift, kernel, rulebook, eps)
    return pooled


def _in_chunks(rulebook: Rulebook) -> Iterator[tuple[int, Tensor, Tensor]]:
    for position, (inputs, outputs) in enumerate(rulebook.pairs):
        for _, some in chunks(0, len(inputs)):
            yield position, inputs[some], outputs[some]


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        scale: Tensor,
        shift: Tensor,
        kernel: Tensor,
        rulebook: Rulebook,
        eps: float,
    ) -> Tensor:
        out = scratch(len(rulebook.counts), z.shape[1], like=z).zero_()
        for position, inputs, outputs in _in_chunks(rulebook):
            own = kernel[:, position]
            out.index_add_(
                0,
                outputs,
                NORM(z.index_select(0, inputs), z.shape[1:], scale * own, shift * own, eps)[0],
            )
        ctx.save_for_backward(z, scale, shift, kernel)
        ctx.rulebook, ctx.eps = rulebook, eps
        return out.div_(rulebook.counts[:, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        z, scale, shift, kernel = ctx.saved_tensors
        given = slope / ctx.rulebook.counts[:, None]
        of_z = scratch(*z.shape, like=z).zero_()
        of_scale, of_shift = torch.zeros_like(scale), torch.zeros_like(shift)
        of_kernel = torch.zeros_like(kernel)
        for position, inputs, outputs in _in_chunks(ctx.rulebook):
            own, rows = kernel[:, position], z.index_select(0, inputs)
            _, mean, rstd = NORM(rows, z.shape[1:], scale, shift, ctx.eps)
            of_rows, by_scale, by_shift = NORM_BACKWARD(
                *(
                    given.index_select(0, outputs),
                    rows,
                    z.shape[1:],
                    mean,
                    rstd,
                    scale * own,
                    shift,
                    [True] * 3,
                )
            )
            of_z.index_add_(0, inputs, of_rows)
            of_scale += by_scale * own
            of_shift += by_shift * own
            of_kernel[:, position] += by_scale * scale + by_shift * shift
        return of_z, of_scale, of_shift, of_kernel, None, None
