"""Selectors that do something else at the beginning of a training than at its end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.interfaces import Selected
from wsizoo.selection.budget import check_option
from wsizoo.selection.scored import ScoredSelector

WARM_UP, SOFT, TUNE = "warm-up", "soft", "tune"


class PhasedSelector(ScoredSelector):
    """Knows how far a training is, and what it does at that point.

    1. `WARM_UP`: all patches pass, as `warm` says; aggregator and head learn.
    2. `SOFT`: all patches pass, as `soft` says; the selector learns, alone if `freeze_rest`.
    3. `TUNE`: the k best patches pass, as in eval; aggregator and head learn, the scores are fixed.

    Outside of a trainer, before `start_training`, training mode is the second phase at its
    beginning, and everything learns.

    Args:
        in_dim, k: see `ScoredSelector`.
        warm_up, tune: share of all steps, at the beginning and at the end.
        freeze_rest: whether aggregator and head stay as they are in the soft phase.
        lr_factor: the selector's learning rate, in that of the others.

    Raises:
        SpecError: a value that an option cannot have.
    """

    only_in_training: ClassVar[tuple[str, ...]] = ("step", "total")
    """Tensors and modules that are not published."""

    step: Tensor
    total: Tensor

    def __init__(
        self,
        in_dim: int,
        k: int | float = 32,
        *,
        warm_up: float = 0.5,
        tune: float = 0.0,
        freeze_rest: bool = True,
        lr_factor: float = 1.0,
    ) -> None:
        super().__init__(in_dim, k)
        check_option("warm_up", warm_up, 0 <= warm_up < 1, "a share from 0 to below 1")
        check_option("tune", tune, 0 <= tune < 1 - warm_up, "a share below what warm_up leaves")
        check_option("lr_factor", lr_factor, lr_factor > 0, "a number above 0")
        self.warm_up, self.tune, self.freeze_rest = warm_up, tune, freeze_rest
        self.lr_factor = lr_factor
        self.register_buffer("step", torch.tensor(0))
        self.register_buffer("total", torch.tensor(0))

    @property
    def soft_steps(self) -> tuple[int, int]:
        """First step of the soft phase, counted from 0, and the one after its last."""
        total = int(self.total)
        first = max(0, min(round(self.warm_up * total), total - 1))
        return first, max(first + 1, total - round(self.tune * total))

    @property
    def phase(self) -> str:
        """`WARM_UP`, `SOFT` or `TUNE`: of the step under way."""
        step, (first, end) = int(self.step), self.soft_steps
        if not self.total:
            return SOFT
        return WARM_UP if step < first else SOFT if step < end else TUNE

    @property
    def ready(self) -> bool:
        return not self.total or int(self.step) > self.soft_steps[0]

    def start_training(self, total_steps: int, slides: Iterable[Bag]) -> None:
        self.step.zero_()
        self.total.fill_(total_steps)

    def after_step(self, step: int, total_steps: int) -> None:
        self.step.fill_(step)
        self.total.fill_(total_steps)

    def param_groups(self, base_lr: float) -> list[dict[str, Any]]:
        return [{**g, "lr": g["lr"] * self.lr_factor} for g in super().param_groups(base_lr)]

    def inference_state(self) -> dict[str, Tensor]:
        left_out = self.only_in_training
        return {k: t for k, t in self.state_dict().items() if k.partition(".")[0] not in left_out}

    def warm(self, bag: Bag) -> Selected:
        """What the aggregator sees in the warm-up."""
        return Selected(bag)

    def soft(
        self,
        bag: Bag,
        generator: torch.Generator | None = None,
        temperature: float | None = None,
        gates: Tensor | None = None,
    ) -> Selected:
        """What the aggregator sees while the selector learns: all N patches, `index` None.

        Args:
            generator: of what is drawn, on the bag's device; default: `own_generator`.
            temperature: default the one of the step under way.
            gates: (N,) in [0, 1], in place of those that the scores give.
        """
        raise NotImplementedError

    def forward(self, bag: Bag) -> Selected:
        phase = self.phase if self.training else TUNE
        if phase == WARM_UP:
            return self.warm(bag)
        if phase == TUNE:
            return self.hard(bag)
        selected = self.soft(bag)
        selected.alone = self.freeze_rest and bool(self.total)
        return selected


def own_generator(device: torch.device) -> torch.Generator:
    """A generator on this device that draws one number of the CPU's global one, for its seed.

    The trainer seeds that for each slide and epoch: what is drawn is the same after a resume, and
    whichever process shows the slide.
    """
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, ())))
