"""TrainSettings: everything about a training but its model and its slides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wsizoo.errors import SpecError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
OPTIMISERS = ("adamw", "adam", "radam", "sgd")
SCHEDULES = ("cosine", "constant", "step")
LOGGERS = ("tensorboard", "wandb")
COUNTS = (
    "epochs",
    "batch_size",
    "accumulate",
    "max_patches",
    "patience",
    "min_epochs",
    "checkpoint_steps",
    "lookahead",
)
NOT_BELOW_0 = (
    *("seed", "weight_decay", "momentum", "warmup_epochs", "end_factor", "fall_factor", "workers"),
)
CHANGE_NO_NUMBER = frozenset({"workers", "device", "loggers", "checkpoint_steps"})
"""What a training, a run and a cell of a benchmark may differ in and be the same."""


@dataclass(frozen=True)
class TrainSettings:
    """How a model is trained; a slide is shown once an epoch.

    Args:
        epochs: passes over the slides. seed: of their order, of dropout, augmentation, sampling.
        batch_size: slides packed into one pass. accumulate: passes before an optimiser step.
            Several processes share this: an optimiser step sees batch_size x accumulate x
            processes slides.
        max_patches: of a slide in training, drawn anew each epoch; None: all.
        clip: largest 2-norm of the gradient of all parameters; None: any.
        precision: "32-true", "bf16-mixed" or (GPU only) "16-mixed".
        ema: decay of an exponential mean of the weights, which is then what is evaluated and kept;
            None: the weights themselves.
        optimiser: "adamw", "adam", "radam" or "sgd". lr: of groups that name none of their own.
            betas: of the Adams. momentum: of sgd. lookahead: steps after which the weights go back
            to the middle of old and new ones; None: never.
        schedule: "cosine" falls towards `end_factor` x lr, "constant" stays, "step" is multiplied
            by `fall_factor` after each of the epochs `falls`; all rise linearly during the first
            `warmup_epochs` (may be a fraction).
        metric: which choice is made by: "loss" of validation, or a name that `measure` gives.
        checkpoint: whose weights the model ends with: of the "best" epoch by metric, or the "last".
        patience: epochs without a better metric after which training stops; None: never.
            min_epochs: it stops after no fewer.
        checkpoint_steps: write `last.ckpt` also every so many optimiser steps; None: after epochs.
        workers: threads that read slides ahead; 0: none. device: "auto", "cpu", "cuda", "cuda:1".
        loggers: of "tensorboard", "wandb"; epochs.csv and log.jsonl are written in any case.

    Raises:
        SpecError: a value that has no meaning.
    """

    epochs: int = 30
    seed: int = 0
    batch_size: int = 1
    accumulate: int = 1
    max_patches: int | None = None
    clip: float | None = None
    precision: str = "32-true"
    ema: float | None = None
    optimiser: str = "adamw"
    lr: float = 1e-4
    weight_decay: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    lookahead: int | None = None
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    end_factor: float = 0.0
    falls: tuple[int, ...] = ()
    fall_factor: float = 0.1
    metric: str = "loss"
    checkpoint: Literal["best", "last"] = "best"
    patience: int | None = None
    min_epochs: int = 1
    checkpoint_steps: int | None = None
    workers: int = 2
    device: str = "auto"
    loggers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, known in (
            ("precision", PRECISIONS),
            ("optimiser", OPTIMISERS),
            ("schedule", SCHEDULES),
            ("checkpoint", ("best", "last")),
        ):
            if getattr(self, name) not in known:
                raise SpecError(
                    f"{name} is '{getattr(self, name)}', expected one of {', '.join(known)}"
                )
        for logger in self.loggers:
            if logger not in LOGGERS:
                told = ", ".join(LOGGERS)
                raise SpecError(f"train.loggers names '{logger}', expected some of {told}")
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name in COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SpecError(f"{name} is {value}, expected 1 or more")
        for name in NOT_BELOW_0:
            if not getattr(self, name) >= 0:
                raise SpecError(f"{name} is {getattr(self, name)}, expected 0 or more")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SpecError(f"{name} is {value}, expected more than 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise SpecError(f"betas is {self.betas}, expected two from 0 to below 1")
        if any(epoch < 1 for epoch in self.falls) or (self.schedule == "step" and not self.falls):
            raise SpecError(
                f"falls is {self.falls}, expected epochs from 1 on, and at least one with schedule "
                "step: in a run schedule.falls=[100]"
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise SpecError(f"ema is {self.ema}, expected a decay between 0 and 1, as 0.999")

    @property
    def chooses(self) -> bool:
        """Whether the epochs are compared."""
        return self.checkpoint == "best" or self.patience is not None
