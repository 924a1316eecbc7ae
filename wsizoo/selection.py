"""Selectors that score every patch: the k best are kept, or all of them softly, by their gates.

A method says how a patch is scored, and what the aggregator sees in training. Budget, ranking, the
temperature and the phases of a training are the same for all of them, and stand here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor, nn

from wsizoo.bag import Bag
from wsizoo.errors import BagError, SpecError
from wsizoo.interfaces import Selected, Selector
from wsizoo.ops import SoftTopk, hard_topk, soft_topk

WARM_UP, SOFT, TUNE = "warm-up", "soft", "tune"
FORMS = ("sigmoid", "laplace")
EPSILON = 1e-6  # added to the variance of scores, so that equal ones become 0

log = logging.getLogger(__name__)


def kept_count(k: int | float, n: int) -> int:
    """How many of n patches a budget keeps: a whole number of them (at most n), or a share.

    Args:
        k: from 1, whole; or a share in (0, 1] with a point: 1 is one patch, 1.0 is all.
        n: from 1.

    Raises:
        SpecError: no such budget.
    """
    check_budget(k)
    if isinstance(k, int):
        return min(k, n)
    return max(1, math.ceil(Fraction(str(k)) * n))  # exact: 0.1 of 30 is 3


def check_budget(k: int | float) -> None:
    """Raise SpecError unless `kept_count` takes it."""
    if isinstance(k, float) and not 0 < k <= 1:
        raise SpecError(
            f"selector.k is {k}, expected a share of the patches in (0, 1], as 0.01, or a whole "
            "number of them, as 32"
        )
    if isinstance(k, bool) or not isinstance(k, int | float) or k < 1 and not isinstance(k, float):
        raise SpecError(
            f"selector.k is {k!r}, expected how many patches are kept, from 1, or a share of them "
            "in (0, 1], as 0.01"
        )


def annealed(step: float, start: float, end: float, steps: float) -> float:
    """Half a cosine from start to end in so many steps, then constant.

    Source: DiffPrune, https://arxiv.org/abs/2605.28051, Appendix A.
    """
    done = 1.0 if steps <= 0 else min(step / steps, 1.0)
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def standard_scores(scores: Tensor) -> Tensor:
    """(N,) scores of a slide with mean 0 and variance 1; those of equal ones are 0."""
    mean = scores.mean()
    variance = (scores - mean).square().mean()  # over N: one patch has 0
    return (scores - mean) / torch.sqrt(variance + EPSILON)


class ScoredSelector(Selector):
    """Keeps the k patches that `score` ranks highest, of equal ones the first.

    Args:
        in_dim: width D of the features.
        k: how many patches are kept, or (a number with a point, up to 1.0) which share of them.
    """

    def __init__(self, in_dim: int, k: int | float = 32) -> None:
        super().__init__(in_dim)
        check_budget(k)
        self.k = k
        self._told = False

    def score(self, bag: Bag) -> Tensor:
        """(N,) float32, larger is rather kept; any scale."""
        raise NotImplementedError

    def finite_scores(self, bag: Bag) -> Tensor:
        """`score`, checked.

        Raises:
            BagError: a score that is not finite, naming the slide.
        """
        scores = self.score(bag)
        bad = torch.nonzero(~torch.isfinite(scores.detach()))[:, 0]
        if len(bad):
            raise BagError(
                f"slide '{bag.slide_id}': the selector's scores of {len(bad)} of {len(bag)} "
                f"patches are not finite, first patch {int(bad[0])}: {float(scores[bad[0]])}. Are "
                "its weights finite? Train it with a smaller step, or look at the features: wsizoo "
                "inspect FILE"
            )
        return scores

    def hard(self, bag: Bag) -> Selected:
        """The kept patches as they are, in the order of the bag, and the scores of all."""
        with torch.no_grad():
            scores = self.finite_scores(bag)
        self._tell_if_all(bag)
        index = hard_topk(scores, kept_count(self.k, len(bag)))  # (K,)
        return Selected(bag if len(index) == len(bag) else bag.subset(index), index, scores)

    def _tell_if_all(self, bag: Bag) -> None:
        if isinstance(self.k, int) and self.k > len(bag) and not self._told:
            self._told = True
            log.warning(
                "slide '%s' has %d patches, fewer than the k=%d that the selector keeps: all are "
                "kept (said once, of the first such slide)",
                bag.slide_id,
                len(bag),
                self.k,
            )

    def forward(self, bag: Bag) -> Selected:
        return self.hard(bag)


class SoftSelector(ScoredSelector):
    """Learns by soft gates that sum to k, and keeps the k best patches in eval.

    A training has three phases, and which one it is in follows from `step` of `total`:

    1. warm-up: the whole bag passes and the selector does nothing; aggregator and head learn.
    2. soft: all patches pass through `soft`, colder and colder; the selector learns, alone where
       `freeze_rest` is true.
    3. tune: the k best patches pass as in eval, and aggregator and head learn on them.

    Outside of a trainer, before `start_training`, training mode is the second phase at its
    beginning, and everything learns.

    Args:
        in_dim: width D of the features. k: see `ScoredSelector`.
        form: of the gates, "sigmoid" or "laplace", see `wsizoo.ops.soft_topk`.
        standardise: scores of a slide to mean 0 and variance 1, for the gates.
        start_temperature, end_temperature: of the gates; half a cosine leads from one to the other.
        anneal: share of the soft phase after which the end is reached.
        warm_up, tune: share of all steps, at the beginning and at the end.
        freeze_rest: whether aggregator and head stay as they are in the soft phase.
        lr_factor: the selector's learning rate, in that of the others.

    Raises:
        SpecError: a value that an option cannot have.
    """

    ablations: ClassVar[Mapping[str, str]] = {}
    """Parts to leave out, for a diagnosis: what it is then called -> an override of a config."""

    only_in_training: ClassVar[tuple[str, ...]] = ("step", "total")
    """Tensors and modules that are not published."""

    step: Tensor
    total: Tensor

    def __init__(
        self,
        in_dim: int,
        k: int | float = 32,
        *,
        form: str = "sigmoid",
        standardise: bool = True,
        start_temperature: float = 2.0,
        end_temperature: float = 0.1,
        anneal: float = 0.8,
        warm_up: float = 0.5,
        tune: float = 0.0,
        freeze_rest: bool = True,
        lr_factor: float = 1.0,
    ) -> None:
        super().__init__(in_dim, k)
        self.form, self.standardise, self.anneal = form, standardise, anneal
        self.start_temperature, self.end_temperature = start_temperature, end_temperature
        self.warm_up, self.tune, self.freeze_rest = warm_up, tune, freeze_rest
        self.lr_factor = lr_factor
        self._check()
        self.register_buffer("step", torch.tensor(0))
        self.register_buffer("total", torch.tensor(0))

    def _check(self) -> None:
        rules = {
            "form": (self.form in FORMS, f"one of {', '.join(FORMS)}"),
            "start_temperature": (self.start_temperature > 0, "a number above 0"),
            "end_temperature": (self.end_temperature > 0, "a number above 0"),
            "anneal": (0 <= self.anneal <= 1, "a share from 0 to 1"),
            "warm_up": (0 <= self.warm_up < 1, "a share from 0 to below 1"),
            "tune": (0 <= self.tune < 1 - self.warm_up, "a share below what warm_up leaves"),
            "lr_factor": (self.lr_factor > 0, "a number above 0"),
        }
        for name, (kept, expected) in rules.items():
            if not kept:
                raise SpecError(f"selector.{name} is {getattr(self, name)!r}, expected {expected}")

    @property
    def soft_steps(self) -> tuple[int, int]:
        """First step of the soft phase, counted from 0, and the one after its last."""
        total = int(self.total)
        return round(self.warm_up * total), total - round(self.tune * total)

    @property
    def phase(self) -> str:
        """`WARM_UP`, `SOFT` or `TUNE`: of the step under way."""
        step, (first, end) = int(self.step), self.soft_steps
        return SOFT if not self.total or first <= step < end else WARM_UP if step < first else TUNE

    @property
    def temperature(self) -> float:
        """Of the gates, in the step under way."""
        first, end = self.soft_steps
        ends = self.start_temperature, self.end_temperature
        return annealed(max(0, int(self.step) - first), *ends, self.anneal * (end - first))

    @property
    def ready(self) -> bool:
        return not self.total or int(self.step) > self.soft_steps[0]

    def start_training(self, total_steps: int, slides: Iterable[Bag]) -> None:
        self.step.zero_()
        self.total.fill_(total_steps)

    def after_step(self, step: int, total_steps: int) -> None:
        self.step.fill_(step)
        self.total.fill_(total_steps)

    def param_groups(self, base_lr: float) -> list[dict[str, object]]:
        return [{**g, "lr": g["lr"] * self.lr_factor} for g in super().param_groups(base_lr)]

    def inference_state(self) -> dict[str, Tensor]:
        left_out = self.only_in_training
        return {k: t for k, t in self.state_dict().items() if k.partition(".")[0] not in left_out}

    def gates(self, scores: Tensor, temperature: float | None = None) -> SoftTopk:
        """Gates of a slide's patches by their raw scores (N,); they sum to k.

        Args:
            temperature: default the one of the step under way.
        """
        temperature = self.temperature if temperature is None else temperature
        if self.standardise:
            scores = standard_scores(scores)
        return soft_topk(scores, kept_count(self.k, len(scores)), temperature, form=self.form)

    def soft(
        self,
        bag: Bag,
        generator: torch.Generator | None = None,
        temperature: float | None = None,
        gates: Tensor | None = None,
    ) -> Selected:
        """What the aggregator sees while the selector learns: all N patches, `index` None.

        Args:
            generator: of what is drawn; default: a new one, seeded by the global one.
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

    def warm(self, bag: Bag) -> Selected:
        """What the aggregator sees in the warm-up."""
        return Selected(bag)


def given_gates(gates: Tensor) -> SoftTopk:
    """Gates (N,) that somebody states. The gradient of a root where it is 0 counts as 0."""
    rest = 1 - gates
    return SoftTopk(gates, rest, _root(gates), _root(rest))


def _root(values: Tensor) -> Tensor:
    known = values > 0
    return torch.where(known, torch.sqrt(torch.where(known, values, 1.0)), 0.0)


@contextmanager
def resting(parts: Iterable[nn.Module | None]) -> Iterator[None]:
    """Inside, these parts are in eval mode and learn nothing; gradients pass through them."""
    modules = [module for part in parts if part is not None for module in part.modules()]
    modes = [module.training for module in modules]
    learning = [p for module in modules for p in module.parameters(False) if p.requires_grad]
    for module in modules:
        module.training = False
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for parameter in learning:
            parameter.requires_grad_(True)
