"""RRT's two attentions: within regions of a slide (with EPEG), and across them (CR-MSA)."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsizoo.ops import RowLinear
from wsizoo_plugin_mil.along import along
from wsizoo_plugin_mil.windows import from_windows, to_windows

CROSS_REGIONS = 8  # a side; the published code hands no other number on
EPS = 1e-8


class GroupAttention(nn.Module):
    """Multi-head attention within each group: (G, L, E) -> the same.

    Args:
        dim: width E. heads: H of them. dropout: of the result, training only.
        epeg: rows that EPEG's convolution of the scores reaches over, odd; 0: none.

    EPEG adds to the scores their depthwise convolution along the queries. That is linear in the
    queries, so it is done to them, and the scores are never made. Its bias is added to all scores
    of a head alike, which no softmax feels, so there is none.
    """

    def __init__(self, dim: int, heads: int, dropout: float, epeg: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = RowLinear(dim, 3 * dim)
        self.out = RowLinear(dim, dim)
        self.drop = nn.Dropout(dropout)
        self.epeg = (
            nn.Conv2d(heads, heads, (epeg, 1), padding=(epeg // 2, 0), groups=heads, bias=False)
            if epeg
            else None
        )

    def forward(self, groups: Tensor) -> Tensor:
        parts = self.qkv(groups).unflatten(2, (3, self.heads, -1))  # (G, L, 3, H, E/H)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        if self.epeg is not None:
            q = q + along(q, self.epeg.weight.flatten(1))
        mixed = F.scaled_dot_product_attention(q, k, v)  # (G, H, L, E/H)
        return cast(Tensor, self.drop(self.out(mixed.transpose(1, 2).flatten(2))))


class WithinRegions(nn.Module):
    """Attention inside each of R x R regions: (n, E) -> (n, E)."""

    def __init__(self, dim: int, heads: int, dropout: float, epeg: int, regions: int) -> None:
        super().__init__()
        self.regions = regions
        self.attention = GroupAttention(dim, heads, dropout, epeg)

    def forward(self, tokens: Tensor) -> Tensor:
        windows = self.attention(to_windows(tokens, self.regions))  # (R^2, P^2, E)
        return from_windows(windows, len(tokens))


class AcrossRegions(nn.Module):
    """Each of 8 x 8 regions is K vectors, which attend to those of the others: (n, E) -> (n, E).

    Of up to 64 tokens each region has one; the weights of what comes back are then 0.

    Args:
        slots: K. mlp: the scores of tokens for them are of two layers, not of one.
    """

    def __init__(self, dim: int, heads: int, dropout: float, slots: int, mlp: bool) -> None:
        super().__init__()
        self.attention = GroupAttention(dim, heads, dropout)
        bound = 1 / math.sqrt(slots)
        self.phi = None if mlp else nn.Parameter(torch.empty(dim, slots).uniform_(-bound, bound))
        wide, narrow = RowLinear(dim, dim // 4, bias=False), nn.Linear(dim // 4, slots, bias=False)
        self.slots = nn.Sequential(wide, nn.Tanh(), narrow) if mlp else None

    def forward(self, tokens: Tensor) -> Tensor:
        windows = to_windows(tokens, CROSS_REGIONS)  # (W, P^2, E)
        scores = self.scores(windows)  # (W, P^2, K)
        vectors = torch.softmax(scores, 1).mT @ windows  # (W, K, E)
        moved = self.attention(vectors.transpose(0, 1)).transpose(0, 1)
        low, high = scores.aminmax(dim=1, keepdim=True)
        share = (scores - low) / (high - low + EPS) * torch.softmax(scores, 2)
        return from_windows(share @ moved, len(tokens))

    def scores(self, windows: Tensor) -> Tensor:
        if self.phi is not None:
            return windows @ self.phi
        assert self.slots is not None
        return cast(Tensor, self.slots(windows))
