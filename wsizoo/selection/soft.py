"""Selectors that learn by soft gates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from wsizoo.ops import SoftTopk, soft_topk
from wsizoo.selection.budget import check_known, check_option, kept_count
from wsizoo.selection.phased import PhasedSelector

FORMS = ("sigmoid", "laplace")
EPSILON = 1e-6  # added to the variance of scores, so that equal ones become 0


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


class SoftSelector(PhasedSelector):
    """Learns by soft gates that sum to k, colder and colder, and keeps the k best patches in eval.

    Args:
        in_dim, k: see `ScoredSelector`.
        form: of the gates, "sigmoid" or "laplace", see `wsizoo.ops.soft_topk`.
        standardise: scores of a slide to mean 0 and variance 1, for the gates.
        start_temperature, end_temperature: of the gates; half a cosine leads from one to the other.
        anneal: share of the soft phase after which the end is reached.
        phases: `warm_up`, `tune`, `freeze_rest` and `lr_factor`, see `PhasedSelector`.

    Raises:
        SpecError: an option that there is not, or a value that it cannot have.
    """

    ablations: ClassVar[Mapping[str, str]] = {}
    """Parts to leave out, for a diagnosis: what it is then called -> an override of a config."""

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
        **phases: Any,
    ) -> None:
        check_known(phases, type(self))
        super().__init__(in_dim, k, **phases)
        check_option("form", form, form in FORMS, f"one of {', '.join(FORMS)}")
        for name, value in {"start": start_temperature, "end": end_temperature}.items():
            check_option(f"{name}_temperature", value, value > 0, "a number above 0")
        check_option("anneal", anneal, 0 <= anneal <= 1, "a share from 0 to 1")
        self.form, self.standardise, self.anneal = form, standardise, anneal
        self.start_temperature, self.end_temperature = start_temperature, end_temperature

    @property
    def temperature(self) -> float:
        """Of the gates, in the step under way."""
        first, end = self.soft_steps
        ends = self.start_temperature, self.end_temperature
        done = max(0, int(self.step) - first)
        return annealed(done, *ends, self.anneal * (end - first)) if self.total else ends[0]

    def gates(self, scores: Tensor, temperature: float | None = None) -> SoftTopk:
        """Gates of a slide's patches by their raw scores (N,); they sum to k.

        Args:
            temperature: default the one of the step under way.
        """
        return self.gates_of(self.for_gates(scores), temperature)

    def for_gates(self, scores: Tensor) -> Tensor:
        """Scores as the gates read them."""
        return standard_scores(scores) if self.standardise else scores

    def gates_of(self, scores: Tensor, temperature: float | None = None) -> SoftTopk:
        """As `gates`, of scores that `for_gates` gave."""
        temperature = self.temperature if temperature is None else temperature
        k = kept_count(self.k, len(scores))
        found: SoftTopk = soft_topk(scores, k, temperature, form=self.form)
        return found


def given_gates(gates: Tensor) -> SoftTopk:
    """Gates (N,) that somebody states. The gradient of a root where it is 0 counts as 0."""
    rest = 1 - gates
    return SoftTopk(gates, rest, _root(gates), _root(rest))


def _root(values: Tensor) -> Tensor:
    known = values > 0
    return torch.where(known, torch.sqrt(torch.where(known, values, 1.0)), 0.0)
