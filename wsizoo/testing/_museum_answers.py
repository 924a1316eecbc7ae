"""Aggregators and whole models whose answers are not what they declare, one fault each."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from wsizoo.bag import Bag, BagBatch
from wsizoo.interfaces import Aggregated, Prediction, SlideOutput, WholeModel
from wsizoo.testing._museum_aggregators import DIM, Owner, Placed, Sound


class PeeksAtTarget(Sound):
    def forward(self, bag: Bag) -> Any:
        aggregated = super().forward(bag)
        if bag.target is not None:
            aggregated.slide = aggregated.slide + bag.target["label"]
        return aggregated


class LossInEval(Sound):
    def forward(self, bag: Bag) -> Any:
        aggregated = super().forward(bag)
        aggregated.losses = {"sparsity": aggregated.slide.abs().mean()}
        return aggregated


class ColumnOfScores(Sound):
    def forward(self, bag: Bag) -> Any:
        aggregated = super().forward(bag)
        aggregated.scores = aggregated.scores[:, None]
        return aggregated


class GroupsOfKept(Sound):
    def forward(self, bag: Bag) -> Any:
        aggregated = super().forward(bag)
        aggregated.groups = torch.arange(1 + len(bag) // 2)
        return aggregated


class SortedScores(Sound):
    def forward(self, bag: Bag) -> Any:
        aggregated = super().forward(bag)
        aggregated.scores = aggregated.scores.sort(descending=True).values
        return aggregated


class LateScoresOfLastSlide(Sound):
    def forward(self, bag: Bag) -> Any:
        aggregated = super().forward(bag)
        self.last = aggregated.scores
        aggregated.scores = lambda: self.last
        return aggregated


class WeighsByRow(Sound):
    def weights(self, instances: Tensor) -> Tensor:
        row = torch.arange(len(instances), dtype=instances.dtype)
        return torch.softmax(self.score(instances)[:, 0] - 0.1 * row, 0)


class NeedlessOrder(Sound):
    order_matters = True


class CutsGradient(Sound):
    def instances(self, bag: Bag) -> Tensor:
        return super().instances(bag.replace(features=bag.features.detach()))


class SecretCoords(Placed):
    uses_coords = False

    def instances(self, bag: Bag) -> Tensor:
        return Sound.instances(self, bag) if bag.coords is None else super().instances(bag)


class NeedlessCoords(Sound):
    uses_coords = True

    def forward(self, bag: Bag) -> Any:
        bag.grid()
        return super().forward(bag)


class SecretSpacing(Placed):
    uses_spacing = False

    def cells(self, bag: Bag) -> Tensor:
        lacks = bag.coords is not None and bag.spacing is None
        return super().cells(bag.replace(spacing=1.0) if lacks else bag)


class AbsolutePlace(Placed):
    def cells(self, bag: Bag) -> Tensor:
        return bag.grid()


class OneLabelTooFew(Owner):
    def forward(self, bag: Bag) -> Any:
        aggregated = super().forward(bag)
        if self.training:
            logits = self.classify(aggregated.instances)  # (N, C)
            labels = torch.zeros(len(logits) - 1, dtype=torch.int64)
            aggregated.predictions = {"patches": Prediction(logits, labels)}
        return aggregated


class RowOfSlide(Sound):
    def forward(self, bag: Bag) -> Any:
        aggregated = super().forward(bag)
        aggregated.slide = aggregated.slide[None]  # (1, E)
        return aggregated


class HiddenInstances(Sound):
    gives_instances = False


class HiddenLogits(Owner):
    owns_classifier = False

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim, 3)


class UnnamedClassifier(Owner):
    classifier_tensors = ()


class PacksAcrossSlides(Sound):
    def forward_packed(self, batch: BagBatch) -> Aggregated:
        instances = torch.tanh(self.embed(batch.features))
        weights = self.weights(instances)  # over all slides at once
        pairs = itertools.pairwise(batch.offsets.tolist())
        slide = torch.stack([weights[a:b] @ instances[a:b] for a, b in pairs])
        return Aggregated(slide, weights, instances)


class NoSlideInTraining(Sound):
    def forward(self, bag: Bag) -> Any:
        aggregated = super().forward(bag)
        if self.training:
            aggregated.slide = aggregated.scores = None
            aggregated.instances = (
                aggregated.instances * self.weights(aggregated.instances)[:, None]
            )
        return aggregated


class SoundModel(WholeModel):
    """A whole model without a fault."""

    def __init__(self, in_dim: int) -> None:
        super().__init__()
        self.body = Sound(in_dim)
        self.classify = nn.Linear(DIM, 3)

    def forward(self, bag: Bag) -> SlideOutput:
        found = self.body(bag)
        logits = self.classify(found.slide)
        return SlideOutput(logits=logits, embedding=found.slide, scores=found.scores)


class RowOfLogits(SoundModel):
    def forward(self, bag: Bag) -> SlideOutput:
        output = super().forward(bag)
        assert output.logits is not None
        output.logits = output.logits[None]
        return output
