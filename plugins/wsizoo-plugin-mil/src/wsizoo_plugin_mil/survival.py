"""What logits of time bins say together: a bin alone ranks nothing, and predicts nothing."""

from __future__ import annotations

import math
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


def averaged(logits: Sequence[Tensor]) -> Tensor:
    """(T,) logits of the hazards of the mean survival function of several predictions (T,)."""
    curves = _log_survival(torch.stack(list(logits)))  # (K, T)
    mean = curves.logsumexp(0) - math.log(len(curves))
    lived = mean - F.pad(mean, (1, 0))[:-1]  # log of 1 - hazard
    return torch.log(-torch.expm1(lived)) - lived


def _log_survival(logits: Tensor) -> Tensor:
    return F.logsigmoid(-logits).cumsum(-1)
