"""Standardisation of features by the training patches' mean and standard deviation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from wsizoo.bag import Bag
from wsizoo.errors import DataError


class Standardise(nn.Module):
    """(x - mean) / deviation, channel by channel; a channel that never varies is only shifted.

    The statistics are buffers, so that a saved model carries them and a resumed run keeps them.
    An aggregator makes one of its own, applies it first, and calls `measure` in `start_training`.

    Args:
        in_dim: width D of the features.
    """

    mean: Tensor
    deviation: Tensor
    patches: Tensor

    def __init__(self, in_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(in_dim))
        self.register_buffer("deviation", torch.ones(in_dim))
        self.register_buffer("patches", torch.tensor(0))  # how many were measured

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, D). Unmeasured, as in a model of random weights, they stay as they are.

        Raises:
            DataError: in training, before anything was measured.
        """
        if self.training and not self.patches:
            raise DataError(
                "the aggregator standardises features and has not seen those of the training part. "
                "Call model.start_training(total_steps, bags) before the first step"
            )
        return (features - self.mean) / self.deviation

    def measure(self, slides: Iterable[Bag]) -> None:
        """Take the mean and deviation of all patches, alike whichever slide they are of.

        Cost: the slides are read once; float64 sums.
        """
        patches, mean, deviation = moments(bag.features for bag in slides)
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)
        self.patches.fill_(patches)


def moments(parts: Iterable[Tensor]) -> tuple[int, Tensor, Tensor]:
    """Number of rows, and mean and standard deviation (D,) float64 over all.

    The deviation is 1 where float32 does not tell the values apart.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances", 1979: no two large sums are subtracted.
    """
    n, mean, squares = 0, torch.tensor(0.0), torch.tensor(0.0)
    for part in parts:
        rows = part.double()  # (N, D)
        here, k = rows.mean(0), len(rows)
        apart = here - mean
        squares = squares + (rows - here).square().sum(0) + apart.square() * (n * k / (n + k))
        mean = mean + apart * (k / (n + k))
        n += k
    deviation = (squares / max(n, 1)).sqrt()
    varies = deviation > torch.finfo(torch.float32).eps * mean.abs()
    return n, mean, torch.where(varies, deviation, 1.0)
