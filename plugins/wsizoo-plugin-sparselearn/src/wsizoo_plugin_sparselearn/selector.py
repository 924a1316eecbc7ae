"""SparseLearn: patches fade into noise by learnt gates in training; in eval the k best are kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from wsizoo import Bag, Selected, SoftSelector
from wsizoo.selection import check_option, given_gates, own_generator
from wsizoo_plugin_sparselearn.denoiser import Denoiser
from wsizoo_plugin_sparselearn.noise_gate import NoiseGate
from wsizoo_plugin_sparselearn.scorers import make_scorer
from wsizoo_plugin_sparselearn.trained_abmil import copy_attention


class LearnedSelector(SoftSelector):
    """A soft selector whose scores are a small network's.

    Args:
        in_dim, k: as of every selector: width of the features, and how many patches are kept.
        scorer: "mlp", "linear", "gated", "context" or "transformer", see `scorers`.
        hidden: width of its hidden layer; None: that of the features, at most 256.
        embedding: of "gated": widths of layers before it. heads: of "transformer".
        abmil: of "gated": a trained model (name, folder or run) whose aggregator is an ABMIL on the
            same features; the scorer begins as its attention. Read when a training begins.
        soft: see `wsizoo.SoftSelector`.
    """

    conformance_params: ClassVar = {"k": 0.25}

    def __init__(
        self,
        in_dim: int,
        k: int | float = 32,
        *,
        scorer: str = "mlp",
        hidden: int | None = None,
        embedding: Sequence[int] = (),
        heads: int | None = None,
        abmil: str | None = None,
        **soft: Any,
    ) -> None:
        super().__init__(in_dim, k, **soft)
        self.scorer = make_scorer(scorer, in_dim, hidden, embedding, heads)
        check_option("abmil", abmil, abmil is None or scorer == "gated", "scorer=gated")
        self.abmil = abmil

    def score(self, bag: Bag) -> Tensor:
        found: Tensor = self.scorer(bag.features)
        return found.float()

    def start_training(self, total_steps: int, slides: Iterable[Bag]) -> None:
        super().start_training(total_steps, slides)
        if self.abmil is not None:
            copy_attention(self.abmil, self.scorer, slides)


class SparseLearn(LearnedSelector):
    """A scorer; in training a noise gate by its soft top-k, and a denoiser; in eval the k best.

    Args:
        stats: what the noise is like: "channel", "channel-running", "unit" or "token", see
            `NoiseGate`.
        denoiser: whether there is one.
        feedforward: width of its hidden layer; None: twice that of the features.
        options: of the scorer (`LearnedSelector`), of the gates and the phases
            (`wsizoo.SoftSelector`).

    Cost: N D h multiply-adds of the scorer and a sort in eval; in training 6 N D^2 of the denoiser
    besides, and the aggregator on all N patches.
    Source: SparseLearn, https://arxiv.org/abs/2606.08641, as far as its abstract says; DiffPrune,
    https://arxiv.org/abs/2605.28051, for the parts.
    Differs: what neither says is ours, see docs/sparselearn.md.
    """

    ablations: ClassVar = {"without denoiser": "selector.denoiser=false"}
    only_in_training: ClassVar = (*SoftSelector.only_in_training, "noise_gate", "denoiser")

    def __init__(
        self,
        in_dim: int,
        k: int | float = 32,
        *,
        stats: str = "channel",
        denoiser: bool = True,
        feedforward: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(in_dim, k, **options)
        self.noise_gate = NoiseGate(in_dim, stats)
        wide = 2 * in_dim if feedforward is None else feedforward
        reads = wide >= 1 and (denoiser or feedforward is None)
        check_option("feedforward", feedforward, reads, "a number from 1, of a denoiser")
        self.denoiser = Denoiser(in_dim, wide) if denoiser else None

    def warm(self, bag: Bag) -> Selected:
        self.noise_gate.observe(bag.features)
        return super().warm(bag)

    def soft(
        self,
        bag: Bag,
        generator: torch.Generator | None = None,
        temperature: float | None = None,
        gates: Tensor | None = None,
    ) -> Selected:
        x = bag.features
        if gates is None:
            found = self.gates(self.finite_scores(bag), temperature)
        else:
            found = given_gates(gates)
        features = self.noise_gate(x, found, self.noise(x, generator))
        if self.denoiser is not None:
            features = self.denoiser(features)
        return Selected(bag.replace(features=features), None, found.gates.detach())

    def noise(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Standard normal, a number a patch and channel, like x (N, D)."""
        drawn = generator or own_generator(x.device)
        return torch.randn(x.shape, generator=drawn, device=x.device, dtype=x.dtype)
