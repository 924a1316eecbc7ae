"""Nystrom attention: softmax attention through a few landmarks; no N x N map is ever made."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsizoo.ops import RowLinear

EPS = 1e-8
BLOCK = 64  # rows of the sequence that one product of the residual convolution gives


@dataclass(frozen=True)
class Factors:
    """What attention is made of: softmax(q kl^T) inverse softmax(ql k^T), over T padded rows.

    Args:
        q, k, v: (B, H, T, d), q scaled. ql, kl: (B, H, m, d) landmarks. inverse: (B, H, m, m).
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
        left = _softmax(self.q[:, :, rows] @ self.kl.mT, queries, self.landmarks)
        right = _softmax(self.ql @ self.k.mT, self.landmarks, self.keys)  # (B, H, m, T)
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
        self.drop = nn.Dropout(dropout)
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
            seen = F.scaled_dot_product_attention(f.ql, f.k, f.v, scale=1.0)  # (B, H, m, d)
            mixed = F.scaled_dot_product_attention(f.q, f.kl, f.inverse @ seen, scale=1.0)
        else:
            seen = _softmax(f.ql @ f.k.mT, f.landmarks, f.keys) @ f.v
            mixed = _softmax(f.q @ f.kl.mT, f.keys, f.landmarks) @ (f.inverse @ seen)
        mixed = mixed + along(f.v, self.conv.weight.flatten(1))  # (B, H, T, d)
        joined = mixed[:, :, f.padding :].transpose(1, 2).flatten(2)  # (B, n, H d)
        return self.drop(self.out(joined)), f

    def factors(self, x: Tensor, mask: Tensor | None = None) -> Factors:
        b, n, _ = x.shape
        m = self.landmarks
        padding = -n % m
        x = F.pad(x, (0, 0, padding, 0))  # (B, T, E)
        qkv = self.qkv(x).view(b, n + padding, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if mask is not None:
            mask = F.pad(mask, (padding, 0), value=False)
            qkv = qkv * mask[None, :, None, :, None]
        q, k, v = qkv.unbind(0)  # (B, H, T, d)
        q = q * q.shape[-1] ** -0.5
        runs = (n + padding) // m
        if mask is None:
            ql, kl = (y.unflatten(2, (m, runs)).mean(3) for y in (q, k))
            landmarks = None
        else:
            count = mask.view(b, m, runs).sum(2)  # (B, m)
            share = 1 / (count + EPS)
            ql, kl = (
                y.unflatten(2, (m, runs)).sum(3) * share[:, None, :, None].to(y) for y in (q, k)
            )
            landmarks = count > 0
        inverse = pseudo_inverse(_softmax(ql @ kl.mT, landmarks, landmarks), self.iterations)
        return Factors(q, k, v, ql, kl, inverse, mask, landmarks, padding)


def along(v: Tensor, kernels: Tensor) -> Tensor:
    """The convolution of (B, H, T, d) along T with one kernel (H, K), K odd, a head; zero padding.

    As products of a band matrix with blocks of rows, which a depthwise convolution is not fast at.
    """
    (b, heads, length, d), k = v.shape, kernels.shape[1]
    rows = max(BLOCK, k - 1)
    blocks = -(-length // rows)
    after = (blocks + 1) * rows - length - k // 2
    padded = F.pad(v, (0, 0, k // 2, after)).unflatten(2, (blocks + 1, rows))
    side = padded.transpose(2, 3).reshape(b, heads, rows, -1)  # (B, H, rows, (blocks + 1) d)
    # rows of a period one longer than the matrix is wide: each begins one column further on
    period = F.pad(kernels, (0, rows)).repeat(1, rows)[:, : rows * (rows + k - 1)]
    band = period.view(heads, rows, rows + k - 1)
    own, next_ = side[..., : blocks * d], side[:, :, : k - 1, d:]
    moved = band[..., :rows] @ own + band[..., rows:] @ next_  # (B, H, rows, blocks d)
    return moved.unflatten(3, (blocks, d)).transpose(2, 3).flatten(2, 3)[:, :, :length]


def _softmax(scores: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """Over the last axis; only where row and column are allowed. rows: (B, r). columns: (B, c)."""
    if rows is not None and columns is not None:
        allowed = rows[:, None, :, None] & columns[:, None, None, :]
        scores = scores.masked_fill(~allowed, -torch.finfo(scores.dtype).max)
    return torch.softmax(scores, -1)


def pseudo_inverse(a: Tensor, iterations: int) -> Tensor:
    """Of the last two axes, by iterations that do not fully converge; scaled by maxima over all."""
    size = a.abs()
    z = a.mT / (size.sum(-1).max() * size.sum(-2).max())
    one = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(iterations):
        y = a @ z
        z = 0.25 * z @ (13 * one - y @ (15 * one - y @ (7 * one - y)))
    return z
