"""Weight format "transmil-official": what TransMIL saves, as one of our models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wsizoo import SlideModel
from wsizoo_plugin_mil.renaming import Renaming, told, width


class TransMILOfficial(Renaming):
    """As https://github.com/szc19990412/TransMIL at 9d6aee5 saves it (`state_dict`, `model.`)."""

    whose, inside = "TransMIL", "state_dict"

    def container(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        return super().container({f"model.{name}": tensor for name, tensor in tensors.items()})

    def names(self, model: SlideModel) -> dict[str, str]:
        return {
            "aggregator.embed.0": "_fc1.0",
            "aggregator.token": "cls_token",
            **block("aggregator.blocks.0", "layer1", "attn"),
            **block("aggregator.blocks.1", "layer2", "attn"),
            **ppeg("aggregator.positions", "pos_layer"),
            "aggregator.norm": "norm",
            "head.linear": "_fc2",
        }

    def overrides(self, tensors: Mapping[str, Tensor]) -> list[str]:
        return told(
            encoder__dim=width(tensors, "_fc1.0.weight", 1),
            aggregator__dim=width(tensors, "_fc1.0.weight", 0),
            aggregator__heads=width(tensors, "layer1.attn.res_conv.weight", 0),
        )


def block(ours: str, theirs: str, attention: str) -> dict[str, str]:
    """Names of a layer of Nystrom attention and its norm."""
    layers = {"qkv": "to_qkv", "out": "to_out.0", "conv": "res_conv"}
    parts = {f"attention.{own}": f"{attention}.{their}" for own, their in layers.items()}
    return {
        f"{ours}.{own}": f"{theirs}.{their}" for own, their in {"norm": "norm", **parts}.items()
    }


def ppeg(ours: str, theirs: str) -> dict[str, str]:
    layers = {"conv7": "proj", "conv5": "proj1", "conv3": "proj2"}
    return {f"{ours}.{own}": f"{theirs}.{their}" for own, their in layers.items()}
