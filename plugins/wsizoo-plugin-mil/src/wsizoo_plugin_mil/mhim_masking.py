"""Which patches MHIM-MIL masks, and the schedules of how many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsizoo_plugin_mil.attention_pooling import highest

AT_RANDOM = 0.001  # of a share that is drawn among all patches


@dataclass(frozen=True)
class Share:
    """A share of all patches that is masked.

    Args:
        ratio: of all patches. largest: those of the largest scores, or of the smallest.
        among: they are drawn at random from ratio / among of all; 1: none is drawn.
    """

    ratio: float
    largest: bool = True
    among: float = 1.0

    def counts(self, n: int) -> tuple[int, int]:
        """Of n patches: how many are ranked, and how many of these are masked."""
        wide, among = self.ratio / self.among, self.among
        if wide > 1:
            wide, among = 1.0, self.ratio
        ranked = min(n, math.ceil(n * wide))
        return ranked, ranked if among >= 1 else math.ceil(ranked * among)


def kept_patches(
    scores: Tensor,
    shares: Sequence[Share],
    ranked: Sequence[Tensor] | None = None,
    orders: Sequence[Tensor] | None = None,
) -> Tensor:
    """(K,) int64 ascending: the patches that no share masks; all, where none would be left.

    Args:
        scores: (H, n), of H heads.
        ranked: (k,) int64, what each share ranks; None: `ranking`.
        orders: a permutation of what is ranked, for each share that draws; None: drawn.
    """
    n = scores.shape[1]
    kept = torch.ones(n, dtype=torch.bool, device=scores.device)
    given = iter(orders or ())
    for i, share in enumerate(shares):
        k, masked = share.counts(n)
        found = ranking(scores, k, share.largest) if ranked is None else ranked[i]
        if masked < k:
            order = torch.randperm(k) if orders is None else next(given)
            found = found[order.to(found.device)[:masked]]
        kept[found] = False
    index = torch.nonzero(kept)[:, 0]
    return index if len(index) else torch.arange(n, device=scores.device)


def ranking(scores: Tensor, k: int, largest: bool) -> Tensor:
    """(k,) int64: the best of the scores (H, n), descending; ties: the first.

    Of several heads the patches that most heads have among their best k.
    """
    scores = scores if largest else -scores
    if len(scores) == 1:
        return highest(scores[0], k)
    votes = torch.zeros(scores.shape[1], device=scores.device)
    for row in scores:
        votes[highest(row, k)] += 1
    return highest(votes, k)


def cosine(start: float, end: float, done: float) -> float:
    """From start (done = 0) to end (done = 1) along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
