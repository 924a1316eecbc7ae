"""Sums, means, maxima and softmax over the slides of a packed batch."""

from __future__ import annotations

import torch
from torch import Tensor

from wsizoo.ops._dispatch import op


@op
def segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    """Sum of each slide's rows.

    Args:
        values: (N, ...) float. offsets: (B+1,) int64, slide b owns rows offsets[b]:offsets[b+1].

    Returns:
        (B, ...); an empty slide gives 0.
    """
    result = values.new_zeros((len(offsets) - 1, *values.shape[1:]))
    return result.index_add(0, segment_ids(offsets, len(values)), values)


@op
def segment_mean(values: Tensor, offsets: Tensor) -> Tensor:
    """Mean of each slide's rows, (N, ...) -> (B, ...); an empty slide gives 0."""
    counts = offsets.diff().clamp(min=1).to(values.dtype)
    total: Tensor = segment_sum.reference(values, offsets)
    return total / counts.reshape(-1, *[1] * (values.ndim - 1))


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
    ids = segment_ids(offsets, len(logits))
    highest: Tensor = segment_max.reference(logits.detach(), offsets)
    weights = torch.exp(logits - highest[ids])
    total: Tensor = segment_sum.reference(weights, offsets)
    return weights / total[ids]


def segment_ids(offsets: Tensor, n: int | None = None) -> Tensor:
    """(N,) int64, the slide each row belongs to.

    Args:
        n: the number of rows N, where it is known: spares a wait for the GPU, and torch.compile.
    """
    ids = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(ids, offsets.diff(), output_size=n)
