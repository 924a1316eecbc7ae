"""The embedding of patches that aggregators begin with: linear layers with ReLU."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

from wsizoo.ops import RowLinear


def layers(widths: Sequence[int], dropout: float, last: float | None = None) -> list[nn.Module]:
    """Linear, ReLU and dropout for each two widths.

    Args:
        dropout: after each layer. last: after the last one, where it is another.
    """
    shares = [dropout] * (len(widths) - 2) + [dropout if last is None else last]
    return [
        part
        for (a, b), share in zip(itertools.pairwise(widths), shares, strict=True)
        for part in (RowLinear(a, b), nn.ReLU(inplace=True), nn.Dropout(share))
    ]
