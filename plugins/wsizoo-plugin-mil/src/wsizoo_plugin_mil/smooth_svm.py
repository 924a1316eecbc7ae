"""The smooth top-1 SVM loss, with which CLAM teaches its instance classifiers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

HARD_FROM = math.log(1000)  # a lead of the best score from which on the maximum replaces its smooth


def smooth_top1_svm(scores: Tensor, target: Tensor) -> Tensor:
    """Mean () over rows of logsumexp_j(z_j + [j != y] - z_y), or of the maximum over j.

    The maximum is taken in rows whose best score leads the second by ln 1000 or more, where the
    two are the same but for rounding.

    Args:
        scores: (n, C), C >= 2. target: (n,) int64.

    Source: Berrada, Zisserman and Kumar, "Smooth Loss Functions for Deep Top-k Classification",
    ICLR 2018, https://arxiv.org/abs/1802.07595, with k = 1, margin 1 and temperature 1; the switch
    as in https://github.com/oval-group/smooth-topk at 12c1645.
    """
    own = target[:, None]
    margin = torch.ones_like(scores).scatter(1, own, 0.0)
    above = scores + margin - scores.gather(1, own)  # (n, C), 0 at the target
    best = scores.detach().topk(2, 1).values
    hard = best[:, 0] - best[:, 1] >= HARD_FROM
    return torch.where(hard, above.amax(1), above.logsumexp(1)).mean()
