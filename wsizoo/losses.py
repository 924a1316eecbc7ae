"""Losses of the tasks, one definition for all methods. Raw outputs in, a mean () out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Softmax cross entropy.

    Args:
        logits: (n, C). label: (n,) int64 class indices, -1 rows are left out.

    Source: torch.nn.functional.cross_entropy.
    """
    return F.cross_entropy(logits, label, ignore_index=-1)


def discrete_time_nll(logits: Tensor, time_bin: Tensor, event: Tensor) -> Tensor:
    """Negative log-likelihood of discrete-time survival with conditional hazards.

    With h = sigmoid(logits) and S_t = prod_{s<=t} (1 - h_s): an event in bin t contributes
    -log h_t - log S_{t-1}, a patient censored in bin t -log S_t. Computed from log-sigmoids, so
    that extreme logits stay finite.

    Args:
        logits: (n, T). time_bin: (n,) int64 in [0, T). event: (n,) bool, True: the event was seen.

    Source: Zadeh and Schmid, "Bias in Cross-Entropy-Based Training of Deep Survival Networks",
    IEEE TPAMI 43(9), 2021, Eq. 2-3, with no extra weight on uncensored patients (alpha = 0).
    """
    bins = torch.arange(logits.shape[1], device=logits.device)
    survived = bins < time_bin[:, None] + (~event.bool()).long()[:, None]  # (n, T)
    died = (bins == time_bin[:, None]) & event.bool()[:, None]  # (n, T)
    log_likelihood = F.logsigmoid(-logits) * survived + F.logsigmoid(logits) * died
    return -log_likelihood.sum(1).mean()


def mean_squared_error(value: Tensor, target: Tensor) -> Tensor:
    """Mean of squared differences of (n,) values."""
    return F.mse_loss(value, target)
