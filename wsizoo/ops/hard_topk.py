"""The k rows of each slide that score highest, the same on every machine."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from wsizoo.bag import segment_ids
from wsizoo.errors import DataError
from wsizoo.ops._dispatch import op
from wsizoo.ops.selective_scan import sequence_bounds


@op
def hard_topk(scores: Tensor, k: int, *, offsets: Tensor | None = None) -> Tensor:
    """Where the k largest scores of each slide lie; of equal scores the earlier rows.

    Args:
        scores: (N,), rows of all slides one after another. k: at least 1.
        offsets: (B+1,) int64, slide b has rows offsets[b]:offsets[b+1]; None: one slide.

    Returns:
        (sum of min(k, rows of each slide),) int64, ascending rows of `scores`.

    Raises:
        DataError: scores that are NaN or infinite, slides without rows, k below 1 or not whole.

    Cost: a stable sort; two of packed slides.
    """
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise DataError(f"hard_topk got k = {k!r}, expected a whole number of at least 1")
    check_scores("hard_topk", scores, offsets)
    if offsets is None:
        return by_score(scores)[:k].sort().values
    best = by_score(scores, offsets.diff())
    place = torch.arange(len(best), device=best.device) - offsets[:-1][segment_ids(offsets)]
    return best[place < k].sort().values


def by_score(scores: Tensor, lengths: Tensor | None = None) -> Tensor:
    """(N,) int64, rows by slide, in it from the largest score on, earlier ones of equals first.

    Args:
        lengths: (B,) int64, rows of each slide; None: one slide.
    """
    keys = scores.detach() + 0.0  # -0.0 becomes 0.0
    best = torch.argsort(keys, descending=True, stable=True)
    if lengths is None or len(lengths) == 1:
        return best
    ids = torch.repeat_interleave(lengths, output_size=len(keys))
    return best[torch.argsort(ids[best], stable=True)]


def check_scores(name: str, scores: Tensor, offsets: Tensor | None) -> list[int]:
    """The bounds of the slides; raise DataError unless each has rows, with finite scores."""
    if scores.ndim != 1 or not scores.is_floating_point():
        raise DataError(
            f"{name} got scores {tuple(scores.shape)} of {scores.dtype}, expected (rows,), floats"
        )
    bounds = sequence_bounds(name, offsets, len(scores))
    for slide, (start, end) in enumerate(itertools.pairwise(bounds)):
        if start == end:
            raise DataError(
                f"{name}: slide {slide} of {len(bounds) - 1} has no rows to choose from"
            )
    finite = torch.isfinite(scores)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0, 0])
        slide = sum(bound <= row for bound in bounds) - 1
        raise DataError(
            f"{name} got the score {float(scores[row])} for row {row - bounds[slide]} of slide "
            f"{slide}, expected finite numbers"
        )
    return bounds
