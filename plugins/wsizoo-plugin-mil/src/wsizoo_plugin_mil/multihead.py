"""Multi-head attention within a slide or between two sets of rows; no map of all pairs is held."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

AT_ONCE = 2**21  # weights of attention that are held at once where a kernel does not do it


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

    Torch's kernel for CPUs has no dropout and would hold all weights, see `Dropped`.
    """
    q, k, v = (x.unflatten(1, (heads, -1)).transpose(0, 1) for x in (q, k, v))  # (H, n, d)
    if not dropout or q.is_cuda:
        mixed = F.scaled_dot_product_attention(q[None], k[None], v[None], dropout_p=dropout)[0]
    else:
        seed = int(torch.randint(2**62, ()))
        scaled = q * q.shape[-1] ** -0.5
        mixed = cast(Tensor, Dropped.apply(scaled, k.contiguous(), v.contiguous(), dropout, seed))
    return mixed.transpose(0, 1).flatten(1)


class Dropped(torch.autograd.Function):
    """dropout(softmax(q k^T)) v for (H, n, d), a few rows at a time; those are computed again for
    the gradient, and drawn again from the same seed.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float, seed: int) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.drawn = dropout, seed
        mixed = torch.empty_like(q)
        for head, rows, weights, keep in _blocks(q, k, dropout, seed):
            mixed[head, rows] = weights.mul_(keep) @ v[head]
        return mixed.div_(1 - dropout)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        dropout, _ = ctx.drawn
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for head, rows, weights, keep in _blocks(q, k, *ctx.drawn):
            above = grad[head, rows] / (1 - dropout)
            dv[head].addmm_((weights * keep).t(), above)
            inner = (above @ v[head].t()).mul_(keep).mul_(weights)
            inner.sub_(weights.mul_(inner.sum(-1, keepdim=True)))
            dq[head, rows] = inner @ k[head]
            dk[head].addmm_(inner.t(), q[head, rows])
        return dq, dk, dv, None, None


def _blocks(
    q: Tensor, k: Tensor, dropout: float, seed: int
) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
    """Which head and rows, their weights (few, m), and which of them are kept."""
    generator = torch.Generator(q.device).manual_seed(seed)
    few = max(1, AT_ONCE // k.shape[1])
    for head, start in itertools.product(range(len(q)), range(0, q.shape[1], few)):
        rows = slice(start, start + few)
        weights = torch.softmax(q[head, rows] @ k[head].t(), -1)
        yield head, rows, weights, kept(weights.shape, dropout, generator)


def kept(shape: Sequence[int], dropout: float, generator: torch.Generator) -> Tensor:
    """Bool, True with probability 1 - dropout, which is rounded to a 65,536th.

    Four draws are taken of one number, a tenth of the time of `torch.bernoulli` on a CPU.
    """
    count = math.prod(shape)
    numbers = torch.empty(-(-count // 4), dtype=torch.int64, device=generator.device)
    draws = numbers.random_(-(2**63), None, generator=generator).view(torch.int16)[:count]
    return draws.view(*shape) >= round(dropout * 2**16) - 2**15


def weights(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """(n, E), (m, E) -> (n, m): what each row pays to each, the mean over heads."""
    total = torch.zeros(len(q), len(k), dtype=q.dtype, device=q.device)
    for one, other in zip(q.chunk(heads, 1), k.chunk(heads, 1), strict=True):
        total += torch.softmax(one @ other.t() * one.shape[1] ** -0.5, 1)
    return total / heads
