"""Weight format "longmil-v1-official": a published state dict of LongMIL as one of our models."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from wsizoo import SlideModel, WeightLayout
from wsizoo.errors import SpecError

NAMES = (  # of ours, and what the published code calls it
    (r"aggregator\.embed\.", "_fc1.0."),
    (r"aggregator\.layers\.0\.", "layer1."),
    (r"aggregator\.layers\.1\.", "layer2."),
    (r"aggregator\.layers\.2\.", "layer3."),
    (r"aggregator\.norm\.", "norm."),
    (r"head\.linear\.", "_fc2."),
)
PARTS = (
    (r"\.norm1\.", ".norm."),
    (r"\.(qkv|proj)\.", r".attn.\1."),
    (r"\.(fc[12])\.", r".mlp.\1."),
)


def published_name(ours: str) -> str:
    """What the published code calls a tensor of `SlideModel.inference_state()`."""
    for pattern, theirs in (*NAMES, *PARTS):
        ours = re.sub(pattern, theirs, ours)
    return ours


class LongMILOfficial(WeightLayout):
    """As https://github.com/invoker-LL/Long-MIL at 457b1cf saves it, with a linear classifier."""

    def write(self, model: SlideModel) -> dict[str, Tensor]:
        return {published_name(name): tensor for name, tensor in _state(model).items()}

    def read(self, tensors: Mapping[str, Tensor], model: SlideModel) -> dict[str, Tensor]:
        return {name: tensors[published_name(name)] for name in _state(model)}

    def overrides(self, tensors: Mapping[str, Tensor]) -> list[str]:
        told, first, last = [], tensors.get("_fc1.0.weight"), tensors.get("_fc2.weight")
        if first is not None and first.ndim == 2:
            told += [f"encoder.dim={first.shape[1]}", f"aggregator.dim={first.shape[0]}"]
        if last is not None and last.ndim == 2:
            told.append(f"head.classes of {len(last)} names")
        return told


def _state(model: SlideModel) -> dict[str, Tensor]:
    """The model's tensors. Raises SpecError for a model that the published code does not have."""
    task = model.head.task if model.head else None
    if task != "classification":
        has = "no head" if task is None else f"a {task} head"
        raise SpecError(
            f"published LongMIL weights have a classification head; '{model.name}' has {has}"
        )
    return model.inference_state()
