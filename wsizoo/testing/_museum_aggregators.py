"""Aggregators that do not work everywhere or cannot be trained, one fault each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsizoo.bag import Bag
from wsizoo.interfaces import Aggregated, Aggregator, Part

DIM = 16


class Sound(Aggregator):
    """Attention pooling without a fault; the exhibits change one thing of it."""

    gives_instances = True

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim, DIM)
        self.embed = nn.Linear(in_dim, DIM)
        self.score = nn.Linear(DIM, 1)

    def instances(self, bag: Bag) -> Tensor:
        return torch.tanh(self.embed(bag.features))  # (N, E)

    def weights(self, instances: Tensor) -> Tensor:
        return torch.softmax(self.score(instances)[:, 0], 0)  # (N,)

    def forward(self, bag: Bag) -> Any:
        instances = self.instances(bag)
        weights = self.weights(instances)
        return Aggregated(weights @ instances, weights, instances)


class Weighing(Sound):
    """Sound too: it takes weights."""

    takes_weights = True

    def forward(self, bag: Bag, weights: Tensor | None = None) -> Any:
        instances = self.instances(bag)
        attention = self.weights(instances)
        if weights is not None:
            attention = attention * weights / (attention * weights).sum()
        return Aggregated(attention @ instances, attention, instances)


class IgnoresWeights(Weighing):
    def forward(self, bag: Bag, weights: Tensor | None = None) -> Any:
        return super().forward(bag)


class Placed(Sound):
    """Sound too, with the distance to the upper left corner added to each patch."""

    uses_coords = True

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim)
        self.place = nn.Linear(2, DIM)

    def cells(self, bag: Bag) -> Tensor:
        cells = bag.grid()
        return cells - cells.min(0).values  # (N, 2)

    def instances(self, bag: Bag) -> Tensor:
        place = torch.tanh(0.1 * self.place(self.cells(bag).to(bag.features.dtype)))
        return super().instances(bag) + place


class Owner(Sound):
    """Sound too: it owns its classifier."""

    owns_classifier = True
    classifier_tensors: ClassVar[tuple[str, ...]] = ("classify.weight", "classify.bias")

    def __init__(self, in_dim: int, n_outputs: int) -> None:
        super().__init__(in_dim)
        self.classify = nn.Linear(DIM, n_outputs)

    def forward(self, bag: Bag) -> Any:
        aggregated = super().forward(bag)
        aggregated.logits = self.classify(aggregated.slide)
        return aggregated


class NoPart(nn.Module):
    """Everything is there except the base class."""

    gives_instances = True
    forward_packed = None
    param_groups = Part.param_groups
    start_training = Part.start_training
    after_step = Part.after_step
    inference_state = Part.inference_state
    instances = Sound.instances
    weights = Sound.weights
    forward = Sound.forward

    def __init__(self, in_dim: int) -> None:
        super().__init__()
        self.in_dim, self.out_dim, self.instance_dim = in_dim, DIM, DIM
        self.embed = nn.Linear(in_dim, DIM)
        self.score = nn.Linear(DIM, 1)


class ExcusesUnknownRule(Sound):
    conformance_exceptions: ClassVar = {"no_such_check": "there is no such check"}


class NeedlessExcuse(Sound):
    conformance_exceptions: ClassVar = {"one_patch": "an exception that is not needed"}


class SetsGlobalSeed(Sound):
    def __init__(self, in_dim: int) -> None:
        torch.manual_seed(42)
        super().__init__(in_dim)


class NumpyInitialised(Sound):
    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim)
        draws = numpy.random.normal(size=(1, DIM))
        with torch.no_grad():
            self.score.weight.copy_(torch.from_numpy(draws))


class DropoutAlwaysOn(Sound):
    def instances(self, bag: Bag) -> Tensor:
        return F.dropout(super().instances(bag), 0.2)


class KeepsAttention(Sound):
    def weights(self, instances: Tensor) -> Tensor:
        self.last_attention = super().weights(instances)
        return self.last_attention


class PublishesCopies(Sound):
    def inference_state(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.state_dict().items()}


class UnsavedProjection(Sound):
    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim)
        self.register_buffer("mix", torch.randn(in_dim, in_dim), persistent=False)

    def instances(self, bag: Bag) -> Tensor:
        assert isinstance(self.mix, Tensor)
        return super().instances(bag.replace(features=bag.features @ self.mix))


class CastsToFloat32(Sound):
    def forward(self, bag: Bag) -> Any:
        return super().forward(bag.replace(features=bag.features.float()))


class UnusedLayer(Sound):
    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim)
        self.forgotten = nn.Linear(DIM, DIM)


class ForgetsBiasGroup(Sound):
    def param_groups(self, base_lr: float) -> list[dict[str, Any]]:
        kept = [p for name, p in self.named_parameters() if "bias" not in name]
        return [{"params": kept, "lr": base_lr}]


class StepsOnlyOnce(Sound):
    def start_training(self, total_steps: int, slides: Iterable[Bag]) -> None:
        self.warm = True

    def after_step(self, step: int, total_steps: int) -> None:
        del self.warm


class TemperatureOutsideState(Sound):
    temperature = 4.0

    def after_step(self, step: int, total_steps: int) -> None:
        self.temperature = self.temperature / 2

    def instances(self, bag: Bag) -> Tensor:
        return super().instances(bag) / (self.temperature if self.training else 1.0)


class MisstatesWidth(Sound):
    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim)
        self.in_dim = 1


class ReturnsTensor(Sound):
    def forward(self, bag: Bag) -> Any:
        return super().forward(bag).slide


class DividesByDeviation(Sound):
    def instances(self, bag: Bag) -> Tensor:
        h = super().instances(bag)
        return (h - h.mean(0)) / (h.std(0) + 1e-3)


class ThreeNeighbours(Sound):
    def instances(self, bag: Bag) -> Tensor:
        h = super().instances(bag)
        if len(h) == 1:
            return h
        near = torch.cdist(h.detach(), h.detach()).topk(3, largest=False).indices  # (N, 3)
        return h[near].mean(1)


class BlocksOfFour(Sound):
    order_matters = True
    gives_instances = False

    def forward(self, bag: Bag) -> Any:
        h = self.instances(bag)
        if len(h) >= 4:
            h = h.view(-1, 4, DIM).mean(1)  # (N/4, E)
        return Aggregated(self.weights(h) @ h)


class PositionTable(Sound):
    order_matters = True

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim)
        self.position = nn.Embedding(1024, DIM)

    def instances(self, bag: Bag) -> Tensor:
        position: Tensor = self.position(torch.arange(len(bag)))
        return super().instances(bag) + position


class SixteenBitCells(Placed):
    """Patches of one (wrapped) cell overwrite each other."""

    def instances(self, bag: Bag) -> Tensor:
        h = super().instances(bag)
        _, owner = torch.unique(self.cells(bag).to(torch.int16), dim=0, return_inverse=True)
        last = torch.zeros(int(owner.max()) + 1, dtype=torch.int64)
        last = last.scatter_reduce(0, owner, torch.arange(len(bag)), "amax")
        return h[last[owner]]


class NaiveSoftmax(Sound):
    def instances(self, bag: Bag) -> Tensor:
        h: Tensor = self.embed(bag.features)
        return h

    def weights(self, instances: Tensor) -> Tensor:
        exponentials = torch.exp(self.score(instances)[:, 0])
        return exponentials / exponentials.sum()


class CentresInPlace(Sound):
    def forward(self, bag: Bag) -> Any:
        bag.features.sub_(bag.features.mean())
        return super().forward(bag)
