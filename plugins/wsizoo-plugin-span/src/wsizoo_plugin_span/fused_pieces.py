"""What the fused paths share: rows in chunks that a cache holds, sums over them, kernels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from wsizoo.ops import scratch

ROWS = 1024  # of a chunk
NORM = torch.ops.aten.native_layer_norm
NORM_BACKWARD = torch.ops.aten.native_layer_norm_backward
RELU_BACKWARD = torch.ops.aten.threshold_backward.grad_input


def chunks(*bounds: int) -> Iterator[tuple[int, slice]]:
    """The rows between each two of the bounds in chunks: which two, and the rows."""
    for i, (start, end) in enumerate(itertools.pairwise(bounds)):
        for at in range(start, end, ROWS):
            yield i, slice(at, min(at + ROWS, end))


def pieces(parts: Sequence[Tensor]) -> Iterator[tuple[int, slice]]:
    """The rows of each of several tensors in chunks."""
    return ((i, some) for i, part in enumerate(parts) for _, some in chunks(0, len(part)))


class Total:
    """A gradient summed over chunks; memory of a large one is the last step's, and not zeroed.

    Args:
        like: what it is the gradient of.
        wanted: False: nobody asks, and nothing is summed.
    """

    def __init__(self, like: Tensor, wanted: bool = True) -> None:
        self._sum = scratch(*like.shape, like=like) if wanted else None
        self._begun = False

    def add(self, part: Tensor) -> None:
        if self._sum is None:
            return
        if self._begun:
            self._sum.add_(part)
        else:
            self._sum.copy_(part)
        self._begun = True

    def add_product(self, left: Tensor, right: Tensor) -> None:
        if self._sum is None:
            return
        if self._begun:
            self._sum.addmm_(left, right)
        else:
            torch.mm(left, right, out=self._sum)
        self._begun = True

    @property
    def value(self) -> Tensor:
        """Zeros where nothing was added."""
        assert self._sum is not None
        return self._sum if self._begun else self._sum.zero_()

    @property
    def gradient(self) -> Tensor | None:
        """The value, or None where nobody asked."""
        return None if self._sum is None else self.value
