"""Optimisers by name, and the learning rate of each step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim import Optimizer

from wsizoo.errors import DataError
from wsizoo.model import SlideModel
from wsizoo.train.lookahead import with_lookahead
from wsizoo.train.settings import TrainSettings


def make_optimiser(model: SlideModel, settings: TrainSettings) -> Optimizer:
    """Over the groups that the parts state; a value of a group's own goes before the settings'.

    Raises:
        DataError: nothing of the model can be trained.
    """
    groups = model.param_groups(settings.lr)
    if not groups:
        raise DataError(f"'{model.name}' has no parameters to train: all are frozen")
    kinds: dict[str, Any] = {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
        "radam": torch.optim.RAdam,
        "sgd": torch.optim.SGD,
    }
    options: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    own = {"momentum": settings.momentum, "betas": settings.betas}
    name = "momentum" if settings.optimiser == "sgd" else "betas"
    if settings.optimiser != "radam" and model.device.type == "cpu":
        options["fused"] = True  # a fifth of the time; on GPUs it forbids clipping under 16-mixed
    kind = kinds[settings.optimiser]
    if settings.lookahead is not None:
        kind = with_lookahead(kind, settings.lookahead)
    found: Optimizer = kind(groups, **options, **{name: own[name]})
    for group in found.param_groups:
        group["initial_lr"] = group["lr"]
    return found


def lr_factor(settings: TrainSettings, step: int, steps_per_epoch: int) -> float:
    """What the learning rates are multiplied with in one optimiser step.

    Args:
        step: counted from 0.

    Source: the cosine of Loshchilov and Hutter (2017), https://arxiv.org/abs/1608.03983, equation
        5, one period without restarts, whose end is the step after the last; warm-up of Goyal et
        al. (2017), https://arxiv.org/abs/1706.02677, section 2.2, from 1/w to 1 in w steps.
    """
    warm = round(settings.warmup_epochs * steps_per_epoch)
    if step < warm:
        return (step + 1) / warm
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "step":
        fallen = sum(step >= epoch * steps_per_epoch for epoch in settings.falls)
        return float(settings.fall_factor**fallen)
    done = (step - warm) / max(1, settings.epochs * steps_per_epoch - warm)
    return settings.end_factor + (1 - settings.end_factor) * (1 + math.cos(math.pi * done)) / 2


def set_lr(optimiser: Optimizer, factor: float) -> None:
    """Every group's learning rate: its own first one times the factor."""
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * factor
