"""Where a token lies, as its attention hears it: ALiBi's slopes, rotary turns."""

from __future__ import annotations

import torch
from torch import Tensor

ROTARY_BASE = 10_000.0
Turns = tuple[Tensor, Tensor]  # cosines and sines, (T, 1 or H, R / 2)


def alibi_slopes(heads: int) -> Tensor:
    """(H,) slopes: 2^(-8 i / H) for a power of two, else the nearest ones below and between.

    Source: Press, Smith and Lewis, "Train Short, Test Long", ICLR 2022.
    """
    power = 1 << (heads.bit_length() - 1)
    exact = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    between = [2.0 ** (-8 * (i + 1) / (2 * power)) for i in range(0, 2 * power, 2)]
    return torch.tensor([*exact, *between][:heads])


def rotary_turns(cells: Tensor, width: int, dtype: torch.dtype) -> Turns:
    """Cosines and sines (T, 1, width / 2) of rotary angles, those of axis 0 before those of axis 1.

    Pairs of neighbouring channels turn with frequencies 10000^(-2 j / (width / 2)) a cell, j = 0 ..
    width / 4 - 1.

    Args:
        cells: (T, 2) int64. width: channels to rotate, a multiple of 4.

    Source: Su et al. 2021 (RoPE), along two axes: the offset alone decides what a score becomes.
    """
    # in float64: half precision does not know cells beyond 256 apart, nor float32 a millionth turn
    steps = torch.arange(width // 4, device=cells.device, dtype=torch.float64)
    angles = cells.double()[:, :, None] * ROTARY_BASE ** (-4 * steps / width)  # (T, 2, width / 4)
    flat = angles.flatten(1)[:, None]  # (T, 1, width / 2)
    return flat.cos().to(dtype), flat.sin().to(dtype)


def rotate(x: Tensor, by: Turns) -> Tensor:
    """Rotate neighbouring pairs of the first R channels of each head; the others stay.

    Args:
        x: (T, H, D). by: (T, 1 or H, R / 2) each.
    """
    cos, sin = by
    width = 2 * cos.shape[-1]
    even, odd = x[..., 0:width:2], x[..., 1:width:2]  # (T, H, R / 2)
    rotated = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(2)
    return rotated if width == x.shape[-1] else torch.cat([rotated, x[..., width:]], -1)
