"""kNN: the answers of the training slides whose mean patch is most like that of a slide."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsizoo import Aggregated, Bag
from wsizoo.errors import DataError
from wsizoo.mil.options import check_sizes
from wsizoo_plugin_mil.neighbours import best
from wsizoo_plugin_mil.packed import Packed, label_of, projections, split

TARGETS = {"survival": "time", "regression": "value"}  # by task; of all others "label"
PRIOR = 0.5  # weight of the mean training slide beside k neighbours: it breaks ties, no more
EPS = 1e-6


class KNN(Packed):
    """The k training slides with the largest cosine between mean patches vote.

    Nothing is learned but one factor of all logits, so that probabilities are calibrated (each
    training slide is asked what it would be by the others); it changes no call and no order.
    The training slides are read once, in `start_training`, and are part of the weights; before
    that all logits are 0.

    Args:
        in_dim: width D of the features. n_outputs: C, of the head; None: no logits.
        k: neighbours; of fewer training slides all vote.
        capacity: training slides that there is room for.
        task: the head's, which tells what is voted on: a label, a time with its event (hazards of
            bins, or Cox's), or a value.

    Logits are those of the neighbours' share of each class; for survival of how many of those at
    risk in a bin had the event; for Cox the log of events per time; for regression their mean. The
    mean training slide counts as half a neighbour, so that equal votes go to the frequent class
    and no share is 0.

    Returns (forward): `slide` (D,) the mean patch, `scores` (N,) a patch's projection on it,
    `logits` (C,).

    Cost: N D + M D multiply-adds, with M training slides.
    Source: Cover and Hart, 1967; on frozen features as in DINOv2, https://arxiv.org/abs/2304.07193
    (there k is 20 and votes are weighed). No paper states the prior, nor the factor: they are ours.
    """

    owns_classifier = True
    classifier_tensors: ClassVar[tuple[str, ...]] = ("answers", "exposures")
    conformance_params: ClassVar[dict[str, Any]] = {"capacity": 8}
    vectors: Tensor
    answers: Tensor
    exposures: Tensor
    names: Tensor
    filled: Tensor

    def __init__(
        self,
        in_dim: int,
        n_outputs: int | None,
        k: int = 10,
        capacity: int = 2048,
        task: str | None = None,
    ) -> None:
        check_sizes("kNN", k=k, capacity=capacity)
        super().__init__(in_dim, in_dim)
        self.k, self.n_outputs = k, n_outputs
        self.target = TARGETS.get(task or "", "label")
        rows = n_outputs or 1
        self.log_factor = nn.Parameter(torch.zeros(())) if n_outputs else None
        self.register_buffer("vectors", torch.zeros(capacity, in_dim))  # of length 1
        self.register_buffer("answers", torch.zeros(capacity, rows))
        self.register_buffer("exposures", torch.zeros(capacity, rows))
        self.register_buffer("names", torch.zeros(capacity, dtype=torch.int64))
        self.register_buffer("filled", torch.tensor(0))

    def start_training(self, total_steps: int, slides: Iterable[Bag]) -> None:
        """Read the training slides; those whose label is unknown are left out.

        Raises:
            DataError: more slides than there is room for, two of one name, or no target to vote on.
        """
        self.filled.zero_()
        seen: set[str] = set()
        for bag in slides:
            if bag.slide_id in seen:
                raise DataError(
                    f"two training slides are called '{bag.slide_id}', and kNN knows by the name "
                    "which is a slide's own. Give each bag a slide_id"
                )
            seen.add(bag.slide_id)
            told = self.told(bag)
            if told is None:
                continue
            i = int(self.filled)
            if i == len(self.vectors):
                raise DataError(
                    f"kNN has room for {i} training slides and there are more. Set "
                    "aggregator.capacity to their number"
                )
            self.vectors[i] = F.normalize(bag.features.to(self.vectors).mean(0), dim=0)
            self.answers[i], self.exposures[i] = (x.to(self.answers) for x in told)
            self.names[i] = named(bag)
            self.filled += 1

    def told(self, bag: Bag) -> tuple[Tensor, Tensor] | None:
        """What a training slide answers (C,), and how much it counts in each (C,)."""
        given, n = bag.target or {}, self.n_outputs or 1
        needed = ("time", "event") if self.target == "time" else (self.target,)
        if lacking := [name for name in needed if name not in given]:
            raise DataError(
                f"slide '{bag.slide_id}' has no target '{lacking[0]}', which kNN votes on"
            )
        ones = torch.ones(n)
        if self.target == "value":
            return ones * float(given["value"]), ones
        if self.target == "time":
            time, event = float(given["time"]), float(given["event"])
            if n == 1:
                return ones * event, ones * time
            bins = torch.arange(n)
            return event * (bins == int(time)), (bins <= int(time)).float()
        label = label_of(bag, max(n, 2))
        if label is None:
            return None
        return (ones * label if n == 1 else F.one_hot(torch.tensor(label), n)), ones

    def run(self, features: Tensor, bags: Sequence[Bag]) -> Aggregated:
        parts = split(features, bags)
        slide = torch.stack([part.mean(0) for part in parts])  # (B, D)
        logits = self.logits(slide.detach(), bags)
        return Aggregated(slide, lambda: projections(features, slide, bags), logits=logits)

    def logits(self, slide: Tensor, bags: Sequence[Bag]) -> Tensor | None:
        """(B, D) -> (B, C)."""
        if self.log_factor is None:
            return None
        m = int(self.filled)
        if m == 0:
            return torch.zeros(len(slide), self.answers.shape[1]).to(slide) * self.log_factor.exp()
        answers, exposures = self.answers[:m], self.exposures[:m]
        index, weight = self.neighbours(slide, bags)
        told, of = (
            (weight[..., None] * rows[index]).sum(1) + PRIOR * rows.mean(0)
            for rows in (answers, exposures)
        )
        mean = answers.mean(0) if self.target == "value" else torch.zeros_like(answers[0])
        return mean + self.log_factor.exp() * (self.link(told / of.clamp(min=EPS)) - mean)

    def neighbours(self, slide: Tensor, bags: Sequence[Bag]) -> tuple[Tensor, Tensor]:
        """(B, k) int64 rows of the store, and (B, k) which of them vote: 1 or 0.

        In training no slide is its own neighbour.
        """
        m = int(self.filled)
        likeness = F.normalize(slide, dim=1) @ self.vectors[:m].t()
        if self.training:
            asking = torch.tensor([named(bag) for bag in bags], device=slide.device)
            own = asking[:, None] == self.names[:m]
            likeness = likeness.masked_fill(own, -torch.inf)
        index = best(likeness, min(self.k, m))
        return index, (likeness.gather(1, index) > -torch.inf).to(slide)

    def link(self, share: Tensor) -> Tensor:
        """Shares or means (B, C) -> logits as the head reads them."""
        if self.target == "value":
            return share
        if self.target == "time" and share.shape[1] == 1:
            return share.clamp(min=EPS).log()
        share = share.clamp(EPS, 1 - EPS)
        many = self.target == "label" and share.shape[1] > 1
        return share.log() if many else torch.logit(share)


def named(bag: Bag) -> int:
    """A number that stands for the slide's name, as tensors hold none."""
    return zlib.crc32(bag.slide_id.encode())
