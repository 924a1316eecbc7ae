"""Multi-head attention within a slide or between two sets of rows; no map of all pairs is held."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsizoo.ops import Everywhere, RowLinear, grid_attention


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
        mixed = [attend(*part.chunk(3, 1), self.heads, dropout) for part in parts]
        return self.out(torch.cat(mixed)), tuple(part.detach() for part in parts)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
    """(n, E), (m, E), (m, E) -> (n, E): heads one after the other in the columns.

    Torch's kernel for CPUs has no dropout and would hold all weights: there, rows that attend to
    themselves (n = m) go another way.
    """
    q, k, v = (x.unflatten(1, (heads, -1)) for x in (q, k, v))  # (n, H, E/H)
    if not dropout or q.is_cuda or len(q) != len(k):
        rows = (x.transpose(0, 1)[None] for x in (q, k, v))
        mixed = F.scaled_dot_product_attention(*rows, dropout_p=dropout)
        return mixed[0].transpose(0, 1).flatten(1)
    anywhere = torch.zeros(len(q), 2, dtype=torch.int64)
    near = Everywhere(anywhere, torch.tensor([0, len(q)]))
    found: Tensor = grid_attention(q, k, v, near, None, dropout)
    return found.flatten(1)


def weights(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """(n, E), (m, E) -> (n, m): what each row pays to each, the mean over heads."""
    total = torch.zeros(len(q), len(k), dtype=q.dtype, device=q.device)
    for one, other in zip(q.chunk(heads, 1), k.chunk(heads, 1), strict=True):
        total += torch.softmax(one @ other.t() * one.shape[1] ** -0.5, 1)
    return total / heads
