"""Attention among occupied cells of a grid, with a bias that depends on the offset only."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.ops._dispatch import op
from wsizoo.ops.neighbourhoods import Neighbourhood

OffsetBias = Callable[[Tensor], Tensor]  # (..., 2) int64 offsets -> (H, ...)


@op
def grid_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    neighbourhood: Neighbourhood,
    bias: Tensor | OffsetBias | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """One softmax a token and head over the cells of its neighbourhood, no key counted twice.

    score(t, u) = q_t . k_u / sqrt(D) + bias of the head at cell_u - cell_t

    Args:
        q, k, v: (T, H, D), rotated already where positions are rotary.
        neighbourhood: which cells attend, e.g. `Windows`; it serves every layer on one grid.
        bias: (H, 2 R + 1, 2 R + 1) with R = `neighbourhood.reach`, indexed by the offset of the
            key's cell from the query's plus R, e.g. a table of relative positions. Or a function
            of offsets, (..., 2) int64 -> (H, ...), without gradient, e.g. ALiBi's slopes times
            distance; none of its tables is ever built. A key at -inf is none. None: no bias.
        dropout: share of the attention weights that is dropped; 0 outside of training.

    Returns:
        (T, H, D); 0 for a token that has no key.
        Where k or v is not finite, tokens that it is no key of may be NaN too: the reference and
        backends compute further pairs and weigh them 0, and 0 times NaN is NaN.

    Raises:
        DataError: shapes that do not fit together, that of what a bias function gives included.

    Cost: the reference builds T x T scores; backends cost as many products as there are pairs.
    Source: Vaswani et al. 2017; windows as in SPAN (2026) and Swin (2021).
    """
    check_attention(q, k, v, neighbourhood, bias)
    weights = F.dropout(attention_weights(q, k, neighbourhood, bias), dropout)
    return torch.einsum("htu,uhd->thd", weights, v.to(weights.dtype)).to(q.dtype)


def attention_weights(
    q: Tensor,
    k: Tensor,
    neighbourhood: Neighbourhood,
    bias: Tensor | OffsetBias | None = None,
) -> Tensor:
    """(H, T, T) [head, query, key] weights of `grid_attention`; a row is 1 in all, or 0.

    At least float32. Arguments as there.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.einsum("thd,uhd->htu", q.to(wide), k.to(wide)) / math.sqrt(q.shape[-1])
    allowed = neighbourhood.dense()  # (T, T)
    if bias is not None:
        added = _bias_of_pairs(bias, neighbourhood, q.shape[1]).to(wide)  # (H, T, T)
        scores, allowed = scores + added, allowed & (added != -torch.inf)
    weights = torch.softmax(scores.masked_fill(~allowed, -torch.inf), -1)
    return torch.where(allowed, weights, 0.0)  # also where a token has no key at all


def _bias_of_pairs(bias: Tensor | OffsetBias, neighbourhood: Neighbourhood, heads: int) -> Tensor:
    cells, reach = neighbourhood.cells, neighbourhood.reach
    offset = cells[None] - cells[:, None]  # (T, T, 2)
    if not isinstance(bias, Tensor):
        return bias_at(bias, offset, heads)
    at = offset.clamp(-reach, reach) + reach
    return bias[:, at[..., 0], at[..., 1]]


def bias_at(bias: OffsetBias, offset: Tensor, heads: int) -> Tensor:
    """(H, ...) what a bias function gives for offsets (..., 2); DataError where it does not."""
    with torch.no_grad():
        added = bias(offset)
    if added.shape != (heads, *offset.shape[:-1]):
        raise DataError(
            f"a bias function gave {tuple(added.shape)} for offsets {tuple(offset.shape)}, "
            f"expected {(heads, *offset.shape[:-1])}: heads first"
        )
    return added


def check_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    neighbourhood: Neighbourhood,
    bias: Tensor | OffsetBias | None,
) -> None:
    """Raise DataError unless the arguments of `grid_attention` fit together."""
    shape = tuple(q.shape)
    if q.ndim != 3 or k.shape != q.shape or v.shape != q.shape or len(q) != len(neighbourhood):
        raise DataError(
            f"grid_attention got q {shape}, k {tuple(k.shape)}, v {tuple(v.shape)} for "
            f"{len(neighbourhood)} cells, expected three times (cells, heads, dim)"
        )
    if not isinstance(bias, Tensor):
        return
    edge = 2 * neighbourhood.reach + 1
    if bias.shape != (shape[1], edge, edge):
        raise DataError(
            f"grid_attention got a bias {tuple(bias.shape)}, expected {(shape[1], edge, edge)}: "
            f"heads, and offsets up to {neighbourhood.reach} cells along each axis"
        )
