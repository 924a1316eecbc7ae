"""Weight format "dtfd-official": what DTFD-MIL saves, as one of our models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wsizoo import SlideModel
from wsizoo_plugin_mil.acmil_format import gated
from wsizoo_plugin_mil.renaming import Renaming, told, width

PARALLEL = re.compile(r"^(classifier|dim_reduction|attention|att_classifier)\.module\.")


class DTFDOfficial(Renaming):
    """As https://github.com/hrzhang1123/DTFD-MIL at 10964f4 saves its four parts.

    DataParallel's prefix may stand in each of them.
    """

    whose = "DTFD-MIL"

    def names(self, model: SlideModel) -> dict[str, str]:
        return {
            "aggregator.embed.0": "dim_reduction.fc1",
            **residuals(model, "dim_reduction"),
            **gated("aggregator.attention", "attention"),
            "aggregator.judge": "classifier.fc",
            **gated("aggregator.attention_of_groups", "att_classifier.attention"),
            "aggregator.classify": "att_classifier.classifier.fc",
        }

    def up_to_date(self, tensors: Mapping[str, Tensor], model: SlideModel) -> dict[str, Tensor]:
        return {PARALLEL.sub(r"\1.", name): tensor for name, tensor in tensors.items()}

    def container(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, own = name.partition(".")
            parts.setdefault(part, {})[own] = tensor
        return parts

    def overrides(self, tensors: Mapping[str, Tensor]) -> list[str]:
        return told(
            encoder__dim=width(tensors, "dim_reduction.fc1.weight", 1),
            aggregator__dim=width(tensors, "dim_reduction.fc1.weight", 0),
            aggregator__attention=width(tensors, "attention.attention_V.0.weight", 0),
            aggregator__residuals=sum(name.endswith("block.0.weight") for name in tensors),
        )


def residuals(model: SlideModel, theirs: str) -> dict[str, str]:
    """Names of the residual blocks, as DTFD-MIL and MIL-Lab call their layers."""
    layers = {"first": "block.0", "second": "block.2"}
    return {
        f"aggregator.blocks.{i}.{own}": f"{theirs}.resBlocks.{i}.{their}"
        for i in range(len(getattr(model.aggregator, "blocks", ())))
        for own, their in layers.items()
    }
