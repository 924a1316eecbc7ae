"""Which entries of a tensor dropout keeps: cheap draws, that can be drawn again."""

from __future__ import annotations

import torch
from torch import Tensor

from wsizoo.ops.memory import scratch


class Draws:
    """Draws of which entries of tensors are kept.

    An entry is dropped where a random integer lies below a bound: one of 8 bits where the share is
    a multiple of 1/256, so that 64 random bits are 8 draws; else of 16 bits. So the share is exact,
    or right to 1.5e-5.

    Args:
        share: of what is dropped, in [0, 1). generator: None: torch's own.
    """

    def __init__(self, share: float, generator: torch.Generator | None = None) -> None:
        self.bits = 8 if float(share * 256).is_integer() else 16
        self.bound, self.generator = round(share * (1 << self.bits)), generator

    @classmethod
    def of(cls, share: float, seed: int, device: torch.device | str = "cpu") -> Draws | None:
        """Those of a seed; None where nothing is dropped."""
        return cls(share, torch.Generator(device).manual_seed(seed)) if share else None

    @property
    def kept(self) -> float:
        """The probability that an entry is kept."""
        return 1 - self.bound / (1 << self.bits)

    def keep(self, like: Tensor) -> Tensor:
        """1 where an entry is kept, else 0; contiguous, of shape and dtype of `like`."""
        return self.into(scratch(*like.shape, like=like))

    def into(self, out: Tensor) -> Tensor:
        """The same into contiguous memory of any dtype."""
        words = torch.empty(-(-out.numel() * self.bits // 64), dtype=torch.int64, device=out.device)
        words.random_(-(1 << 63), None, generator=self.generator)
        kind = torch.int8 if self.bits == 8 else torch.int16
        draws = words.view(kind)[: out.numel()].view(out.shape)
        draws.ge_(self.bound - (1 << (self.bits - 1)))  # into another dtype takes 20 times as long
        bytes_or_floats = out.view(torch.int8) if out.dtype == torch.bool else out
        bytes_or_floats.copy_(draws)
        return out


def new_seed(share: float) -> int:
    """Of torch's generator, which is asked only where something is dropped."""
    return int(torch.randint(1 << 62, ())) if share else 0
