"""A transformer block over the tokens of a grid, and what attention its tokens receive."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wsizoo.ops import Everywhere, Neighbourhood, OffsetBias, Turns, grid_attention, rotate
from wsizoo_plugin_longmil.rows import fits, linear

SCORES = 1 << 24  # numbers of a chunk of an attention matrix
HIDDEN = 1 << 24  # numbers; a larger hidden layer is computed again rather than kept
CHUNK = 4_096  # tokens whose hidden layer is there at once


@dataclass(frozen=True, eq=False)
class Where:
    """Who attends to whom in a layer, and how their places enter its scores.

    Args:
        neighbourhood: of the tokens.
        bias: added to scores, by offset; None: nothing is.
        turns: by which queries and keys are rotated; None: they are not.
    """

    neighbourhood: Neighbourhood
    bias: OffsetBias | None = None
    turns: Turns | None = None


class Block(nn.Module):
    """x + proj(attention(norm1 x)), then x + fc2(gelu(fc1(norm2 x))).

    Args:
        dim: width E. heads: H. mlp_ratio: width of the hidden layer in E; 0: there is none.
        dropout: of attention weights, training only.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        hidden = int(dim * mlp_ratio)
        self.norm2 = nn.LayerNorm(dim) if hidden else None
        self.fc1 = nn.Linear(dim, hidden) if hidden else None
        self.fc2 = nn.Linear(hidden, dim) if hidden else None

    def forward(self, x: Tensor, where: Where) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (T, E), and the queries and keys (T, H, D) that met."""
        qkv = linear(self.norm1(x), self.qkv)  # (T, 3 E)
        q, k, v = qkv.view(len(x), 3, self.heads, -1).unbind(1)  # (T, H, D)
        if where.turns is not None:
            q, k = rotate(q, where.turns), rotate(k, where.turns)
        drop = self.dropout if self.training else 0.0
        attended = grid_attention(q, k, v, where.neighbourhood, where.bias, drop)
        return self._fed(x + linear(attended.flatten(1), self.proj)), q, k

    def _fed(self, x: Tensor) -> Tensor:
        if self.norm2 is None or self.fc1 is None or self.fc2 is None:
            return x
        if len(x) * self.fc1.out_features <= HIDDEN or not fits(x, self.fc1, self.fc2):
            return x + self._feed(x)
        again = [checkpoint(self._feed, some, use_reentrant=False) for some in x.split(CHUNK)]
        return x + torch.cat(again)

    def _feed(self, x: Tensor) -> Tensor:
        assert self.norm2 is not None and self.fc1 is not None and self.fc2 is not None
        return linear(F.gelu(linear(self.norm2(x), self.fc1)), self.fc2)


@torch.no_grad()
def received(q: Tensor, k: Tensor, among: Everywhere, bias: OffsetBias | None) -> Tensor:
    """(T,) the share of its slide's attention that each token receives, mean over heads.

    Args:
        q, k: (T, H, D).

    Cost: as many products as the layer's scores; memory for a chunk of them.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k = q.to(wide), k.to(wide)
    shares, (_, heads, width) = q.new_empty(len(q)), q.shape
    for start, end in itertools.pairwise(among.bounds):
        total, n = q.new_zeros(end - start), end - start
        step = max(1, SCORES // (heads * max(n, 1)))
        for at in range(start, end, step):
            some = slice(at, min(at + step, end))
            scores = torch.einsum("qhd,khd->hqk", q[some], k[start:end]) / math.sqrt(width)
            if bias is not None:
                offset = among.cells[None, start:end] - among.cells[some, None]  # (q, k, 2)
                scores += bias(offset)
            total += scores.softmax(-1).sum((0, 1))
        shares[start:end] = total / (heads * n)
    return shares
