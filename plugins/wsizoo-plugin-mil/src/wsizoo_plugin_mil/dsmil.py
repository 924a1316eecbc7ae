"""DSMIL: a critical patch a class, and attention by likeness to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wsizoo import Aggregated, Bag, Prediction
from wsizoo.mil.options import check_shares, check_sizes, preset
from wsizoo.ops import RowLinear, RowSequential
from wsizoo_plugin_mil.attention_pooling import of_best_class, pooled
from wsizoo_plugin_mil.initialisation import begin
from wsizoo_plugin_mil.packed import PER_PATCH, Packed, split
from wsizoo_plugin_mil.survival import SURVIVAL

VARIANTS: dict[str, dict[str, Any]] = {
    "dsmil": {"dim": None, "query": 128, "nonlinear": True, "passing_v": False},
    "mil-lab": {"dim": 512, "query": 384, "nonlinear": False, "passing_v": True},
}


class DSMIL(Packed):
    """Logits of patches name a critical patch a class; attention asks how like it each patch is.

    Args:
        in_dim: width of the features. n_outputs: C, of the head; None: one row, no classifier.
        variant: "dsmil", the authors'; or "mil-lab": an embedding, a linear query, a norm of the
            class vectors, and logits that are the mean of the slide's and of the best patches'.
            The next four are the variant's where they are None (dim: 0 for no embedding).
        dim: width E of a ReLU embedding before all else; without one E = D.
        query: width of the queries. nonlinear: of two layers, with tanh at the end; or linear.
        passing_v: values are a layer of the patches (ReLU with the authors); or the patches.
        dropout_v: before that layer, training only.
        task: the head's.

    In training the best patch's logits of each class are a further prediction, which counts as
    much as the slide's; not under a head that reads patches. The authors' loss is
    `head.one_vs_rest=true`.

    Returns (forward): `slide` (C E,) the class vectors, `scores` (N,) the attention of the class
    with the largest logit, of survival their mean, which sums to 1, `logits` (C,),
    `instance_logits` (N, C).

    Cost: N (2 E C + E Q + Q^2 + Q C) multiply-adds, with D E for an embedding.
    Source: Li, Li and Eliceiri, CVPR 2021, https://arxiv.org/abs/2011.08939, and
    https://github.com/binli123/dsmil-wsi at 80465ed; MIL-Lab at dfc3c17.
    Differs: of several best patches the first is critical.
    """

    owns_classifier = True
    conformance_params: ClassVar[dict[str, Any]] = {"query": 8}
    classifier_tensors = ("instance.weight", "instance.bias", "classify.weight", "classify.bias")

    def __init__(
        self,
        in_dim: int,
        n_outputs: int | None,
        variant: str = "dsmil",
        dim: int | None = None,
        query: int | None = None,
        nonlinear: bool | None = None,
        passing_v: bool | None = None,
        dropout_v: float = 0.0,
        task: str | None = None,
    ) -> None:
        check_sizes("DSMIL", 0, dim=dim)
        check_sizes("DSMIL", query=query)
        check_shares("DSMIL", dropout_v=dropout_v)
        asked = {"dim": dim, "query": query, "nonlinear": nonlinear, "passing_v": passing_v}
        set_to = preset("DSMIL", VARIANTS, variant, **asked)
        width, rows = set_to["dim"] or in_dim, n_outputs or 1
        super().__init__(in_dim, rows * width)
        lab, q = variant == "mil-lab", set_to["query"]
        self.embed = (
            RowSequential(RowLinear(in_dim, width), nn.ReLU()) if set_to["dim"] else nn.Identity()
        )
        self.instance = nn.Linear(width, rows)
        self.query: nn.Module = RowLinear(width, q)
        if set_to["nonlinear"]:
            self.query = RowSequential(self.query, nn.ReLU(), RowLinear(q, q), nn.Tanh())
        self.drop = nn.Dropout(dropout_v)
        self.value = RowLinear(width, width) if set_to["passing_v"] else None
        self.value_act = nn.Identity() if lab else nn.ReLU()
        self.norm = nn.LayerNorm(width) if lab else nn.Identity()
        self.classify = nn.Conv1d(rows, n_outputs, width) if n_outputs else None
        self.mixed, self.survival = lab, task == SURVIVAL
        self.further = not lab and task != PER_PATCH
        begin(self, "he" if lab else "orthogonal")

    def run(self, features: Tensor, bags: Sequence[Bag]) -> Aggregated:
        instances = self.embed(features)  # (N_total, E)
        judged = self.instance(instances)  # (N_total, C)
        critical, best = critical_patches(judged, bags)
        query = self.query(instances)  # (N_total, Q)
        values = instances
        if self.value is not None:
            values = self.value_act(self.value(self.drop(instances)))
        asked = query[critical] * query.shape[1] ** -0.5  # (B, C, Q)
        scores = [part @ of.t() for part, of in zip(split(query, bags), asked, strict=True)]
        weights, sums = pooled(scores, values)
        rows = self.norm(sums)  # (B, C, E)
        if self.classify is None:
            return Aggregated(rows.flatten(1), lambda: torch.cat(of_best_class(weights, None)))
        logits = self.classify(rows)[..., 0]  # (B, C)
        if self.mixed:
            logits = (logits + best) / 2
        found = Aggregated(
            slide=rows.flatten(1),
            scores=lambda: torch.cat(of_best_class(weights, logits, self.survival)),
            logits=logits,
            instance_logits=judged,
        )
        if self.training and self.further:
            found.task_weight = 0.5
            found.predictions = {
                f"best patches/{i}": Prediction(row, weight=0.5, slide=i)
                for i, row in enumerate(best)
            }
        return found


def critical_patches(judged: Tensor, bags: Sequence[Bag]) -> tuple[Tensor, Tensor]:
    """The best patch of each slide and class: its row (B, C) int64 in (N_total, C), its logit."""
    rows, start = [], 0
    for part in split(judged.detach(), bags):
        rows.append(start + part.argmax(0))  # the first of equals
        start += len(part)
    index = torch.stack(rows)
    return index, judged.gather(0, index)
