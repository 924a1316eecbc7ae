"""What a network does patch by patch, before and after attention: plain, and fused for CPUs.

The fused functions take rows in chunks that a cache holds, keep nothing that is cheap to compute
again, and write large tensors into memory that the step before has used. Of a block's feed-forward
layer, four times as wide as its tokens, nothing is kept on large slides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wsizoo.ops import chunks, outer, product, scratch, under_torch_func, wished_backend

KEPT = 1 << 24  # numbers; a larger hidden layer is computed again rather than kept
NORM = torch.ops.aten.native_layer_norm
NORM_BACKWARD = torch.ops.aten.native_layer_norm_backward
RELU_BACKWARD = torch.ops.aten.threshold_backward
GELU_BACKWARD = torch.ops.aten.gelu_backward


def embed(features: Tensor, linear: nn.Linear) -> Tensor:
    """relu(linear(features)): (N, D) of any float dtype -> (N, E) in that of the weights."""
    if not fits(linear.weight, features, linear):
        return torch.relu(linear(features.to(linear.weight.dtype)))
    apply: Any = _Embed.apply
    embedded: Tensor = apply(features, linear.weight, linear.bias)
    return embedded


def project(x: Tensor, norm: nn.LayerNorm, linear: nn.Linear) -> Tensor:
    """linear(norm(x)), without bias: (T, E) -> (T, F)."""
    if not fits(x, x, norm, linear):
        projected: Tensor = linear(norm(x))
        return projected
    apply: Any = _Project.apply
    projected = apply(x, norm.eps, norm.weight, norm.bias, linear.weight)
    return projected


def finish(x: Tensor, attended: Tensor, proj: nn.Linear, feed: Sequence[nn.Module]) -> Tensor:
    """y = x + proj(attended); then y + fc2(gelu(fc1(norm(y)))), where `feed` holds those three."""
    if not fits(x, attended, proj, *feed):
        y: Tensor = x + proj(attended)
        if feed:
            norm, fc1, fc2 = feed
            y = y + fc2(F.gelu(fc1(norm(y))))
        return y
    eps = feed[0].eps if feed else 0.0
    weights = [tensor for part in (proj, *feed) for tensor in (part.weight, part.bias)]
    apply: Any = _Finish.apply
    finished: Tensor = apply(x, attended, eps, *weights)
    return finished


def fits(x: Tensor, rows: Tensor, *parts: nn.Module) -> bool:
    """Whether the fused functions are for these rows: on a CPU, unless somebody looks at the parts.

    Parts are read, not called: they must be what their names say, and nothing may hang on them.
    """
    exact = x.dtype in (torch.float32, torch.float64) and rows.device.type == "cpu"
    return exact and rows.ndim == 2 and all(map(_is_plain, parts)) and not _observed()


def _is_plain(part: nn.Module) -> bool:
    """Neither a subclass (LoRA, quantisation, parametrisation) nor hooked (pruning, GradCAM)."""
    hooks = part._forward_hooks, part._forward_pre_hooks, part._backward_hooks
    hooked = any(hooks) or bool(part._backward_pre_hooks)
    return type(part) in (nn.Linear, nn.LayerNorm) and not hooked


def _observed() -> bool:
    """Whether somebody looks at the single ops: the reference, a compiler, autocast, torch.func."""
    traced = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    return traced or under_torch_func() or wished_backend() == "reference"


class _Total:
    """A gradient summed over chunks; nothing is, where nobody asks for it."""

    def __init__(self, like: Tensor, wanted: bool) -> None:
        self._sum = torch.zeros_like(like) if wanted else None

    def add(self, part: Tensor) -> None:
        if self._sum is not None:
            self._sum += part

    def add_outer(self, left: Tensor, right: Tensor) -> None:
        """left.T @ right."""
        if self._sum is not None:
            outer(left, right, self._sum)

    @property
    def gradient(self) -> Tensor | None:
        return self._sum


def _totals(ctx: Any, weights: Sequence[Tensor]) -> list[_Total]:
    """Of the weights, which are the last arguments of a function."""
    wanted = ctx.needs_input_grad[-len(weights) :]
    return [_Total(weight, asked) for weight, asked in zip(weights, wanted, strict=True)]


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = scratch(len(features), len(weight), like=weight)
        for _, some in chunks(0, len(out)):
            product(features[some].to(weight.dtype), weight.t(), bias, relu=True, out=out[some])
        ctx.save_for_backward(features, out, weight, bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        features, out, weight, bias = ctx.saved_tensors
        of_weight, of_bias = totals = _totals(ctx, (weight, bias))
        of_features = torch.empty_like(features) if ctx.needs_input_grad[0] else None
        for _, some in chunks(0, len(out)):
            given = RELU_BACKWARD(slope[some], out[some], 0)
            of_weight.add_outer(given, features[some].to(weight.dtype))
            of_bias.add(given.sum(0))
            if of_features is not None:
                of_features[some] = product(given, weight)
        return of_features, *(total.gradient for total in totals)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, eps: float, scale: Tensor, shift: Tensor, weight: Tensor
    ) -> Tensor:
        out = scratch(len(x), len(weight), like=x)
        for _, some in chunks(0, len(x)):
            normed = NORM(x[some], x.shape[1:], scale, shift, eps)[0]
            product(normed, weight.t(), out=out[some])
        ctx.save_for_backward(x, scale, shift, weight)
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, weight = ctx.saved_tensors
        of_scale, of_shift, of_weight = totals = _totals(ctx, (scale, shift, weight))
        of_x = scratch(*x.shape, like=x)
        for _, some in chunks(0, len(x)):
            normed, mean, rstd = NORM(x[some], x.shape[1:], scale, shift, ctx.eps)
            of_weight.add_outer(slope[some], normed)
            of_normed = product(slope[some], weight)
            of_x[some], by_scale, by_shift = NORM_BACKWARD(
                of_normed, x[some], x.shape[1:], mean, rstd, scale, shift, [True] * 3
            )
            of_scale.add(by_scale)
            of_shift.add(by_shift)
        return of_x, None, *(total.gradient for total in totals)


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, attended: Tensor, eps: float, *weights: Tensor) -> Tensor:
        proj, proj_bias, *feed = weights
        z = y = scratch(*x.shape, like=x)
        hidden = x.new_empty(0)
        if feed:
            z = scratch(*x.shape, like=x)
            width = len(feed[2])
            hidden = scratch(len(x) if len(x) * width <= KEPT else 0, width, like=x)
        for _, some in chunks(0, len(x)):
            product(attended[some], proj.t(), proj_bias, added=x[some], out=y[some])
            if feed:
                scale, shift, w1, b1, w2, b2 = feed
                normed = NORM(y[some], x.shape[1:], scale, shift, eps)[0]
                before = product(normed, w1.t(), b1, out=hidden[some] if len(hidden) else None)
                product(F.gelu(before), w2.t(), b2, added=y[some], out=z[some])
        ctx.eps = eps
        ctx.save_for_backward(attended, y if feed else None, hidden, *weights)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        attended, y, hidden, *weights = ctx.saved_tensors
        of_proj, of_proj_bias, *of_feed = totals = _totals(ctx, weights)
        of_attended = scratch(*slope.shape, like=slope)
        of_x = slope if y is None else scratch(*slope.shape, like=slope)
        for _, some in chunks(0, len(slope)):
            given = slope[some]
            if y is not None:
                kept = hidden[some] if len(hidden) else None
                of_y = _feed_backward(given, y[some], kept, weights[2:], of_feed, ctx.eps)
                given = torch.add(of_y, given, out=of_x[some])
            of_proj.add_outer(given, attended[some])
            of_proj_bias.add(given.sum(0))
            product(given, weights[0], out=of_attended[some])
        return of_x, of_attended, None, *(total.gradient for total in totals)


def _feed_backward(
    slope: Tensor,
    y: Tensor,
    hidden: Tensor | None,
    feed: Sequence[Tensor],
    totals: Sequence[_Total],
    eps: float,
) -> Tensor:
    """What reaches `y` (t, E) through fc2(gelu(fc1(norm(y)))); the weights' parts go to `totals`.

    Args:
        slope: (t, E) of the sum. hidden: (t, F) before the gelu, or None: not kept.
        feed: weight and bias of norm, fc1 and fc2.
    """
    scale, shift, w1, b1, w2, _ = feed
    of_scale, of_shift, of_w1, of_b1, of_w2, of_b2 = totals
    normed, mean, rstd = NORM(y, y.shape[1:], scale, shift, eps)
    before = product(normed, w1.t(), b1) if hidden is None else hidden
    of_w2.add_outer(slope, F.gelu(before))
    of_b2.add(slope.sum(0))
    of_hidden = GELU_BACKWARD(product(slope, w2), before)
    of_w1.add_outer(of_hidden, normed)
    of_b1.add(of_hidden.sum(0))
    of_y: Tensor
    of_y, by_scale, by_shift = NORM_BACKWARD(
        product(of_hidden, w1), y, y.shape[1:], mean, rstd, scale, shift, [True] * 3
    )
    of_scale.add(by_scale)
    of_shift.add(by_shift)
    return of_y
