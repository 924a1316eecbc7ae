"""kNN: the answers of the training slides whose mean patch is most like that of a slide."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsizoo import Aggregated, Bag
from wsizoo.errors import DataError, SpecError
from wsizoo.mil.options import check_sizes
from wsizoo.mil.standardise import Standardise
from wsizoo_plugin_mil.neighbours import best
from wsizoo_plugin_mil.packed import Packed, check_task, label_of, projections, split

TARGETS = {"survival": "time", "regression": "value"}  # by task; of all others "label"
PRIOR = 0.5  # weight of the mean training slide beside k neighbours: it breaks ties, no more
EPS = 1e-6
FEW = 10  # neighbours, where there are four times as many training slides


class KNN(Packed):
    """The k training slides with the largest cosine between mean patches vote.

    Nothing is learned but one factor of all logits, so that probabilities are calibrated (each
    training slide is asked what it would be by the others); it changes no call and no order.
    The training slides are read once, in `start_training`, and are part of the weights; before
    that all logits are 0. Whoever has the weights has the mean patch and the target of each.

    Args:
        in_dim: width D of the features. n_outputs: C, of the head; None: no logits.
        k: neighbours; of fewer training slides all vote. None: 10, but of few training slides a
            quarter.
        capacity: training slides that there is room for.
        standardise: mean patches are, channel by channel, by those of the training slides; raw ones
            of most encoders all point one way.
        temperature: votes weigh as exp(cosine / temperature); None: all alike.
        task: the head's, which tells what is voted on: a label, a time with its event (hazards of
            bins, or Cox's), or a value.

    Logits are those of the neighbours' share of each class; for survival of how many of those at
    risk in a bin had the event; for Cox the log of events per time; for regression their mean. The
    mean training slide counts as half a neighbour, so that equal votes go to the frequent class
    and no share is 0.

    Returns (forward): `slide` (D,) the mean patch, `scores` (N,) a patch's projection on it,
    `logits` (C,).

    Cost: N D + M D multiply-adds, with M training slides.
    Source: Cover and Hart, 1967; on frozen features as in DINOv2, https://arxiv.org/abs/2304.07193,
    whose temperature this is (there k is 20). Standardisation, the prior and the factor are ours.
    """

    owns_classifier = True
    classifier_tensors: ClassVar[tuple[str, ...]] = ("answers", "exposures")
    conformance_params: ClassVar[dict[str, Any]] = {"capacity": 8}
    discloses = "the mean patch vector and the label, time or value of each training slide"
    vectors: Tensor
    answers: Tensor
    exposures: Tensor
    names: Tensor
    filled: Tensor

    def __init__(
        self,
        in_dim: int,
        n_outputs: int | None,
        k: int | None = None,
        capacity: int = 2048,
        standardise: bool = True,
        temperature: float | None = 0.07,
        task: str | None = None,
    ) -> None:
        check_task("kNN", task)
        check_sizes("kNN", k=k, capacity=capacity)
        if temperature is not None and not temperature > 0:
            raise SpecError(f"kNN's temperature is {temperature}, expected more than 0, or null")
        super().__init__(in_dim, in_dim)
        self.k, self.n_outputs, self.temperature = k, n_outputs, temperature
        self.standardise = Standardise(in_dim) if standardise else None
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
            self.vectors[i] = bag.features.to(self.vectors).mean(0)
            self.answers[i], self.exposures[i] = (x.to(self.answers) for x in told)
            self.names[i] = named(bag)
            self.filled += 1
        if m := int(self.filled):
            stored = self.vectors[:m]
            if self.standardise is not None:
                self.standardise.measure([Bag(stored)])
            stored.copy_(self.directions(stored))

    def inference_state(self) -> dict[str, Tensor]:
        """Without what stands for the slides' names, which only training asks for."""
        return {name: tensor for name, tensor in self.state_dict().items() if name != "names"}

    def directions(self, slide: Tensor) -> Tensor:
        """(B, D) mean patches -> of length 1, whose products are how alike they are."""
        return F.normalize(slide if self.standardise is None else self.standardise(slide), dim=1)

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
        """(B, k) int64 rows of the store, and (B, k) their votes, which add up to their number.

        In training no slide is its own neighbour: its vote is 0.
        """
        m = int(self.filled)
        likeness = self.directions(slide) @ self.vectors[:m].t()
        if self.training:
            asking = torch.tensor([named(bag) for bag in bags], device=slide.device)
            own = asking[:, None] == self.names[:m]
            likeness = likeness.masked_fill(own, -torch.inf)
        index = best(likeness, min(self.k or max(1, min(FEW, m // 4)), m))
        near = likeness.gather(1, index)
        votes = (near > -torch.inf).to(slide)
        if self.temperature is None:
            return index, votes
        shares = torch.softmax((near / self.temperature).clamp(min=-1e4), 1) * votes
        return index, shares * votes.sum(1, keepdim=True)

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
