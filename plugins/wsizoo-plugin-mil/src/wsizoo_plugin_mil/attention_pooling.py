"""Attention pooling: scores of patches by a small network, and weighted sums slide by slide."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from wsizoo.errors import SpecError
from wsizoo.ops import RowLinear, attention_scores, segment_pool

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
}
EMBEDDING_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


class AttentionScores(nn.Module):
    """(N, E) -> (N, K) scores before their softmax: c(act(V h) * sigmoid(U h)), or c(act(V h)).

    Args:
        dim: width E of the patches. hidden: width of the network. rows: K scores a patch.
        gated: with the sigmoid gate U.
        dropout: after the activation and after the sigmoid, each on its own; training only.
        bias: of all layers. activation: "tanh", "relu" or "gelu".

    Cost: N ((1 + gated) E hidden + K hidden) multiply-adds.
    Source: Ilse, Tomczak and Welling, ICML 2018, Eq. 8 and 9, https://arxiv.org/abs/1802.04712
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        rows: int = 1,
        gated: bool = True,
        dropout: float = 0.0,
        bias: bool = True,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise SpecError(
                f"activation is {activation!r}, expected one of {', '.join(ACTIVATIONS)}"
            )
        self.value = RowLinear(dim, hidden, bias)
        self.gate = RowLinear(dim, hidden, bias) if gated else None
        self.drop = nn.Dropout(dropout)
        self.score = nn.Linear(hidden, rows, bias)
        self.activation = activation

    def forward(self, instances: Tensor) -> Tensor:
        activation = ACTIVATIONS[self.activation]
        return attention_scores(instances, self.value, self.gate, self.score, self.drop, activation)


def pooled(scores: Sequence[Tensor], instances: Tensor) -> tuple[list[Tensor], Tensor]:
    """Softmax over the patches of each slide, and the sums that it weighs.

    Args:
        scores: (n, K) of each slide. instances: (N_total, E) of all, in their order.

    Returns:
        weights (n, K) of each slide, and the sums (B, K, E).
    """
    weights = [torch.softmax(one, 0) for one in scores]
    ends = itertools.accumulate(len(one) for one in scores)
    offsets = torch.tensor([0, *ends], device=instances.device)
    return weights, segment_pool(torch.cat(weights), instances, offsets)


def of_best_class(
    weights: Sequence[Tensor], logits: Tensor | None, survival: bool = False
) -> list[Tensor]:
    """Of each slide (n,): the attention of the class with the largest logit, or the only one.

    Args:
        weights: (n, K) of each slide, K = C or 1. logits: (B, C); None: the first is taken.
        survival: logits are of bins of time, of which none is the slide's: the mean is taken.
    """
    if survival:
        return [each.mean(1) for each in weights]
    if logits is None or weights[0].shape[1] == 1:
        return [each[:, 0] for each in weights]
    return [each[:, i] for each, i in zip(weights, logits.argmax(1).tolist(), strict=True)]


def highest(scores: Tensor, k: int) -> Tensor:
    """(min(k, N),) int64: which scores (N,) are the largest, descending; ties: the first."""
    return scores.detach().argsort(descending=True, stable=True)[:k]
