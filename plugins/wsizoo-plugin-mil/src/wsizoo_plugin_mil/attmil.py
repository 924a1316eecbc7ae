"""attMIL of marugoto (STAMP 1): plain attention pooling, and a batch norm before the classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsizoo import Aggregated, Bag
from wsizoo.mil.options import check_shares, check_sizes
from wsizoo.ops import RowLinear, RowSequential
from wsizoo_plugin_mil.attention_pooling import AttentionScores, pooled
from wsizoo_plugin_mil.packed import Packed, split


class AttMIL(Packed):
    """Embedding, plain tanh attention, and batch norm and dropout of the slide's vector.

    Args:
        in_dim: width of the features. dim, attention: widths of the embedding and of the attention.
        dropout: of the slide's vector, training only.

    Returns (forward): `slide` (E,), `scores` (N,) the attention, which sums to 1, `instances`
    (N, E).

    Cost: N (D E + E A + A + E) multiply-adds.
    Source: https://github.com/KatherLab/marugoto at e05ab1a.
    Differs: a slide that is a batch of its own is normed by the running figures, in training too;
    torch has no deviation of one.
    """

    gives_instances = True
    conformance_params: ClassVar[dict[str, Any]] = {"dim": 16, "attention": 8}

    def __init__(
        self, in_dim: int, dim: int = 256, attention: int = 128, dropout: float = 0.5
    ) -> None:
        check_sizes("attMIL", dim=dim, attention=attention)
        check_shares("attMIL", dropout=dropout)
        super().__init__(in_dim, dim)
        self.embed = RowSequential(RowLinear(in_dim, dim), nn.ReLU())
        self.attention = AttentionScores(dim, attention, gated=False)
        self.norm = nn.BatchNorm1d(dim)
        self.drop = nn.Dropout(dropout)

    def run(self, features: Tensor, bags: Sequence[Bag]) -> Aggregated:
        instances = self.embed(features)  # (N_total, E)
        raw = split(self.attention(instances), bags)
        weights, sums = pooled(raw, instances)
        slide = sums[:, 0]  # (B, E)
        if len(slide) > 1:
            slide = self.norm(slide)
        else:
            of = self.norm
            slide = F.batch_norm(
                slide, of.running_mean, of.running_var, of.weight, of.bias, eps=of.eps
            )
        return Aggregated(self.drop(slide), lambda: torch.cat(weights)[:, 0], instances)
