"""ACMIL: several attentions that are kept apart, and whose best patches are hidden at random."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wsizoo import Aggregated, Bag, Prediction
from wsizoo.mil.options import check_heads, check_shares, check_sizes
from wsizoo.ops import RowLinear, RowSequential
from wsizoo_plugin_mil.attention_pooling import AttentionScores
from wsizoo_plugin_mil.initialisation import begin
from wsizoo_plugin_mil.packed import Packed, check_task, split

HIDDEN_SCORE = -1e9
EPS = 1e-8


class AcmilGA(Packed):
    """K rows of gated attention; the slide is what their mean weighs.

    Args:
        in_dim: width of the features. n_outputs: C, of the head; None: no classifier.
        dim: width E of the embedding; theirs is 512 for UNI, 256 for ResNet18, 128 for ViT-S.
        attention: width of the attention network.
        branches: K attentions; 1: ABMIL as this code has it, without the losses of the others.
        masked, mask_drop: in training each attention hides that share of its so many best patches,
            drawn anew each time, the share rounded down; masked=0: none.
        task: the head's.

    In training each attention's own prediction counts as much as the slide's (their mean), and the
    mean cosine between attentions, `diversity`, is added.

    Returns (forward): `slide` (E,), `scores` (N,) the mean attention, which sums to 1, `logits`
    (C,).

    Cost: N (D E + 2 E A + K A + K E) multiply-adds.
    Source: Zhang et al., ECCV 2024, https://arxiv.org/abs/2311.07125, and
    https://github.com/dazhangyu123/ACMIL at e53d19c.
    Differs: of one attention (K = 1) there is no branch with a classifier of its own, which is
    never trained there.
    """

    owns_classifier = True
    classifier_tensors: ClassVar[tuple[str, ...]] = (
        *("classify.weight", "classify.bias"),
        *("branch.weight", "branch.bias"),
    )
    conformance_params: ClassVar[dict[str, Any]] = {"dim": 16, "attention": 8}

    def __init__(
        self,
        in_dim: int,
        n_outputs: int | None,
        dim: int = 512,
        attention: int = 128,
        branches: int = 5,
        masked: int = 10,
        mask_drop: float = 0.6,
        task: str | None = None,
    ) -> None:
        check_task("ACMIL", task)
        self.check(dim, branches, masked, mask_drop)
        check_sizes("ACMIL", attention=attention)
        super().__init__(in_dim, dim)
        self.prepare(n_outputs, branches, masked, mask_drop)
        self.attention = AttentionScores(dim, attention, branches)
        begin(self, "torch")

    def check(self, dim: int, branches: int, masked: int, mask_drop: float) -> None:
        check_sizes("ACMIL", dim=dim, branches=branches)
        check_sizes("ACMIL", 0, masked=masked)
        check_shares("ACMIL", whole=True, mask_drop=mask_drop)

    def prepare(self, n_outputs: int | None, branches: int, masked: int, mask_drop: float) -> None:
        """What all kinds of attention share; called first in their constructors."""
        dim = self.out_dim
        self.branches, self.masked, self.mask_drop = branches, masked, mask_drop
        self.outputs = n_outputs or 0
        self.embed = RowSequential(RowLinear(self.in_dim, dim, bias=False), nn.ReLU())
        self.classify = nn.Linear(dim, n_outputs) if n_outputs else None
        self.branch = None
        if n_outputs and branches > 1:
            self.branch = nn.Linear(dim, branches * n_outputs)
        else:
            self.classifier_tensors = self.classifier_tensors[:2]  # type: ignore[misc]

    def run(self, features: Tensor, bags: Sequence[Bag]) -> Aggregated:
        instances = self.embed(features)  # (N_total, E)
        weights, vectors, slides = [], [], []
        for raw, rows in zip(self.scored(instances, bags), split(instances, bags), strict=True):
            paid = torch.softmax(self.hidden(raw) if self.training else raw, 1)  # (K H, n)
            vector, slide = self.summed(paid, rows)
            weights.append(paid)
            vectors.append(vector)
            slides.append(slide)
        slide = torch.stack(slides)  # (B, E)
        found = Aggregated(
            slide=slide,
            scores=lambda: torch.cat([paid.mean(0) for paid in weights]),
            logits=None if self.classify is None else self.classify(slide),
        )
        if self.training and self.branch is not None:
            each = self.judged(torch.stack(vectors))  # (B, K, C)
            found.predictions = {
                f"branches/{i}": Prediction(rows, slide=i) for i, rows in enumerate(each)
            }
            alike = [likeness(paid.reshape(self.branches, -1, paid.shape[1])) for paid in weights]
            found.losses = {"diversity": torch.stack(alike).mean()}
        return found

    def scored(self, instances: Tensor, bags: Sequence[Bag]) -> list[Tensor]:
        """Of each slide (K H, n): scores before their softmax, branch by branch, head by head."""
        return [raw.t() for raw in split(self.attention(instances), bags)]

    def summed(self, paid: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(K H, n), (n, E) -> what the branches (K, E) and the slide (E,) sum."""
        vectors = paid @ rows
        return vectors, vectors.mean(0)

    def judged(self, vectors: Tensor) -> Tensor:
        """(..., K, E) -> (..., K, C), each by the classifier of its branch."""
        assert self.branch is not None
        weight = self.branch.weight.view(self.branches, -1, self.out_dim)  # (K, C, E)
        bias = self.branch.bias.view(self.branches, -1)
        judged: Tensor = (weight @ vectors[..., None])[..., 0] + bias
        return judged

    def hidden(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        """Stochastic top-k masking: scores (R, n), some of the best of each row put to -1e9.

        Args:
            noise: (R, min(masked, n)), whose order in each row tells which; None: drawn.
        """
        best = self.best(raw)  # (R, k)
        noise = torch.rand(best.shape, device=raw.device) if noise is None else noise
        drawn = noise.argsort(1)[:, : int(best.shape[1] * self.mask_drop)]
        return raw.scatter(1, best.gather(1, drawn), HIDDEN_SCORE)

    def best(self, raw: Tensor) -> Tensor:
        """(R, min(masked, n)) int64: the largest of each row, descending; ties: the first."""
        return raw.detach().argsort(dim=1, descending=True, stable=True)[:, : self.masked]


class AcmilMHA(AcmilGA):
    """K tokens that ask the patches, each by multi-head attention of its own.

    Args, as `AcmilGA` without its `attention`, and:
        heads: H of each attention. dropout: of what attention gives, training only.

    Returns (forward): as `AcmilGA`; `scores` are the mean over branches and heads.

    Cost: N (D E + (2 K + 1) H E) multiply-adds: q^T W_k and then the patches, the weighted sum of
    patches and then W_v, so that no keys and no values of patches are ever made.
    Differs: in that order of products, the same but for rounding.
    """

    conformance_params: ClassVar[dict[str, Any]] = {"dim": 16, "heads": 4}

    def __init__(
        self,
        in_dim: int,
        n_outputs: int | None,
        dim: int = 512,
        heads: int = 8,
        branches: int = 5,
        masked: int = 10,
        mask_drop: float = 0.6,
        dropout: float = 0.1,
        task: str | None = None,
    ) -> None:
        check_task("ACMIL", task)
        self.check(dim, branches, masked, mask_drop)
        check_sizes("ACMIL", heads=heads)
        check_shares("ACMIL", dropout=dropout)
        check_heads("ACMIL", dim, heads=heads)
        super(AcmilGA, self).__init__(in_dim, dim)
        self.prepare(n_outputs, branches, masked, mask_drop)
        self.heads = heads
        self.tokens = nn.Parameter(1e-6 * torch.randn(branches, dim))
        self.asking = nn.ModuleList(Asking(dim, heads) for _ in range(branches))
        count = branches if branches > 1 else 0
        self.telling = nn.ModuleList(Telling(dim, heads, dropout) for _ in range(count + 1))
        begin(self, "torch")

    def scored(self, instances: Tensor, bags: Sequence[Bag]) -> list[Tensor]:
        asked = [ask(token) for ask, token in zip(self.asking, self.tokens, strict=True)]
        rows, shifts = (torch.cat(part) for part in zip(*asked, strict=True))  # (K H, E), (K H,)
        return [raw.t() for raw in split(instances @ rows.t() + shifts, bags)]

    def summed(self, paid: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        parts = (paid @ rows).view(self.branches, self.heads, -1)  # (K, H, E)
        *each, of_all = self.telling
        vectors = [tell(part) for tell, part in zip(each, parts, strict=False)]
        slide: Tensor = of_all(parts.mean(0))
        return torch.stack(vectors) if vectors else slide[None], slide


class Asking(nn.Module):
    """A token (E,) -> rows (H, E) and shifts (H,): the scores of a patch h are rows h + shifts."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.query, self.key = heads, RowLinear(dim, dim), RowLinear(dim, dim)

    def forward(self, token: Tensor) -> tuple[Tensor, Tensor]:
        query = self.query(token).view(self.heads, 1, -1)  # (H, 1, d)
        query = query / math.sqrt(query.shape[-1])
        weight = self.key.weight.view(self.heads, -1, len(token))  # (H, d, E)
        bias = self.key.bias.view(self.heads, -1)  # (H, d)
        return (query @ weight)[:, 0], (query[:, 0] * bias).sum(1)


class Telling(nn.Module):
    """Patches as each head sums them (H, E), with weights that sum to 1 -> (E,)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.value, self.out = heads, RowLinear(dim, dim), RowLinear(dim, dim)
        self.drop, self.norm = nn.Dropout(dropout), nn.LayerNorm(dim, eps=1e-6)

    def forward(self, parts: Tensor) -> Tensor:
        weight = self.value.weight.view(self.heads, -1, parts.shape[1])  # (H, d, E)
        values = (weight @ parts[:, :, None]).flatten() + self.value.bias  # (E,)
        told: Tensor = self.norm(self.drop(self.out(values)))
        return told


def likeness(weights: Tensor) -> Tensor:
    """() Mean cosine between the rows of each two branches, over the heads.

    Args:
        weights: (K, H, n), K at least 2.
    """
    sizes = weights.norm(dim=2, keepdim=True).clamp(min=EPS)
    unit = (weights / sizes).transpose(0, 1)  # (H, K, n)
    cosines = (unit @ unit.mT).mean(0)  # (K, K)
    pairs = list(itertools.combinations(range(len(cosines)), 2))
    first, second = (list(side) for side in zip(*pairs, strict=True))
    mean: Tensor = cosines[first, second].mean()
    return mean
