"""PPEG: positions of tokens, as depthwise convolutions over the rectangle that they fill."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PPEG(nn.Module):
    """f + conv7(f) + conv5(f) + conv3(f), depthwise, with biases and zero padding.

    The three are done as one convolution, whose kernel is their sum.

    Cost: 49 E multiply-adds a token.
    Source: TransMIL, https://arxiv.org/abs/2106.00908, section 3.3.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv7 = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.conv5 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.conv3 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """(B, height * width, E), row by row, -> the same."""
        small = F.pad(self.conv5.weight, [1] * 4) + F.pad(self.conv3.weight, [2] * 4)
        kernel = self.conv7.weight + small  # (E, 1, 7, 7)
        # one by one: parts of one stacked tensor would get gradients that share memory
        convs = self.conv7, self.conv5, self.conv3
        seven, five, three = (conv.bias for conv in convs if conv.bias is not None)
        bias = seven + five + three
        # channels last, as tokens lie in memory: a view, and twice as fast
        image = tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        moved = F.conv2d(image, kernel, bias, padding=3, groups=len(kernel))
        return tokens + moved.permute(0, 2, 3, 1).flatten(1, 2)
