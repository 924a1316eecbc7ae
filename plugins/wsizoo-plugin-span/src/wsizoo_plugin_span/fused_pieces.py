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
    """A gradient summed over chunks; memory of a large one is the last step's, and not zeroed."""

    def __init__(self, like: Tensor) -> None:
        self._value = scratch(*like.shape, like=like)
        self._begun = False

    def add(self, part: Tensor) -> None:
        self._value = self._value.add_(part) if self._begun else self._value.copy_(part)
        self._begun = True

    def add_product(self, left: Tensor, right: Tensor) -> None:
        if self._begun:
            self._value.addmm_(left, right)
        else:
            torch.mm(left, right, out=self._value)
        self._begun = True

    @property
    def value(self) -> Tensor:
        return self._value if self._begun else self._value.zero_()
