"""Dropout of which nothing is kept for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wsizoo.ops.draws import Draws, new_seed
from wsizoo.ops.rows import observed


class Dropout(nn.Dropout):
    """`nn.Dropout`; on a CPU no mask is kept: the backward pass draws again."""

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and 0 < self.p < 1) or input.device.type != "cpu" or observed():
            return F.dropout(input, self.p, self.training)
        apply: Any = _Dropped.apply
        dropped: Tensor = apply(input, self.p)
        return dropped


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.drawn = share, new_seed(share)
        return _dropped(x, *ctx.drawn)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return _dropped(slope, *ctx.drawn), None


def _dropped(x: Tensor, share: float, seed: int) -> Tensor:
    draws = Draws(share, torch.Generator().manual_seed(seed))
    return draws.keep(x).mul_(x).div_(draws.kept)
