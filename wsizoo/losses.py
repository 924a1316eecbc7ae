"""Losses of the tasks on raw outputs, one definition for all methods."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from wsizoo.errors import DataError, SpecError

DICE_WEIGHT = 0.75  # SPAN's
DICE_EPS = 1e-6


def cross_entropy(
    logits: Tensor,
    label: Tensor,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Softmax cross entropy, the mean () over labelled rows; 0 where no row has a label.

    Args:
        logits: (n, C). label: (n,) int64 class indices, -1 rows are left out.
        class_weights: (C,), of a row by its label. The mean is divided by the weights of its rows:
            of a single row the weight cancels, so they have no effect where one slide is a step
            (`train.class_weights` of a run divides by the number of slides instead, and has one).
        label_smoothing: s in [0, 1]: the target is 1 - s of the label and s spread evenly over all
            classes.

    Source: torch.nn.functional.cross_entropy.
    Differs: a mean over nothing is 0, not NaN.
    """
    weights = None if class_weights is None else class_weights.to(logits)
    total = F.cross_entropy(
        logits,
        label,
        weights,
        ignore_index=-1,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    known = label >= 0  # (n,)
    if weights is None:
        return total / known.sum().clamp(min=1)
    size = weights[label.clamp(min=0)][known].sum()
    return total / torch.where(size > 0, size, 1.0)


def one_vs_rest(logits: Tensor, label: Tensor) -> Tensor:
    """Sigmoid cross entropy of each class against the rest; mean () over labelled rows and classes.

    Args:
        logits: (n, C), or (n, 1) for two classes. label: (n,) int64, -1 rows are left out.

    Source: DSMIL's bag loss, https://github.com/binli123/dsmil-wsi at 80465ed.
    Differs: a mean over nothing is 0, not NaN.
    """
    known = label >= 0
    ours = torch.arange(logits.shape[1], device=label.device) + (logits.shape[1] == 1)
    target = (label[:, None] == ours).to(logits.dtype)  # (n, C)
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
    return (each * known).sum() / known.sum().clamp(min=1)


def inverse_frequencies(label: Tensor, n_classes: int) -> Tensor:
    """Class weights (C,) float32: 1 / count of each class, scaled to sum to the class count.

    Args:
        label: int64 class indices of the training slides, of any shape; -1 ones are left out.

    A class that does not occur counts as one that occurs once.

    Source: SPAN (2026), `compute_class_weights`, https://github.com/wwyi1828/SPAN at 08e4ba0.
    """
    known = label[label >= 0]
    if len(known) and int(known.max()) >= n_classes:
        raise DataError(f"label {int(known.max())} is no index of {n_classes} classes")
    inverse = 1 / torch.bincount(known, minlength=n_classes).clamp(min=1)
    return inverse / inverse.sum() * n_classes


def binary_cross_entropy(logits: Tensor, label: Tensor, pos_weight: float | Tensor = 1.0) -> Tensor:
    """Sigmoid cross entropy, the mean () over labelled rows; 0 where no row has a label.

    Args:
        logits: (n,). label: (n,) 0 or 1; negative ones are left out.
        pos_weight: factor of the loss of positive rows; the mean is over rows all the same.

    Source: torch.nn.functional.binary_cross_entropy_with_logits.
    Differs: a mean over nothing is 0, not NaN.
    """
    known = (label >= 0).to(logits)  # (n,)
    target = label.to(logits).clamp(min=0)
    weight = torch.as_tensor(pos_weight).to(logits)
    each = F.binary_cross_entropy_with_logits(
        logits, target, known, pos_weight=weight, reduction="none"
    )
    return each.sum() / known.sum().clamp(min=1)


def positive_weight(label: Tensor) -> float:
    """Negative rows for each positive one (or for the one that is not there).

    Args:
        label: 0 or 1, of all patches of the training slides; negative ones are left out.

    Source: SPAN (2026), `calculate_pos_weight`.
    """
    return int((label == 0).sum()) / max(1, int((label == 1).sum()))


def soft_dice(logits: Tensor, label: Tensor, eps: float = DICE_EPS) -> Tensor:
    """One minus the Dice coefficient () of probabilities p = sigmoid(logits) with labels y.

    1 - (2 sum(p y) + eps) / (sum p + sum y + eps), summed over the rows given: published trainings
    give those of one slide.

    Args:
        logits: (n,). label: (n,) 0 or 1; negative ones are left out.

    Source: SPAN (2026), appendix, and `dice_loss_fn` of its code; the idea is V-Net's
    (https://arxiv.org/abs/1606.04797), there with squares in the denominator.
    """
    known = (label >= 0).to(logits)
    return _dice_losses(torch.sigmoid(logits) * known, label.to(logits) * known, eps)


def bce_dice(
    logits: Tensor,
    label: Tensor,
    pos_weight: float | Tensor = 1.0,
    dice_weight: float = DICE_WEIGHT,
) -> Tensor:
    """(1 - w) `binary_cross_entropy` + w `soft_dice`, or the first alone if nothing is positive.

    Args:
        logits: (n,). label: (n,) 0 or 1; negative ones are left out. dice_weight: w in [0, 1].

    Source: SPAN (2026), appendix: hybrid loss of segmentation, w = 0.75.
    """
    share = torch.where((label > 0).any(), dice_weight, 0.0).to(logits)
    bce = binary_cross_entropy(logits, label, pos_weight)
    return (1 - share) * bce + share * soft_dice(logits, label)


def ce_dice(logits: Tensor, label: Tensor, dice_weight: float = DICE_WEIGHT) -> Tensor:
    """(1 - w) `cross_entropy` + w mean of 1 - Dice over the classes that occur; classes exclude.

    Args:
        logits: (n, C). label: (n,) int64 class indices, -1 rows are left out.

    Source: `bce_dice` for several classes, with softmax probabilities; not published.
    """
    known = (label >= 0)[:, None]  # (n, 1)
    target = F.one_hot(label.clamp(min=0), logits.shape[1]).to(logits) * known  # (n, C)
    dice = _dice_losses(torch.softmax(logits, 1) * known, target, DICE_EPS)  # (C,)
    occurs = target.amax(0)  # (C,)
    mean = (dice * occurs).sum() / occurs.sum().clamp(min=1)
    return (1 - dice_weight) * cross_entropy(logits, label) + dice_weight * mean


def _dice_losses(p: Tensor, y: Tensor, eps: float) -> Tensor:
    """Of each column: (n, ...) both -> (...)."""
    return 1 - (2 * (p * y).sum(0) + eps) / (p.sum(0) + y.sum(0) + eps)


def discrete_time_nll(
    logits: Tensor,
    time_bin: Tensor,
    event: Tensor,
    alpha: float = 0.0,
    floor: float | None = None,
) -> Tensor:
    """Negative log-likelihood () of discrete-time survival with conditional hazards, a mean.

    With h = sigmoid(logits) and S_t = prod_{s<=t} (1 - h_s): an event in bin t contributes
    -log h_t - log S_{t-1}, a patient censored in bin t -log S_t. Computed from log-sigmoids, so
    that extreme logits stay finite.

    Args:
        logits: (n, T). time_bin: (n,) int64 in [0, T). event: (n,) bool, True: the event was seen.
        alpha: extra weight of uncensored patients: (1 - alpha) both + alpha events, so that
            censored patients count 1 - alpha.
        floor: the least h_t, S_{t-1} and S_t that are told apart, with gradient 0 below: 1e-7 as
            published; None: none.

    Source: Zadeh and Schmid, "Bias in Cross-Entropy-Based Training of Deep Survival Networks",
    IEEE TPAMI 43(9), 2021, Eq. 2-3; alpha and floor as in MCAT, SPAN and other slide models.
    """
    bins = torch.arange(logits.shape[1], device=logits.device)
    event = event.bool()  # (n,)
    survived = bins < (time_bin + (~event).long())[:, None]  # (n, T)
    died = (bins == time_bin[:, None]) & event[:, None]  # (n, T)
    log_survival = (F.logsigmoid(-logits) * survived).sum(1)  # (n,)
    log_hazard = (F.logsigmoid(logits) * died).sum(1)  # (n,)
    if floor is not None:
        log_survival = log_survival.clamp(min=math.log(floor))
        log_hazard = log_hazard.clamp(min=math.log(floor))
    weight = torch.where(event, 1.0, 1.0 - alpha).to(logits)
    return -(weight * (log_survival + log_hazard)).mean()


def cox_partial_likelihood(
    risk: Tensor, time: Tensor, event: Tensor, ties: str = "efron"
) -> Tensor:
    """Negative log partial likelihood () of Cox's model, the mean over events; 0 without any.

    -sum over events i of r_i - log(sum of exp(r_j) over those with time_j >= time_i). It compares
    the patients of a batch with one another: of a batch of one, or without an event, it is 0.

    Args:
        risk: (n,) log relative hazards, any scale. time: (n,). event: (n,) True: it was seen.
        ties: of d events at one time the k-th (from 0) sees the sum over all who are at risk,
            "breslow"; or less k / d of the sum over these d, "efron". Without ties both are one.

    Cost: memory of events x n.

    Source: Cox, "Regression models and life-tables", JRSS B 34, 1972; Breslow, "Covariance analysis
    of censored survival data", Biometrics 30, 1974; Efron, "The efficiency of Cox's likelihood
    function for censored data", JASA 72, 1977.
    Differs: divided by the number of events, so that batches of any size weigh alike.
    """
    check_ties(ties)
    seen = event.bool()
    if not bool(seen.any()):
        return (risk * 0).sum()
    when = time[seen]  # (e,)
    at_risk = _log_sum_exp(risk, time >= when[:, None])
    if ties == "efron":
        together = when == when[:, None]  # (e, e)
        share = together.tril(-1).sum(1).to(risk) / together.sum(1)  # k / d
        of_these = _log_sum_exp(risk[seen], together)
        at_risk = at_risk + torch.log1p(-share * torch.exp(of_these - at_risk))
    return (at_risk - risk[seen]).mean()


def check_ties(ties: str) -> None:
    """Raise SpecError unless ties are handled in a way that there is."""
    if ties not in ("efron", "breslow"):
        raise SpecError(f"ties are handled as 'efron' or 'breslow', not as '{ties}'")


def _log_sum_exp(values: Tensor, chosen: Tensor) -> Tensor:
    """log of the sum of exp(values) (n,) over the chosen (e, n) of each row -> (e,)."""
    return torch.where(chosen, values, -math.inf).logsumexp(1)


def smooth_l1(value: Tensor, target: Tensor, beta: float = 1.0) -> Tensor:
    """Mean () over (n,) of d^2 / (2 beta) where the distance d is under beta, else d - beta / 2.

    Source: torch.nn.functional.smooth_l1_loss.
    """
    return F.smooth_l1_loss(value, target, beta=beta)


def mean_squared_error(value: Tensor, target: Tensor) -> Tensor:
    """Mean () of squared differences of (n,) values."""
    return F.mse_loss(value, target)
