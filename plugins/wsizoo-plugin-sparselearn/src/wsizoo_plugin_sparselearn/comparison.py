"""Selectors that learn otherwise: an ABMIL's attention, straight-through, Gumbel top-k."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from wsizoo import Bag, Selected
from wsizoo.ops import hard_topk
from wsizoo.selection import TUNE, PhasedSelector, check_option, kept_count, own_generator
from wsizoo_plugin_sparselearn.scorers import WIDEST, Gated
from wsizoo_plugin_sparselearn.selector import LearnedSelector
from wsizoo_plugin_sparselearn.trained_abmil import copy_attention

CLAMP = 1e-6  # of uniform numbers, from 0 and 1


class AbmilScore(PhasedSelector):
    """The k patches of the largest attention logits of an ABMIL that was trained on whole bags.

    With `abmil` it is that model's, and stays so. Without, it learns in the warm-up, in which all
    patches pass and count by this attention (the aggregator's own is multiplied by it, or the
    features of one that has none), and stays as it is then.

    Args:
        in_dim, k: as of every selector.
        abmil: a trained model, its folder or a run. Read when a training begins.
        hidden, embedding: widths of its attention, and of the layers before it.
        warm_up: share of the steps in which it learns; None: half of them, or none with `abmil`.
        lr_factor: its learning rate, in that of the others.
    """

    conformance_params: ClassVar = {"k": 0.25}

    def __init__(
        self,
        in_dim: int,
        k: int | float = 32,
        *,
        abmil: str | None = None,
        hidden: int | None = None,
        embedding: Sequence[int] = (),
        warm_up: float | None = None,
        lr_factor: float = 1.0,
    ) -> None:
        told = "none: the abmil is trained"
        check_option("warm_up", warm_up, warm_up is None or abmil is None, told)
        share = warm_up if warm_up is not None else 0.5 if abmil is None else 0.0
        super().__init__(in_dim, k, warm_up=share, lr_factor=lr_factor)
        self.scorer = Gated(in_dim, min(in_dim, WIDEST) if hidden is None else hidden, embedding)
        self.abmil = abmil
        if abmil is not None:
            self.scorer.requires_grad_(False)

    @property
    def soft_steps(self) -> tuple[int, int]:
        first, _ = super().soft_steps
        return first, first

    def score(self, bag: Bag) -> Tensor:
        found: Tensor = self.scorer(bag.features)
        return found.float()

    def start_training(self, total_steps: int, slides: Iterable[Bag]) -> None:
        super().start_training(total_steps, slides)
        if self.abmil is not None:
            copy_attention(self.abmil, self.scorer, slides)

    def warm(self, bag: Bag) -> Selected:
        attention = torch.softmax(self.finite_scores(bag), 0)  # (N,)
        return Selected(bag, None, attention.detach(), weights=len(bag) * attention)

    def forward(self, bag: Bag) -> Selected:
        learns = self.training and self.abmil is None and self.phase != TUNE
        return self.warm(bag) if learns else self.hard(bag)


class StraightThrough(LearnedSelector):
    """Forward the mask of the k best patches, backward their soft gates, as weights of all patches.

    Args: see `LearnedSelector`.

    Source: the estimator of Bengio et al., 2013, https://arxiv.org/abs/1308.3432.
    """

    def soft(
        self,
        bag: Bag,
        generator: torch.Generator | None = None,
        temperature: float | None = None,
        gates: Tensor | None = None,
    ) -> Selected:
        if gates is not None:
            return Selected(bag, None, gates.detach(), weights=gates)
        temperature = self.temperature if temperature is None else temperature
        scores = self.for_gates(self.finite_scores(bag))
        scores = self.perturbed(scores, temperature, generator)
        found = self.gates_of(scores, temperature).gates
        index = hard_topk(scores, kept_count(self.k, len(bag)))
        mask = torch.zeros_like(found).index_fill(0, index, 1.0)
        weights = mask + (found - found.detach())  # the mask, with the gradient of the gates
        return Selected(bag, None, found.detach(), weights=weights)

    def perturbed(
        self, scores: Tensor, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        """Scores as they are ranked and gated in training."""
        return scores


class GumbelTopk(StraightThrough):
    """As `StraightThrough`, of scores with Gumbel noise times the temperature.

    Source: Kool et al., 2019, https://arxiv.org/abs/1903.06059, for the top-k of perturbed scores.
    """

    def perturbed(
        self, scores: Tensor, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        drawn = generator or own_generator(scores.device)
        uniform = torch.rand(scores.shape, generator=drawn, device=scores.device)
        gumbel = -torch.log(-torch.log(uniform.clamp(CLAMP, 1 - CLAMP)))  # (N,)
        return scores + temperature * gumbel
