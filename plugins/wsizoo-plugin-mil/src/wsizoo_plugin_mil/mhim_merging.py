"""MHIM-MIL v2: tokens that are merged into a few, by queries that follow what they found."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

HEAD = 64
HEADS = 8


class Merging(nn.Module):
    """k queries ask the tokens by attention of 8 heads of width 64.

    Args:
        dim: width E. queries: k. momentum: of the queries, which move towards what they were told
            after each slide of training, and are not trained otherwise.
        dropout: of attention and of what it gives, training only.

    Cost: 1024 L E multiply-adds for L tokens.
    Source: MHIM v2, https://arxiv.org/abs/2509.11526.
    """

    queries: Tensor

    def __init__(self, dim: int, queries: int, momentum: float, dropout: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, HEADS * HEAD, bias=False)
        self.to_kv = nn.Linear(dim, 2 * HEADS * HEAD, bias=False)
        self.out = nn.Linear(HEADS * HEAD, dim)
        self.drop = nn.Dropout(dropout)
        bound = math.sqrt(6 / (768 + dim))
        self.register_buffer("queries", torch.empty(1, queries, dim).uniform_(-bound, bound))

    def forward(self, tokens: Tensor) -> Tensor:
        """(L, E) -> (k, E)."""
        before = self.queries[0].clone()  # (k, E); the buffer moves below
        q = self.to_q(self.norm(before)).view(len(before), HEADS, HEAD).transpose(0, 1)
        kv = self.to_kv(self.norm(tokens)).view(len(tokens), 2, HEADS, HEAD).permute(1, 2, 0, 3)
        weights = self.drop(torch.softmax(q @ kv[0].mT * HEAD**-0.5, 2))  # (8, k, L)
        told: Tensor = self.drop(self.out((weights @ kv[1]).transpose(0, 1).flatten(1)))
        if self.training:
            self.queries.lerp_(told.detach()[None], 1 - self.momentum)
        return told
