"""Selectors, heads and encoders that are wrong in one way each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from wsizoo.bag import Bag
from wsizoo.interfaces import Encoder, Selected, Selector
from wsizoo.losses import cross_entropy
from wsizoo.mil.heads import ClassificationHead, SegmentationHead, SurvivalHead


class SoundSelector(Selector):
    """Keeps the better half; in training all patches, each times its gate."""

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim)
        self.score = nn.Linear(in_dim, 1)

    def chosen(self, scores: Tensor) -> Tensor:
        k = max(1, len(scores) // 2)
        return scores.topk(k).indices.sort().values  # (K,)

    def gated(self, bag: Bag, scores: Tensor) -> Bag:
        return bag.replace(features=bag.features * torch.sigmoid(scores)[:, None])

    def forward(self, bag: Bag) -> Selected:
        scores = self.score(bag.features)[:, 0]  # (N,)
        if self.training:
            return Selected(self.gated(bag, scores), None, scores)
        index = self.chosen(scores)
        return Selected(bag.subset(index), index, scores)


class BestFirst(SoundSelector):
    def chosen(self, scores: Tensor) -> Tensor:
        return scores.topk(max(1, len(scores) // 2)).indices


class GatesInEval(SoundSelector):
    def forward(self, bag: Bag) -> Selected:
        selected = super().forward(bag)
        if not self.training:
            assert selected.index is not None and selected.scores is not None
            selected.bag = self.gated(selected.bag, selected.scores[selected.index])
        return selected


class NamesHalfHandsOnAll(SoundSelector):
    def forward(self, bag: Bag) -> Selected:
        selected = super().forward(bag)
        if self.training:
            assert selected.scores is not None
            selected.index = self.chosen(selected.scores)
        return selected


class WeighsInEval(SoundSelector):
    def forward(self, bag: Bag) -> Selected:
        selected = super().forward(bag)
        selected.weights = selected.bag.features.new_ones(len(selected.bag))
        return selected


class UnknownTask(ClassificationHead):
    task = "ranking"  # type: ignore[assignment]


class OnlyProbabilities(ClassificationHead):
    def outputs(self, raw: Tensor) -> dict[str, Tensor]:
        return {"logits": raw.softmax(-1)}


class SurvivalOverFirstDimension(SurvivalHead):
    def outputs(self, raw: Tensor) -> dict[str, Tensor]:
        hazards = torch.sigmoid(raw)
        risk = -torch.cumprod(1 - hazards, dim=0).sum(-1)
        return {"logits": raw, "hazards": hazards, "risk": risk}


class LogOfSoftmax(ClassificationHead):
    def loss(self, raw: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        super().loss(raw, targets)
        rows = torch.arange(len(raw))
        return -torch.log(torch.softmax(raw, -1))[rows, targets["label"]].mean()


class SumsOverRows(ClassificationHead):
    def loss(self, raw: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        return super().loss(raw, targets) * len(raw)


class LabelsFromOne(ClassificationHead):
    def loss(self, raw: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        label = targets.get("label")
        shifted = {} if label is None else {"label": (label + 1) % self.n_outputs}
        return super().loss(raw, shifted)


class SurvivalAsRisk(SurvivalHead):
    def outputs(self, raw: Tensor) -> dict[str, Tensor]:
        outputs = super().outputs(raw)
        return {**outputs, "risk": -outputs["risk"]}


class DefaultLabel(ClassificationHead):
    def loss(self, raw: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        return super().loss(raw, {"label": targets.get("label", torch.zeros(len(raw)))})


class UnknownIsFirstClass(SegmentationHead):
    def loss(self, raw: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        super().loss(raw, targets)
        return cross_entropy(raw, targets["instances"].clamp(min=0))


class InsistsOnClassifier(ClassificationHead):
    def __init__(self, in_dim: int | None, classes: Sequence[str]) -> None:
        super().__init__(in_dim or 1, classes)


class SoundEncoder(Encoder):
    """Mean colour and its contrast, as eight numbers."""

    name = "museum"
    dim = 8
    mpp = 0.5
    patch_size = 16
    preprocessing = "uint8 / 255"
    revision = "v1"

    def pixels(self, patches: Tensor) -> Tensor:
        return patches.float() / 255  # (B, 3, H, W)

    def describe(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3))  # (B, 3)
        spread = (x - means[:, :, None, None]).square().mean((2, 3))  # (B, 3)
        extremes = torch.stack([x.amax((1, 2, 3)), x.amin((1, 2, 3))], 1)  # (B, 2)
        return torch.cat([means, spread, extremes], 1)  # (B, 8)

    def forward(self, patches: Tensor) -> Tensor:
        return self.describe(self.pixels(patches))


class MagnificationAsScale(SoundEncoder):
    mpp = 40.0


class DoublePrecision(SoundEncoder):
    def forward(self, patches: Tensor) -> Tensor:
        return super().forward(patches).double()


class NormalisesOverBatch(SoundEncoder):
    def describe(self, x: Tensor) -> Tensor:
        features = super().describe(x)
        return features - features.mean(0)


class InvertsInPlace(SoundEncoder):
    def pixels(self, patches: Tensor) -> Tensor:
        return super().pixels(patches.bitwise_not_())


class WantsContiguous(SoundEncoder):
    def pixels(self, patches: Tensor) -> Tensor:
        return super().pixels(patches.view(len(patches), -1).view(patches.shape))


class DividesByContrast(SoundEncoder):
    def describe(self, x: Tensor) -> Tensor:
        return super().describe((x - x.mean()) / x.std((1, 2, 3), keepdim=True))


class Greyscale(SoundEncoder):
    def pixels(self, patches: Tensor) -> Tensor:
        return super().pixels(patches).mean(1, keepdim=True).expand(-1, 3, -1, -1)


class AnonymousWeights(SoundEncoder):
    revision = None  # type: ignore[assignment]
