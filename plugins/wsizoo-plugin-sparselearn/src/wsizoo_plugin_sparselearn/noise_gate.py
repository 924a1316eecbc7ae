"""The noise gate: a patch fades into noise of its own variance as its gate closes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsizoo.ops import SoftTopk
from wsizoo.selection import check_option

STATS = ("channel", "channel-running", "unit", "token")
SLOWEST = 0.01  # share of a new slide in the running averages, once they have seen many


class NoiseGate(nn.Module):
    """mean + sqrt(g) (x - mean) + sqrt(1 - g) deviation noise: open gives x, closed gives noise.

    Args:
        in_dim: width D of the features.
        stats: what the noise is like. "unit": mean 0, deviation 1, for features on that scale.
            "token": mean 0, the root mean square of the patch itself. "channel": mean and
            deviation of each channel over the slide's patches. "channel-running": the same, as
            running averages over the slides of the training (before the first, the slide's own).

    No gradient passes through mean and deviation.

    Source: "unit" is DiffPrune's, https://arxiv.org/abs/2605.28051, eq. 5; the others are ours.
    """

    mean: Tensor
    deviation: Tensor
    slides: Tensor

    def __init__(self, in_dim: int, stats: str = "channel") -> None:
        super().__init__()
        check_option("stats", stats, stats in STATS, f"one of {', '.join(STATS)}")
        self.stats = stats
        if stats == "channel-running":
            self.register_buffer("mean", torch.zeros(in_dim))
            self.register_buffer("deviation", torch.zeros(in_dim))
            self.register_buffer("slides", torch.tensor(0))  # how many were seen

    def forward(self, x: Tensor, gates: SoftTopk, noise: Tensor) -> Tensor:
        """x, noise (N, D) -> (N, D); the noise is standard normal."""
        mean, deviation = self.moments(x.detach())
        root, rest_root = (values.to(x.dtype)[:, None] for values in (gates.root, gates.rest_root))
        noise = mean + rest_root * (deviation * noise) - root * mean
        return root * x + noise

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the noise for patches (N, D): numbers, (N, 1) or (D,)."""
        if self.stats == "unit":
            return x.new_zeros(()), x.new_ones(())
        if self.stats == "token":
            return x.new_zeros(()), x.square().mean(1, keepdim=True).sqrt()  # (N, 1)
        self.observe(x)
        if self.stats == "channel-running" and int(self.slides):
            return self.mean, self.deviation
        return _of_channels(x)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Have the running averages, where there are any, take in a slide (N, D) of training."""
        if self.stats == "channel-running" and self.training:
            self.slides += 1
            share = max(1 / int(self.slides), SLOWEST)
            for average, found in zip((self.mean, self.deviation), _of_channels(x), strict=True):
                average.lerp_(found.to(average), share)


def _of_channels(x: Tensor) -> tuple[Tensor, Tensor]:
    """(D,) each; the deviation divides by N."""
    return x.mean(0), x.std(0, correction=0)
