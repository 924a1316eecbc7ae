"""Losses of the tasks, one definition for all methods, and how they make up a training loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.errors import DataError, PluginError
from wsizoo.interfaces import Head, SlideOutput


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Softmax cross entropy, the mean () over labelled rows; 0 where no row has a label.

    Args:
        logits: (n, C). label: (n,) int64 class indices, -1 rows are left out.

    Source: torch.nn.functional.cross_entropy.
    Differs: a mean over nothing is 0, not NaN.
    """
    total = F.cross_entropy(logits, label, ignore_index=-1, reduction="sum")
    return total / (label >= 0).sum().clamp(min=1)


def discrete_time_nll(logits: Tensor, time_bin: Tensor, event: Tensor) -> Tensor:
    """Negative log-likelihood () of discrete-time survival with conditional hazards, a mean.

    With h = sigmoid(logits) and S_t = prod_{s<=t} (1 - h_s): an event in bin t contributes
    -log h_t - log S_{t-1}, a patient censored in bin t -log S_t. Computed from log-sigmoids, so
    that extreme logits stay finite.

    Args:
        logits: (n, T). time_bin: (n,) int64 in [0, T). event: (n,) bool, True: the event was seen.

    Source: Zadeh and Schmid, "Bias in Cross-Entropy-Based Training of Deep Survival Networks",
    IEEE TPAMI 43(9), 2021, Eq. 2-3, with no extra weight on uncensored patients (alpha = 0).
    """
    bins = torch.arange(logits.shape[1], device=logits.device)
    event = event.bool()[:, None]  # (n, 1)
    survived = bins < time_bin[:, None] + (~event).long()  # (n, T)
    died = (bins == time_bin[:, None]) & event  # (n, T)
    log_likelihood = F.logsigmoid(-logits) * survived + F.logsigmoid(logits) * died
    return -log_likelihood.sum(1).mean()


def mean_squared_error(value: Tensor, target: Tensor) -> Tensor:
    """Mean () of squared differences of (n,) values."""
    return F.mse_loss(value, target)


def training_losses(head: Head, output: SlideOutput, slides: Sequence[Bag]) -> dict[str, Tensor]:
    """Everything to minimise, by name, means over the slides: `SlideModel.losses`."""
    targets = [_target(bag) for bag in slides]
    if head.reads == "instances":
        own = "instances"  # what a prediction with its own target is compared by
        raw = _filled(output.instance_logits, head, "instance_logits")
        terms = {"task": head.loss(raw, {own: _instance_labels(targets, output)})}
    else:
        own = "label"
        rows = _filled(output.logits, head, "logits").reshape(len(slides), -1)  # (B, C)
        each = [head.loss(row, target) for row, target in zip(rows, targets, strict=True)]
        terms = {"task": torch.stack(each).mean()}
    for name, p in output.predictions.items():
        target = targets[p.slide] if p.target is None else {own: p.target}
        terms = merged(terms, {name: p.weight * head.loss(p.logits, target) / len(slides)})
    return merged(terms, output.losses)


def merged(terms: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Both. Raises PluginError for a name that stands in both: one would not be minimised."""
    for name in more:
        if name in terms:
            raise PluginError(f"two losses of one model are called '{name}': rename one")
    return {**terms, **more}


def _filled(raw: Tensor | None, head: Head, field: str) -> Tensor:
    if raw is None:
        raise PluginError(f"the {head.task} head left '{field}' None, which its loss reads")
    return raw


def _target(bag: Bag) -> dict[str, Any]:
    if bag.target is None:
        raise DataError(f"slide '{bag.slide_id}' has no target: Bag(..., target={{'label': 0}})")
    return dict(bag.target)


def _instance_labels(targets: list[dict[str, Any]], output: SlideOutput) -> Tensor:
    """(N_total,) per-patch labels; patches that a selector dropped count as unknown (-1)."""
    if any("instances" not in target for target in targets):
        raise DataError("a per-patch head trains on target['instances'], one label a patch")
    labels = torch.cat([torch.as_tensor(target["instances"]) for target in targets])
    if output.kept is None:
        return labels
    kept = output.kept.to(labels.device)
    return torch.full_like(labels, -1).index_copy(0, kept, labels[kept])
