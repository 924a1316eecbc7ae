"""Nystrom attention: softmax attention through a few landmarks; no N x N map is ever made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wsizoo.ops import Dropout, RowLinear, attention, observed, row_linear, stacked
from wsizoo.ops.rows import plain
from wsizoo_plugin_mil.along import along

EPS = 1e-8


@dataclass(frozen=True)
class Factors:
    """What attention is made of: softmax(q kl^T) inverse softmax(ql k^T), over T padded rows.

    Each softmax is of products divided by sqrt(d).

    Args:
        q, k, v: (B, H, T, d). ql, kl: (B, H, m, d) landmarks. inverse: (B, H, m, m).
        keys, landmarks: (B, T), (B, m) bool, which may be looked at; None: all.
        padding: rows of zeros before the first.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    ql: Tensor
    kl: Tensor
    inverse: Tensor
    keys: Tensor | None
    landmarks: Tensor | None
    padding: int

    def detached(self) -> Factors:
        names = ("q", "k", "v", "ql", "kl", "inverse")
        return replace(self, **{name: getattr(self, name).detach() for name in names})

    def rows(self, rows: slice) -> Tensor:
        """What these rows (of the padded sequence) pay to all: (B, H, rows, T); may be negative."""
        queries = None if self.keys is None else self.keys[:, rows]
        left = weights(self.q[:, :, rows], self.kl, queries, self.landmarks)
        right = weights(self.ql, self.k, self.landmarks, self.keys)  # (B, H, m, T)
        return left @ self.inverse @ right

    def token_row(self, token: int) -> Tensor:
        """What one token pays to each token: (B, H, n), without the padding."""
        at = self.padding + token
        return self.rows(slice(at, at + 1))[:, :, 0, self.padding :]


class NystromAttention(nn.Module):
    """(B, n, E) -> (B, n, E).

    Slides of one batch share the scale of the pseudo-inverse, so that they change one another's
    numbers a little: give them one by one.

    Args:
        dim: width E. heads: H of them. dim_head: width d of each. landmarks: m.
        iterations: of the pseudo-inverse. kernel: of the convolution that is added to the values.
        dropout: of the result, training only.

    Cost: with T the padded length, 4 T E^2 + 4 T m E + 24 H m^3 + m^2 E + 33 T E multiply-adds.
    Source: Xiong et al., "Nystromformer", AAAI 2021, https://arxiv.org/abs/2102.03902; padding,
    masks, residual convolution as https://github.com/lucidrains/nystrom-attention at fbe9eba.
    Differs: a1 (Z (a3 v)) for (a1 Z)(a3 v), the same but for rounding.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        dim_head: int = 64,
        landmarks: int = 256,
        iterations: int = 6,
        kernel: int = 33,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.landmarks, self.iterations = heads, landmarks, iterations
        inner = heads * dim_head
        self.qkv = RowLinear(dim, 3 * inner, bias=False)
        self.out = RowLinear(inner, dim)
        self.drop = Dropout(dropout)
        self.conv = nn.Conv2d(
            heads, heads, (kernel, 1), padding=(kernel // 2, 0), groups=heads, bias=False
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: (B, n, E). mask: (B, n) bool, which rows there are; None: all."""
        return self.with_factors(x, mask)[0]

    def with_factors(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Factors]:
        """As `forward`; also what the attention was made of, for who asks about rows of it."""
        f = self.factors(x, mask)
        if f.keys is None:
            seen = attention(f.ql, f.k, f.v)  # (B, H, m, d)
            mixed = attention(f.q, f.kl, f.inverse @ seen)
        else:
            seen = weights(f.ql, f.k, f.landmarks, f.keys) @ f.v
            mixed = weights(f.q, f.kl, f.keys, f.landmarks) @ (f.inverse @ seen)
        mixed = mixed + along(f.v, self.conv.weight.flatten(1))  # (B, H, T, d)
        joined = mixed[:, :, f.padding :].transpose(1, 2).flatten(2)  # (B, n, H d)
        return self.drop(self.out(joined)), f

    def three(self, x: Tensor) -> Sequence[Tensor]:
        """(B, T, E) -> queries, keys and values, (B, T, H d) each."""
        if not plain(self.qkv, RowLinear):
            return cast(Tensor, self.qkv(x)).chunk(3, 2)
        # one by one: gradients of parts of one tensor would be put together into another
        return [row_linear(x, weight) for weight in self.qkv.weight.chunk(3)]

    def factors(self, x: Tensor, mask: Tensor | None = None) -> Factors:
        m, padding = self.landmarks, -x.shape[1] % self.landmarks
        x = F.pad(x, (0, 0, padding, 0))  # (B, T, E)
        rows = self.three(x)
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in rows)  # (B, H, T, d)
        if mask is None:
            ql, kl = (y.unflatten(2, (m, -1)).mean(3) for y in (q, k))
            landmarks = None
        else:
            mask = F.pad(mask, (padding, 0), value=False)
            q, k, v = (y * mask[:, None, :, None] for y in (q, k, v))
            count = mask.unflatten(1, (m, -1)).sum(2)  # (B, m)
            share = 1 / (count + EPS)
            ql, kl = (
                y.unflatten(2, (m, -1)).sum(3) * share[:, None, :, None].to(y) for y in (q, k)
            )
            landmarks = count > 0
        inverse = pseudo_inverse(weights(ql, kl, landmarks, landmarks), self.iterations)
        return Factors(q, k, v, ql, kl, inverse, mask, landmarks, padding)


def weights(q: Tensor, k: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d)), only where row and column are allowed: (B, r), (B, c) bool."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if rows is not None and columns is not None:
        allowed = rows[:, None, :, None] & columns[:, None, None, :]
        scores = scores.masked_fill(~allowed, -torch.finfo(scores.dtype).max)
    return torch.softmax(scores, -1)


def pseudo_inverse(a: Tensor, iterations: int) -> Tensor:
    """Of the last two axes, by iterations that do not fully converge; scaled by maxima over all.

    Of an iteration its result alone is kept for the backward pass, which makes the rest again.
    """
    size = a.abs()
    z = a.mT / (size.sum(-1).max() * size.sum(-2).max())
    apply: Any = _Iteration.apply
    nearer = _nearer if observed() else apply
    for _ in range(iterations):
        z = nearer(a, z)
    return z


def _nearer(a: Tensor, z: Tensor) -> Tensor:
    r = _terms(a, z)[-1]
    return 0.25 * _times(z, r)


def _terms(a: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    """y = a z, p = 7 - y, q = 15 - y p, r = 13 - y q, of numbers that stand for the unit matrix."""
    one, y = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device), _times(a, z)
    p = 7 * one - y
    q = 15 * one - _times(y, p)
    return y, p, q, 13 * one - _times(y, q)


def _times(a: Tensor, b: Tensor) -> Tensor:
    if observed():
        return a @ b
    return stacked(a.flatten(0, -3), b.flatten(0, -3)).view(a.shape)


class _Iteration(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, z: Tensor) -> Tensor:
        ctx.save_for_backward(a, z)
        return _nearer(a, z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:
        a, z = ctx.saved_tensors
        y, p, q, r = _terms(a, z)
        of_r = _times(z.mT, slope).mul_(0.25)
        of_q = -_times(y.mT, of_r)
        of_p = -_times(y.mT, of_q)
        of_y = -(_times(of_r, q.mT) + _times(of_q, p.mT) + of_p)
        return _times(of_y, z.mT), _times(slope, r.mT).mul_(0.25).add_(_times(a.mT, of_y))
