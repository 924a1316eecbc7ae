"""The k most similar patches of each patch, without the N x N similarities of a slide."""

from __future__ import annotations

import torch
from torch import Tensor

AT_ONCE = 2**23  # similarities that are held at once


@torch.no_grad()
def most_similar(asking: Tensor, asked: Tensor, k: int) -> Tensor:
    """(n, min(k, m)) int64: rows of `asked` (m, E) with the largest product with each of `asking`
    (n, E), descending; ties: the first.

    Cost: n m E multiply-adds; 8 million products are held at a time.
    """
    few = max(1, AT_ONCE // len(asked))
    return torch.cat([best(rows @ asked.t(), min(k, len(asked))) for rows in asking.split(few)])


def best(scores: Tensor, k: int) -> Tensor:
    """(n, k) int64: the columns of the k largest of each row (n, m), descending; ties: the first.

    `torch.topk` leaves it open which of equals it gives.
    """
    found = scores.topk(min(k + 1, scores.shape[1]), 1)
    index = found.indices[:, :k].sort(1).values
    if k < scores.shape[1]:
        tied = found.values[:, k - 1] == found.values[:, k]
        last = found.values[tied, k - 1, None]
        above, equal = scores[tied] > last, scores[tied] == last
        taken = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
        index[tied] = taken.nonzero()[:, 1].view(-1, k)
    order = scores.gather(1, index).sort(dim=1, descending=True, stable=True).indices
    return index.gather(1, order)
