"""A layer of SPAN v1: attention in windows and through global tokens, with its position terms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsizoo.ops import grid_attention, segment_softmax, segment_sum
from wsizoo_plugin_span.v1_grids import Grid

POSITIONS = ("rpb", "alibi", "rope", "none")
STD = 0.02  # of tables and tokens before training


class RelativeBias(nn.Module):
    """A learnable bias (H, 2w+1, 2w+1) an offset; offsets beyond w have that of w.

    Source: the size is the paper's; that far offsets are cut is Shaw, Uszkoreit and Vaswani 2018,
    Section 3.2, which it cites.
    """

    def __init__(self, heads: int, half: int) -> None:
        super().__init__()
        table = torch.empty(heads, 2 * half + 1, 2 * half + 1)
        self.table = nn.Parameter(nn.init.trunc_normal_(table, std=STD))
        self.window = half

    def forward(self, reach: int) -> Tensor:
        """(H, 2 reach + 1, 2 reach + 1), for offsets up to `reach`."""
        w = self.window
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


class NoBias(nn.Module):
    """No bias: positions are rotary, or none."""

    def forward(self, reach: int) -> None:
        return None


def position_bias(position: str, heads: int, half: int) -> nn.Module:
    """The bias of a layer whose position terms are of this kind, one of `POSITIONS`."""
    if position == "rpb":
        return RelativeBias(heads, half)
    return AxialAlibi(heads) if position == "alibi" else NoBias()


class Layer(nn.Module):
    """x + out(attention(norm1(x))), then x + ffn(norm2(x)), over tokens and global tokens alike.

    The attention of a token is the sum of two: over its windows' tokens, with the position terms,
    and over the global tokens of its slide. That of a global token is over all tokens of its slide.

    Args:
        dim: width E. heads: H. hidden: width of the feed-forward network.
        bias: of the windows' scores. dropout: of attention weights, training only.
    """

    def __init__(self, dim: int, heads: int, hidden: int, bias: nn.Module, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.bias = bias
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))

    def forward(
        self, tokens: Tensor, relays: Tensor, grid: Grid, turns: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step for all tokens.

        Args:
            tokens: (T, E). relays: (B, M, E), the global tokens. turns: as `rotated` takes them.

        Returns:
            Both anew, and (T, M, H) how much each global token attended to each token.
        """
        n, drop = len(tokens), self.dropout if self.training else 0.0
        x = torch.cat([tokens, relays.flatten(0, 1)])  # (T + B M, E)
        qkv = self.qkv(self.norm1(x)).view(len(x), 3, self.heads, -1)  # (T + B M, 3, H, D)
        near = self.in_windows(qkv[:n], grid, turns, drop)
        relay_qkv = qkv[n:].view(*relays.shape[:2], *qkv.shape[1:])  # (B, M, 3, H, D)
        far, heard, weights = relayed(qkv[:n], relay_qkv, grid, drop)
        x = x + self.out(torch.cat([near + far, heard.flatten(0, 1)]).flatten(1))
        x = x + self.ffn(self.norm2(x))
        return x[:n], x[n:].view_as(relays), weights

    def in_windows(self, qkv: Tensor, grid: Grid, turns: Tensor | None, drop: float) -> Tensor:
        """The tokens' attention among each other, (T, 3, H, D) -> (T, H, D)."""
        q, k, v = qkv.unbind(1)
        if turns is not None:
            q, k = rotated(q, turns), rotated(k, turns)
        bias = self.bias(grid.windows.reach)
        attended: Tensor = grid_attention(q, k, v, grid.windows, bias, drop)
        return attended


def relayed(
    qkv: Tensor, relay_qkv: Tensor, grid: Grid, dropout: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens attend to the global tokens of their slide, and these to all its tokens.

    Args:
        qkv: (T, 3, H, D) of the tokens. relay_qkv: (B, M, 3, H, D) of the global tokens.

    Returns:
        (T, H, D) for the tokens, (B, M, H, D) for the global tokens, and the weights (T, M, H) of
        the latter, before dropout.
    """
    q, k, v = qkv[:, None].unbind(2)  # (T, 1, H, D)
    theirs = relay_qkv if len(relay_qkv) == 1 else relay_qkv[grid.segments]
    their_q, their_k, their_v = theirs.unbind(2)  # (T or 1, M, H, D)
    scale = q.shape[-1] ** -0.5
    asked = torch.softmax((q * their_k).sum(-1) * scale, 1)  # (T, M, H)
    told = (F.dropout(asked, dropout)[..., None] * their_v).sum(1)
    weights = segment_softmax((k * their_q).sum(-1) * scale, grid.offsets)
    heard = segment_sum(F.dropout(weights, dropout)[..., None] * v, grid.offsets)
    return told, heard, weights


def alibi_slopes(heads: int) -> Tensor:
    """(H,) 2^(-8 i / H) for i = 1..H, H a power of two; otherwise every second of the next one's.

    Source: Press et al. 2022, Section 3, and its authors' code for other numbers of heads.
    """
    power = 2 ** (heads.bit_length() - 1)
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    between = [2 ** (-8 * i / (2 * power)) for i in range(1, 2 * power + 1, 2)]
    return torch.tensor((slopes + between)[:heads])


def axial_turns(cells: Tensor, dim: int) -> Tensor:
    """(T, dim / 2) complex: the turns of axial RoPE, half for axis 0 and half for axis 1.

    Pair j of an axis turns by coordinate * 10000^(-2j / (dim / 2)); reckoned in float64, because
    cells far from the origin turn often.

    Source: Su et al. 2021, https://arxiv.org/abs/2104.09864; axial: Heo et al. 2024,
    https://arxiv.org/abs/2403.13298.
    """
    pairs = torch.arange(dim // 4, device=cells.device, dtype=torch.float64)
    speed = 10000.0 ** (-pairs / (dim // 4))  # (dim / 4,)
    angles = (cells[..., None] * speed).flatten(1)  # (T, dim / 2)
    return torch.polar(torch.ones_like(angles), angles)


def rotated(x: Tensor, turns: Tensor) -> Tensor:
    """x (T, H, D) with neighbouring channels (2j, 2j+1) as complex numbers times `turns`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    pairs = torch.view_as_complex(wide.reshape(*x.shape[:2], -1, 2))  # (T, H, D / 2)
    turned = pairs * turns[:, None].to(pairs.dtype)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)
