"""Multi-head attention within a slide or between two sets of rows; no map of all pairs is held."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

AT_ONCE = 2**22  # weights of attention that are held at once where a kernel does not do it


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
        self.qkv = nn.Linear(dim, 3 * dim)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(dim, dim)

    def forward(self, rows: Tensor, lengths: Sequence[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Also (n, 3 E) of each slide, its queries, keys and values, for who asks about weights."""
        parts = torch.split(self.qkv(rows), list(lengths))
        dropout = self.drop.p if self.training else 0.0
        mixed = [attend(*part.chunk(3, 1), self.heads, dropout) for part in parts]
        return self.out(torch.cat(mixed)), tuple(part.detach() for part in parts)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
    """(n, E), (m, E), (m, E) -> (n, E): heads one after the other in the columns.

    Torch's kernel for CPUs has no dropout and would hold all weights: there, a few rows at a time
    are computed, and computed again for their gradient.
    """
    q, k, v = (x.unflatten(1, (heads, -1)).transpose(0, 1)[None] for x in (q, k, v))
    if not dropout or q.is_cuda:
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    else:
        few = max(1, AT_ONCE // (heads * k.shape[2]))
        k, v = k.contiguous(), v.contiguous()
        blocks = [
            cast(Tensor, checkpoint(_dropped, some, k, v, dropout, use_reentrant=False))
            for some in q.split(few, 2)
        ]
        mixed = torch.cat(blocks, 2)  # (1, H, n, E/H)
    return mixed[0].transpose(0, 1).flatten(1)


def _dropped(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    weights = torch.softmax(q * q.shape[-1] ** -0.5 @ k.mT, -1)
    return weights * kept(weights.shape, dropout, q.device) @ v / (1 - dropout)


def kept(shape: Sequence[int], dropout: float, device: torch.device) -> Tensor:
    """Bool, True with probability 1 - dropout, which is rounded to a 65,536th.

    Four draws are taken of one number, a tenth of the time of `torch.bernoulli` on a CPU.
    """
    count = math.prod(shape)
    numbers = torch.empty(-(-count // 4), dtype=torch.int64, device=device)
    draws = numbers.random_(-(2**63), None).view(torch.int16)[:count]
    return draws.view(*shape) >= round(dropout * 2**16) - 2**15


def weights(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """(n, E), (m, E) -> (n, m): what each row pays to each, the mean over heads."""
    total = torch.zeros(len(q), len(k), dtype=q.dtype, device=q.device)
    for one, other in zip(q.chunk(heads, 1), k.chunk(heads, 1), strict=True):
        total += torch.softmax(one @ other.t() * one.shape[1] ** -0.5, 1)
    return total / heads
