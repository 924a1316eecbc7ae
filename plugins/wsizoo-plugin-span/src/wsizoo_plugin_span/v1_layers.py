"""A layer of SPAN v1: attention in windows and through global tokens, with its position terms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsizoo.ops import alibi_slopes, grid_attention, rotate, segment_softmax, segment_sum
from wsizoo_plugin_span.pyramid import Level

STD = 0.02  # of tables and tokens before training


class RelativeBias(nn.Module):
    """A learnable bias (H, 2w+1, 2w+1) an offset; offsets beyond w have that of w.

    Source: the size is the paper's; that far offsets are cut is Shaw, Uszkoreit and Vaswani 2018,
    Section 3.2, which it cites.
    """

    def __init__(self, heads: int, half_window: int) -> None:
        super().__init__()
        self.half_window = half_window
        table = torch.empty(heads, 2 * half_window + 1, 2 * half_window + 1)
        self.table = nn.Parameter(nn.init.trunc_normal_(table, std=STD))

    def forward(self, reach: int) -> Tensor:
        """(H, 2 reach + 1, 2 reach + 1), for offsets up to `reach`."""
        w = self.half_window
        at = torch.arange(-reach, reach + 1, device=self.table.device).clamp(-w, w) + w
        return self.table[:, at][:, :, at]


class AxialAlibi(nn.Module):
    """One ALiBi an axis: minus slope times (|da| + |db|).

    Source: Press, Smith and Lewis 2022, https://arxiv.org/abs/2108.12409.
    """

    slopes: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes", alibi_slopes(heads), persistent=False)

    def forward(self, reach: int) -> Tensor:
        """As `RelativeBias.forward`."""
        far = torch.arange(-reach, reach + 1, device=self.slopes.device).abs()
        return -self.slopes[:, None, None] * (far[:, None] + far)  # (H, 2R+1, 2R+1)


def position_bias(positions: str, heads: int, half_window: int) -> nn.Module | None:
    """The bias of a layer's scores where its position terms are one, else None."""
    if positions == "rpb":
        return RelativeBias(heads, half_window)
    return AxialAlibi(heads) if positions == "alibi" else None


class Layer(nn.Module):
    """x + out(attention(norm1(x))), then x + ffn(norm2(x)), over tokens and global tokens alike.

    The attention of a token is the sum of two: over its windows' tokens, with the position terms,
    and over the global tokens of its slide. That of a global token is over all tokens of its slide.

    Args:
        dim: width E. heads: H. hidden: width of the feed-forward network.
        pattern: of the windows. bias: of their scores, a function of their reach; None: no bias.
        rotary: whether queries and keys are rotated before they meet in windows.
        dropout: of attention weights, training only.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        pattern: str,
        bias: nn.Module | None,
        rotary: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.heads, self.pattern = heads, pattern
        self.rotary, self.dropout = rotary, dropout
        self.bias = bias
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))

    def forward(
        self, tokens: Tensor, relays: Tensor, level: Level
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step for all tokens (T, E) and all global tokens `relays` (B, M, E).

        Returns:
            Both anew, and (T, M, H) how much each global token attended to each token.
        """
        n, drop = len(tokens), self.dropout if self.training else 0.0
        x = torch.cat([tokens, relays.flatten(0, 1)])  # (T + B M, E)
        qkv = self.qkv(self.norm1(x)).view(len(x), 3, self.heads, -1)  # (T + B M, 3, H, D)
        near = self.in_windows(qkv[:n], level, drop)
        relay_qkv = qkv[n:].view(*relays.shape[:2], *qkv.shape[1:])  # (B, M, 3, H, D)
        far, heard, weights = relayed(qkv[:n], relay_qkv, level, drop)
        x = x + self.out(torch.cat([near + far, heard.flatten(0, 1)]).flatten(1))
        x = x + self.ffn(self.norm2(x))
        return x[:n], x[n:].view_as(relays), weights

    def in_windows(self, qkv: Tensor, level: Level, drop: float) -> Tensor:
        """The tokens' attention among each other, (T, 3, H, D) -> (T, H, D)."""
        q, k, v = qkv.unbind(1)
        if self.rotary:  # turns in float64: far from the corner there are many
            cos, sin = level.angles(q.shape[-1], torch.float64)
            turns = cos.to(q.dtype), sin.to(q.dtype)
            q, k = rotate(q, turns), rotate(k, turns)
        windows = level.neighbourhood(self.pattern)
        bias = None if self.bias is None else self.bias(windows.reach)
        attended: Tensor = grid_attention(q, k, v, windows, bias, drop)
        return attended


def relayed(
    qkv: Tensor, relay_qkv: Tensor, level: Level, dropout: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens attend to the global tokens of their slide, and these to all its tokens.

    Args:
        qkv: (T, 3, H, D) of the tokens. relay_qkv: (B, M, 3, H, D) of the global tokens.

    Returns:
        (T, H, D) for the tokens, (B, M, H, D) for the global tokens, and the weights (T, M, H) of
        the latter, before dropout.
    """
    q, k, v = qkv[:, None].unbind(2)  # (T, 1, H, D)
    theirs = relay_qkv if len(relay_qkv) == 1 else relay_qkv[level.segments]
    their_q, their_k, their_v = theirs.unbind(2)  # (T or 1, M, H, D)
    scale = q.shape[-1] ** -0.5
    asked = torch.softmax((q * their_k).sum(-1) * scale, 1)  # (T, M, H)
    told = (F.dropout(asked, dropout)[..., None] * their_v).sum(1)
    weights = segment_softmax((k * their_q).sum(-1) * scale, level.offsets)
    heard = segment_sum(F.dropout(weights, dropout)[..., None] * v, level.offsets)
    return told, heard, weights
