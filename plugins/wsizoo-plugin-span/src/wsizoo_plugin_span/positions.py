"""Where a token lies, as its attention hears it: channels that turn, ALiBi as a table."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_width(head_dim: int, share: float = 1.0) -> int:
    """Channels of a head that are rotated: the largest multiple of 4 in this share of them."""
    return int(head_dim * share) // 4 * 4


def alibi_table(slopes: Tensor, reach: int) -> Tensor:
    """(H, 2 reach + 1, 2 reach + 1), minus slope times Euclidean distance, by offset of the key."""
    axis = torch.arange(-reach, reach + 1, device=slopes.device, dtype=slopes.dtype)
    return -slopes[:, None, None] * torch.hypot(axis[:, None], axis[None])
