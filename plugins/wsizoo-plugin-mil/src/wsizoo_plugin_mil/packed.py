"""Aggregators of which several slides at once are one: the one definition, for one and for many."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from wsizoo import Aggregated, Aggregator, Bag, BagBatch
from wsizoo.errors import SpecError
from wsizoo.mil.pooling import projection

PER_PATCH = "segmentation"  # the task of heads that read patches
OF_PATCHES = (  # methods, of the core too, that such heads fit
    *("abmil", "attmil", "dsmil", "gat", "gcn", "ilra", "max", "max-instance", "mean"),
    *("mean-instance", "rrt", "transformer", "transmil", "wikg"),
)


class Packed(Aggregator):
    """`run` is the method; one slide is a batch of one.

    What is done patch by patch is done for all slides in one product. What is done slide by slide
    (softmax, sums, top patches) is small, and goes over `split`.
    """

    def forward(self, bag: Bag) -> Aggregated:
        found = self.run(bag.features, [bag])
        first = {
            name: value[0]
            for name in ("slide", "logits")
            if (value := getattr(found, name)) is not None
        }
        return dataclasses.replace(found, scores=found.scores_given, **first)

    def forward_packed(self, batch: BagBatch) -> Aggregated:
        return self.run(batch.features, list(batch))

    def run(self, features: Tensor, bags: Sequence[Bag]) -> Aggregated:
        """Several slides: `slide` (B, E), `logits` (B, C), per-patch fields end to end.

        Args:
            features: (N_total, D). bags: the slides. In training they have the targets for the
                method's losses, which are means over the slides.
        """
        raise NotImplementedError


def check_task(whose: str, task: str | None) -> None:
    """Raise SpecError for a head that reads patches: the method classifies slides alone."""
    if task == PER_PATCH:
        raise SpecError(
            f"{whose} classifies slides and no patches, so a {task} head has nothing to read; "
            f"expected one of slides, or one of these methods: {', '.join(OF_PATCHES)}"
        )


def split(rows: Tensor, bags: Sequence[Bag]) -> tuple[Tensor, ...]:
    """(N_total, ...) -> the rows of each slide, as views."""
    if len(bags) == 1:
        return (rows,)
    return torch.split(rows, [len(bag) for bag in bags])


def projections(rows: Tensor, slides: Tensor, bags: Sequence[Bag]) -> Tensor:
    """(N_total, E), (B, E) -> (N_total,): how far each patch lies along its slide's vector."""
    pairs = zip(split(rows.detach(), bags), slides.detach(), strict=True)
    return torch.cat([projection(own, slide) for own, slide in pairs])


def label_of(bag: Bag, n: int) -> int | None:
    """The slide's class, of n; None for a slide whose target states none, or -1 (unknown)."""
    label = (bag.target or {}).get("label")
    return None if label is None or not 0 <= int(label) < n else int(label)
