"""What logits of time bins say together: a bin alone ranks nothing, and predicts nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SURVIVAL = "survival"  # the task


def risk(logits: Tensor) -> Tensor:
    """(..., T) of hazards -> (...), as the survival head has it: larger is worse.

    Minus the sum of the survival function over the bins; of one output, Cox's, itself.
    """
    if logits.shape[-1] == 1:
        return logits[..., 0]
    return -_log_survival(logits).exp().sum(-1)


def mean_hazards(logits: Sequence[Tensor]) -> Tensor:
    """(T,) logits of the hazards of the mean survival function of several predictions (T,).

    A hazard is then the mean over those that are left: their log odds are of two such sums.
    """
    each = torch.stack(list(logits))  # (K, T)
    left = _log_survival(each)
    before = F.pad(left, (1, 0))[:, :-1]
    return (before + F.logsigmoid(each)).logsumexp(0) - left.logsumexp(0)


def _log_survival(logits: Tensor) -> Tensor:
    return F.logsigmoid(-logits).cumsum(-1)
