"""The linear global layer: one Mamba block along the columns and the rows of occupied cells."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsizoo.bag import segment_ids
from wsizoo.mamba import MambaBlock


class CrossScanMamba(nn.Module):
    """tokens + the mean of one Mamba block's scans over norm(tokens) in four orders.

    Column by column and row by row, each from the first cell to the last and back. Only occupied
    cells are steps, so a row jumps over its gaps. Tokens of one cell follow each other as given.

    Args:
        dim: width of a token. d_state, d_conv, expand: as `MambaBlock`.

    Cost: linear in tokens; the block's projections once, its scan four times.
    Source: LongMIL (NeurIPS 2024), Appendix A.1, "V-Mamba"; the sketch in its repository.
    Differs: the sketch has no residual; a block in its place would forget the local layers.
    """

    def __init__(self, dim: int, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mamba = MambaBlock(dim, d_state, d_conv, expand)

    def forward(self, tokens: Tensor, cells: Tensor, offsets: Tensor) -> Tensor:
        """(T, E) -> (T, E).

        Args:
            cells: (T, 2) int64 (x, y), each slide's in its own frame.
            offsets: (B+1,) int64, slide b owns rows offsets[b]:offsets[b+1].
        """
        orders = cross_orders(cells, offsets)  # (2 T,)
        inner, gate = (part[orders] for part in self.mamba.project_in(self.norm(tokens)))
        twice = torch.cat([offsets, offsets[1:] + len(tokens)])  # (2 B + 1,)
        ahead = self.mamba.branch(inner, gate, twice)  # (2 T, E_inner)
        back = self.mamba.branch(inner, gate, twice, reverse=True)
        total = ahead.new_zeros(len(tokens), ahead.shape[1]).index_add(0, orders, ahead + back)
        mixed: Tensor = self.mamba.out_proj(total / 4)  # it is linear: the mean of its four results
        return tokens + mixed


def cross_orders(cells: Tensor, offsets: Tensor) -> Tensor:
    """(2 T,) int64 tokens column by column, then row by row, slides one after another in both."""
    slides = segment_ids(offsets, len(cells))
    along = []
    for minor, major in ((1, 0), (0, 1)):  # y within x, x within y
        order = torch.argsort(cells[:, minor], stable=True)
        for key in (cells[:, major], slides):
            order = order[torch.argsort(key[order], stable=True)]
        along.append(order)
    return torch.cat(along)
