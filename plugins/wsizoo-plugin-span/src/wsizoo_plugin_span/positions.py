"""Where a token lies, as its attention hears it: rotary angles, and ALiBi's slopes as a table."""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10_000.0


def rotary_width(head_dim: int, share: float = 1.0) -> int:
    """Channels of a head that are rotated: the largest multiple of 4 in this share of them."""
    return int(head_dim * share) // 4 * 4


def angles(cells: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles.

    The first half of the angles follows axis 0, the second axis 1, each with frequencies
    10000^(-2 j / (width / 2)), j = 0 .. width / 4 - 1.

    Args:
        cells: (T, 2) int64. width: channels to rotate, a multiple of 4.

    Returns:
        (T, width / 2) each.

    Source: Su et al. 2021 (RoPE), along two axes as in SPAN (2026).
    """
    # in float64: half precision does not know cells beyond 256 apart, nor float32 a millionth turn
    steps = torch.arange(width // 4, device=cells.device, dtype=torch.float64)
    frequencies = BASE ** (-4 * steps / width)
    turned = cells.double()[:, :, None] * frequencies  # (T, 2, width / 4)
    flat = turned.flatten(1)  # (T, width / 2)
    return flat.cos().to(dtype), flat.sin().to(dtype)


def rotate(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate neighbouring pairs of the first channels of each head; the others stay.

    Args:
        x: (T, H, D). turns: cosines and sines, (T, R / 2) each.
    """
    cos, sin = (part[:, None] for part in turns)  # (T, 1, R / 2)
    width = 2 * cos.shape[-1]
    even, odd = x[..., 0:width:2], x[..., 1:width:2]  # (T, H, R / 2)
    pairs = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1)
    return torch.cat([pairs.flatten(2), x[..., width:]], -1)


def alibi_slopes(heads: int) -> Tensor:
    """(H,) slopes: 2^(-8 i / H) for a power of two, else the nearest ones below and between.

    Source: Press, Smith and Lewis, "Train Short, Test Long", ICLR 2022.
    """
    power = 1 << (heads.bit_length() - 1)
    exact = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    between = [2.0 ** (-8 * (i + 1) / (2 * power)) for i in range(0, 2 * power, 2)]
    return torch.tensor([*exact, *between][:heads])


def alibi_table(slopes: Tensor, reach: int) -> Tensor:
    """(H, 2 reach + 1, 2 reach + 1), minus slope times Euclidean distance, by offset of the key."""
    axis = torch.arange(-reach, reach + 1, device=slopes.device, dtype=slopes.dtype)
    return -slopes[:, None, None] * torch.hypot(axis[:, None], axis[None])
