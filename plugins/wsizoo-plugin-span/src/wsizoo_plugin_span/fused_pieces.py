"""What the fused paths share: rows in chunks that a cache holds, sums over them, kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from wsizoo.ops import chunks, outer

NORM = torch.ops.aten.native_layer_norm
NORM_BACKWARD = torch.ops.aten.native_layer_norm_backward
RELU_BACKWARD = torch.ops.aten.threshold_backward.grad_input


def pieces(parts: Sequence[Tensor]) -> Iterator[tuple[int, slice]]:
    """The rows of each of several tensors in chunks."""
    return ((i, some) for i, part in enumerate(parts) for _, some in chunks(0, len(part)))


class Total:
    """A gradient summed over chunks.

    Args:
        like: what it is the gradient of.
        wanted: False: nobody asks, and nothing is summed.
    """

    def __init__(self, like: Tensor, wanted: bool = True) -> None:
        self._like, self._wanted = like, wanted
        self._sum: Tensor | None = None

    def add(self, part: Tensor) -> None:
        """`part` is not to be read again."""
        if self._wanted:
            self._sum = part if self._sum is None else self._sum.add_(part)

    def add_outer(self, left: Tensor, right: Tensor) -> None:
        """left.T @ right."""
        if self._wanted:
            self._sum = outer(left, right, self._sum)

    @property
    def value(self) -> Tensor:
        """Zeros where nothing was added."""
        return torch.zeros_like(self._like) if self._sum is None else self._sum

    @property
    def gradient(self) -> Tensor | None:
        """The value, or None where nobody asked."""
        return self.value if self._wanted else None
