"""Sums, weighted sums, means, maxima and softmax over the slides of a packed batch.

bfloat16 and float16 are summed in float32 and cast back: their own sums stop growing early.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wsizoo.bag import segment_ids
from wsizoo.ops._dispatch import op


@op
def segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    """Sum of each slide's rows.

    Args:
        values: (N, ...) float. offsets: (B+1,) int64, slide b owns rows offsets[b]:offsets[b+1].

    Returns:
        (B, ...); an empty slide gives 0.
    """
    return _sum(_wide(values), offsets).to(values.dtype)


@op
def segment_pool(weights: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
    """Weighted sums of each slide's rows.

    Args:
        weights: (N, K) float, K sums a slide. values: (N, E) float. offsets: (B+1,) int64.

    Returns:
        (B, K, E); an empty slide gives 0. Nothing of the size (N, K, E) is made.
    """
    dtype = torch.promote_types(weights.dtype, values.dtype)
    if len(offsets) == 2:  # one slide
        return (weights.t().to(dtype) @ values.to(dtype))[None]
    wide = _wide(values)
    sums = [_sum(each[:, None] * wide, offsets) for each in weights.unbind(1)]
    return torch.stack(sums, 1).to(dtype)


@op
def segment_mean(values: Tensor, offsets: Tensor) -> Tensor:
    """Mean of each slide's rows, (N, ...) -> (B, ...); an empty slide gives 0."""
    total = _sum(_wide(values), offsets)
    counts = offsets.diff().clamp(min=1).to(total.dtype)
    return (total / counts.reshape(-1, *[1] * (values.ndim - 1))).to(values.dtype)


@op
def segment_max(values: Tensor, offsets: Tensor) -> Tensor:
    """Maximum of each slide's rows, (N, ...) -> (B, ...); an empty slide gives -inf.

    The gradient of a tied maximum is shared equally among its rows.
    """
    ids = segment_ids(offsets, len(values)).reshape(-1, *[1] * (values.ndim - 1)).expand_as(values)
    start = values.new_full((len(offsets) - 1, *values.shape[1:]), -torch.inf)
    return start.scatter_reduce(0, ids, values, "amax")


@op
def segment_softmax(logits: Tensor, offsets: Tensor) -> Tensor:
    """Softmax over each slide's rows, (N, ...) -> (N, ...), stable for any finite logits."""
    if len(offsets) == 2:  # one slide
        return torch.softmax(logits, 0)
    ids = segment_ids(offsets, len(logits))
    wide = _wide(logits)
    highest: Tensor = segment_max.reference(wide.detach(), offsets)
    weights = torch.exp(wide - highest[ids])
    return (weights / _sum(weights, offsets)[ids]).to(logits.dtype)


def _sum(values: Tensor, offsets: Tensor) -> Tensor:
    result = values.new_zeros((len(offsets) - 1, *values.shape[1:]))
    return result.index_add(0, segment_ids(offsets, len(values)), values)


def _wide(values: Tensor) -> Tensor:
    """At least float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
