"""Every patch is classified by itself; the slide's logits are the mean, or the best, of theirs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wsizoo import Aggregated, Bag
from wsizoo.errors import SpecError
from wsizoo.mil.options import check_shares, check_sizes
from wsizoo.ops import RowLinear, RowSequential, segment_max, segment_mean
from wsizoo_plugin_mil.attention_pooling import EMBEDDING_ACTIVATIONS
from wsizoo_plugin_mil.initialisation import begin
from wsizoo_plugin_mil.packed import Packed, split
from wsizoo_plugin_mil.survival import SURVIVAL, risk

POOLS = ("each-class", "one-patch")


class MeanInstance(Packed):
    """The mean of the patches' logits.

    Args:
        in_dim: width of the features. n_outputs: C, of the head; None: no classifier.
        dim: width E of the embedding. dropout: after it, training only.
        activation: "relu" or "gelu".

    Returns (forward): `slide` (E,) the mean of the embedded patches, `scores` (N,) the patches'
    logit of the class that the slide has most of, `instances` (N, E), `logits` (C,),
    `instance_logits` (N, C).

    Cost: N (D E + E C) multiply-adds.
    Source: `MeanMIL` of https://github.com/DearCaat/RRT-MIL at 7ecbdfb.
    """

    owns_classifier = True
    gives_instances = True
    classifier_tensors = ("classify.weight", "classify.bias")
    conformance_params: ClassVar[dict[str, Any]] = {"dim": 16}

    def __init__(
        self,
        in_dim: int,
        n_outputs: int | None,
        dim: int = 512,
        dropout: float = 0.25,
        activation: str = "relu",
    ) -> None:
        if activation not in EMBEDDING_ACTIVATIONS:
            raise SpecError(
                f"activation is {activation!r}, expected one of {', '.join(EMBEDDING_ACTIVATIONS)}"
            )
        check_sizes(type(self).__name__, dim=dim)
        check_shares(type(self).__name__, dropout=dropout)
        super().__init__(in_dim, dim)
        self.embed = RowSequential(
            RowLinear(in_dim, dim), EMBEDDING_ACTIVATIONS[activation](), nn.Dropout(dropout)
        )
        self.classify = nn.Linear(dim, n_outputs) if n_outputs else None
        begin(self, "xavier")

    def run(self, features: Tensor, bags: Sequence[Bag]) -> Aggregated:
        instances = self.embed(features)  # (N_total, E)
        offsets = torch.tensor([0, *map(len, bags)], device=features.device).cumsum(0)
        slide = segment_mean(instances, offsets)  # (B, E)
        if self.classify is None:
            return Aggregated(slide, instances=instances)
        judged = self.classify(instances)  # (N_total, C)
        logits = self.pool(judged, offsets)  # (B, C)

        def scores() -> Tensor:
            best = logits.argmax(1).tolist()
            return torch.cat([p[:, i] for p, i in zip(split(judged, bags), best, strict=True)])

        return Aggregated(slide, scores, instances, logits, judged)

    def pool(self, judged: Tensor, offsets: Tensor) -> Tensor:
        """(N_total, C) -> (B, C)."""
        mean: Tensor = segment_mean(judged, offsets)
        return mean


class MaxInstance(MeanInstance):
    """The largest logit of any patch, class by class; or the logits of one patch.

    Args, as `MeanInstance` and:
        pool: "each-class", or "one-patch": the patch whose softmax probability, of two classes of
            the second, of more of any class, is the largest; of survival, and of one output, the
            patch of the highest risk.
        task: the head's.

    Source: `MaxMIL` of https://github.com/DearCaat/RRT-MIL at 7ecbdfb; "one-patch": `MIL_fc` and
    `MIL_fc_mc` of https://github.com/mahmoodlab/CLAM at 53e2409.
    """

    def __init__(
        self,
        in_dim: int,
        n_outputs: int | None,
        dim: int = 512,
        dropout: float = 0.25,
        activation: str = "relu",
        pool: str = "each-class",
        task: str | None = None,
    ) -> None:
        if pool not in POOLS:
            raise SpecError(f"pool is {pool!r}, expected one of {', '.join(POOLS)}")
        super().__init__(in_dim, n_outputs, dim, dropout, activation)
        self.one_patch, self.survival = pool == "one-patch", task == SURVIVAL

    def pool(self, judged: Tensor, offsets: Tensor) -> Tensor:
        if not self.one_patch:
            largest: Tensor = segment_max(judged, offsets)
            return largest
        sure = self.sure(judged.detach())
        bounds = offsets.tolist()
        rows = [a + int(sure[a:b].argmax()) for a, b in itertools.pairwise(bounds)]
        return judged[rows]

    def sure(self, judged: Tensor) -> Tensor:
        """(N_total, C) -> (N_total,), see `pool`."""
        if self.survival or judged.shape[1] == 1:
            return risk(judged)
        share = torch.softmax(judged, 1)
        return share[:, 1] if share.shape[1] == 2 else share.amax(1)
