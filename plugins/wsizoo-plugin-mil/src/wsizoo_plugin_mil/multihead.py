"""Multi-head attention within a slide or between two sets of rows; no map of all pairs is held."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsizoo.ops import RowLinear, attention


class Multihead(nn.Module):
    """Rows (N_total, E) of several slides -> the same; each row attends to all of its slide.

    Args:
        dim: width E. heads: H of them, each E / H wide. dropout: of weights, training only.

    Cost: 4 E^2 a row and 2 n^2 E a slide of n rows, multiply-adds.
    Source: Vaswani et al., NeurIPS 2017, Section 3.2, https://arxiv.org/abs/1706.03762
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = RowLinear(dim, 3 * dim)
        self.drop = nn.Dropout(dropout)
        self.out = RowLinear(dim, dim)

    def forward(self, rows: Tensor, lengths: Sequence[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Also (n, 3 E) of each slide, its queries, keys and values, for who asks about weights."""
        parts = torch.split(self.qkv(rows), list(lengths))
        dropout = self.drop.p if self.training else 0.0
        three = (part.unflatten(1, (3, -1)).unbind(1) for part in parts)
        mixed = [attend(*qkv, self.heads, dropout) for qkv in three]
        return self.out(torch.cat(mixed)), tuple(part.detach() for part in parts)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
    """(n, E), (m, E), (m, E) -> (n, E): heads one after the other in the columns."""
    mixed: Tensor = attention(*(by_head(x, heads) for x in (q, k, v)), dropout)
    return mixed.transpose(0, 1).flatten(1)


def by_head(rows: Tensor, heads: int) -> Tensor:
    """(n, E) -> (H, n, E/H), a view."""
    return rows.unflatten(1, (heads, -1)).transpose(0, 1)


def weights(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """(n, E), (m, E) -> (n, m): what each row pays to each, the mean over heads."""
    total = torch.zeros(len(q), len(k), dtype=q.dtype, device=q.device)
    for one, other in zip(q.chunk(heads, 1), k.chunk(heads, 1), strict=True):
        total += torch.softmax(one @ other.t() * one.shape[1] ** -0.5, 1)
    return total / heads
