"""A SPAN layer of `layers.py` on the fused paths: which layers can, and how their weights go in."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsizoo.ops import under_torch_func, wished_backend
from wsizoo_plugin_span.fused_attention import attention
from wsizoo_plugin_span.fused_globals import Heard, Plan, Weights
from wsizoo_plugin_span.fused_rows import finish
from wsizoo_plugin_span.pyramid import Level

if TYPE_CHECKING:
    from wsizoo_plugin_span.layers import SpanLayer


def fits(tokens: Tensor, *parts: nn.Module) -> bool:
    """Whether fused paths are for these tokens and parts: on a CPU, unless the reference is asked.

    Parts are read, not called: they must be what their names say, and nothing may hang on them.
    """
    exact = tokens.dtype in (torch.float32, torch.float64)
    cpu = tokens.device.type == "cpu" and tokens.ndim == 2
    return cpu and exact and all(map(_is_plain, parts)) and not _observed()


def _is_plain(part: nn.Module) -> bool:
    """Neither a subclass (LoRA, quantisation, parametrisation), nor hooked (pruning, GradCAM), nor
    with a `forward` of its own (accelerate)."""
    hooks = part._forward_hooks, part._forward_pre_hooks, part._backward_hooks
    changed = any(hooks) or bool(part._backward_pre_hooks) or "forward" in vars(part)
    return type(part) in (nn.Linear, nn.LayerNorm, nn.ReLU) and not changed


def _observed() -> bool:
    """Whether somebody looks at the single ops: the reference, a compiler, autocast, torch.func."""
    traced = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    return traced or under_torch_func() or wished_backend() == "reference"


def runs(layer: SpanLayer, tokens: Tensor) -> bool:
    """Whether this layer is one that `run` computes."""
    drops = layer.drop_path.share or layer.proj_drop.p or layer.ffn_drop.p
    if layer.attention == "swin" or layer.rotary or (drops and layer.training):
        return False
    first = layer.norm1, layer.q1, layer.k1, layer.v1, layer.q2, layer.k2, layer.v2
    return fits(tokens, *first, layer.out, layer.norm2, layer.ffn_in, layer.act, layer.ffn_out)


def run(
    layer: SpanLayer, tokens: Tensor, globals_: Tensor, level: Level, need_tokens: bool
) -> tuple[Tensor, Tensor]:
    """The layer's tokens (T, E) and global tokens (B, M, E), as its `forward`.

    Without `need_tokens` the tokens come back as they were, and cost next to nothing.
    """
    asks, heard, drop = None, None, layer.weight_dropout
    normed = layer.norm1(globals_)  # (B, M, E)
    if globals_.shape[1]:
        asks = _asks(layer, normed)
    attended, x = tokens[:0], tokens[:0]
    if need_tokens:
        weights = _weights(layer, normed, asks)
        nearby = level.neighbourhood(layer.pattern)
        heads = layer.heads, tokens.shape[1] // layer.heads
        plan = Plan(nearby, level.bounds, level.outsiders, *heads, drop, layer.norm1.eps)
        attended, x, heard = attention(tokens, weights, plan)
    elif asks is not None:
        asks = _touch(asks, *_unread(layer))
        heard = _hear(layer, tokens, asks, level, drop)
    told = globals_
    if asks is not None and heard is not None:
        told = _answer(layer, normed, asks, heard, drop)
    parts = layer.out, layer.norm2, layer.ffn_in, layer.ffn_out
    weights_after = [tensor for part in parts for tensor in (part.weight, part.bias)]
    flat = told.flatten(0, 1), globals_.flatten(0, 1)  # (B M, E)
    x, others = finish(attended, x, *flat, layer.norm2.eps, *weights_after)
    return x if need_tokens else tokens, others.view_as(globals_)


def _by_head(linear: nn.Linear, heads: int) -> Tensor:
    """Weight (E, E) -> (H, D, E)."""
    return linear.weight.view(heads, -1, linear.in_features)


def _asks(layer: SpanLayer, normed: Tensor) -> Tensor:
    """(B, M, E) normed global tokens -> (B, H M, E): times a normed token, their scores of it.

    The bias of the keys adds the same to all of them, which a softmax does not see.
    """
    b, m, width = normed.shape
    q = layer.q2(normed).view(b, m, layer.heads, -1) / math.sqrt(width // layer.heads)
    asks = torch.einsum("bmhd,hde->bhme", q, _by_head(layer.k2, layer.heads)).flatten(1, 2)
    return _touch(asks, layer.k2.bias)


def _weights(layer: SpanLayer, normed: Tensor, asks: Tensor | None) -> Weights:
    """The layer's weights as its attention takes them."""
    h, (b, m, width) = layer.heads, normed.shape
    scale = 1 / math.sqrt(width // h)
    norm, parts = layer.norm1, (layer.q1, layer.k1, layer.v1)
    own = norm.weight, norm.bias, *(p.weight for p in parts), *(p.bias for p in parts)
    bias = layer.bias()
    if asks is None:
        return Weights(*own, bias, None, None, None, None)
    replies = layer.v2(normed).view(b, m, h, -1).transpose(1, 2)  # (B, H, M, D)
    if m == 1:
        return Weights(*own, bias, asks, None, None, replies)
    k = layer.k2(normed).view(b, m, h, -1) * scale
    keys = torch.einsum("bmhd,hde->bhme", k, _by_head(layer.q2, h)).flatten(1, 2)
    keys_bias = torch.einsum("bmhd,hd->bhm", k, layer.q2.bias.view(h, -1)).flatten(1)
    return Weights(*own, bias, asks, keys, keys_bias, replies)


def _answer(layer: SpanLayer, normed: Tensor, asks: Tensor, heard: Heard, drop: float) -> Tensor:
    """(B, M, E) attention of the global tokens: what they heard of tokens, and of one another."""
    h, (b, m, width) = layer.heads, normed.shape
    own = torch.einsum("bce,bne->bcn", asks, normed)  # (B, H M, M)
    total = torch.logaddexp(heard.lse, own.logsumexp(-1))  # (B, H M)
    weights = F.dropout((own - total[..., None]).exp(), drop)
    share = (heard.lse - total).exp()
    mean = heard.mean * share[..., None] + weights @ normed  # (B, H M, E)
    mass = heard.mass * share + weights.sum(-1)
    told = torch.einsum("bhme,hde->bmhd", mean.view(b, h, m, width), _by_head(layer.v2, h))
    told = told + torch.einsum("bhm,hd->bmhd", mass.view(b, h, m), layer.v2.bias.view(h, -1))
    return told.flatten(2)


def _hear(layer: SpanLayer, tokens: Tensor, asks: Tensor, level: Level, drop: float) -> Heard:
    """What the global tokens hear of tokens that nobody else will read."""
    fields = []
    for b in range(level.n_slides):
        normed = layer.norm1(tokens[level.inner(b)])  # (n, E)
        scores = asks[b] @ normed.t()  # (H M, n)
        lse = scores.logsumexp(-1)
        weights = F.dropout((scores - lse[:, None]).exp(), drop)
        fields.append((weights @ normed, weights.sum(-1), lse))
    return Heard(*map(torch.stack, zip(*fields, strict=True)))


def _unread(layer: SpanLayer) -> list[Tensor]:
    """Parameters of the local attention, where nobody reads the tokens."""
    found = [p for part in (layer.q1, layer.k1, layer.v1) for p in part.parameters()]
    return found if layer.table is None else [*found, layer.table]


def _touch(x: Tensor, *unused: Tensor) -> Tensor:
    """x; the unused parameters get gradients of 0, so that an optimiser decays them as others."""
    apply: Any = _Touch.apply
    same: Tensor = apply(x, *unused)
    return same


class _Touch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *unused: Tensor) -> Tensor:
        ctx.save_for_backward(*unused)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, ...]:
        return slope, *map(torch.zeros_like, ctx.saved_tensors)
