"""Attention-based multiple instance learning (ABMIL), gated and plain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from wsizoo.bag import Bag, BagBatch
from wsizoo.interfaces import Aggregated, Aggregator
from wsizoo.mil.embedding import layers
from wsizoo.mil.options import check_shares, check_sizes
from wsizoo.mil.standardise import Standardise
from wsizoo.ops import RowLinear, RowSequential, attention_scores, segment_pool, segment_softmax


class ABMIL(Aggregator):
    """Each patch is embedded, weighted by a small attention network, and summed.

    a = softmax_i(w . (tanh(V h_i) * sigmoid(U h_i))) (gated) or softmax_i(w . tanh(V h_i)).

    Args:
        in_dim: width D of the features.
        dim: width E of the embedding.
        attention: width of the attention network.
        gated: with the sigmoid gate (Eq. 9) or without (Eq. 8).
        dropout: after each layer of the embedding, training only.
        last_dropout: after the last of these layers, where it is another: MIL-Lab's is 0.
        score_dropout: inside the attention network, training only: MIL-Lab's is 0.25.
        hidden: widths of further embedding layers before that of width `dim`, Linear + ReLU each.
        standardise: features by the training patches' mean and deviation, see `Standardise`.

    Returns (forward): `slide` (E,), `scores` (N,) the attention weights (they sum to 1),
    `instances` (N, E).

    Cost: N (D E + (1 + gated) E A + A + E) multiply-adds; with `hidden`, its layers' for D E.
    Source: Ilse, Tomczak and Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018,
    Eq. 7-9, https://arxiv.org/abs/1802.04712
    Differs: the paper embeds with a convolutional network; here patches are features already.
    """

    gives_instances = True
    takes_weights = True

    def __init__(
        self,
        in_dim: int,
        dim: int = 512,
        attention: int = 256,
        gated: bool = True,
        dropout: float = 0.25,
        hidden: Sequence[int] = (),
        last_dropout: float | None = None,
        score_dropout: float = 0.0,
        standardise: bool = False,
    ) -> None:
        check_sizes("ABMIL", dim=dim, attention=attention, hidden=hidden)
        check_shares("ABMIL", dropout=dropout, last_dropout=last_dropout)
        check_shares("ABMIL", score_dropout=score_dropout)
        super().__init__(in_dim, dim)
        self.standard = Standardise(in_dim) if standardise else None
        self.embed = RowSequential(*layers([in_dim, *hidden, dim], dropout, last_dropout))
        self.value = RowLinear(dim, attention)
        self.gate = RowLinear(dim, attention) if gated else None
        self.drop = nn.Dropout(score_dropout)
        self.score = nn.Linear(attention, 1)

    def start_training(self, total_steps: int, slides: Iterable[Bag]) -> None:
        if self.standard is not None:
            self.standard.measure(slides)

    def forward(self, bag: Bag, weights: Tensor | None = None) -> Aggregated:
        """`weights` (N,): how much each patch counts; attention is a_i w_i by its sum."""
        instances, logits = self.attend(bag.features)
        attention = torch.softmax(logits, 0)  # (N,)
        if weights is not None:
            attention = attention * weights.to(attention)
            attention = attention / attention.sum().clamp(min=torch.finfo(attention.dtype).tiny)
        whole = torch.tensor([0, len(instances)], device=instances.device)
        slide = segment_pool(attention[:, None], instances, whole)[0, 0]  # (E,)
        return Aggregated(slide, attention, instances)

    def forward_packed(self, batch: BagBatch) -> Aggregated:
        instances, logits = self.attend(batch.features)
        weights = segment_softmax(logits, batch.offsets)  # (N_total,)
        slide = segment_pool(weights[:, None], instances, batch.offsets)[:, 0]  # (B, E)
        return Aggregated(slide, weights, instances)

    def attend(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded patches (N, E) and their attention logits (N,)."""
        if self.standard is not None:
            features = self.standard(features)
        instances = self.embed(features)  # (N, E)
        logits = attention_scores(instances, self.value, self.gate, self.score, self.drop)
        return instances, logits[:, 0]
