"""Weight format "wikg-official": what WiKG saves, as one of our models."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from wsizoo import SlideModel
from wsizoo_plugin_mil.renaming import Renaming, told, width


class WiKGOfficial(Renaming):
    """As https://github.com/WonderLandxD/WiKG at eb3144f saves it."""

    whose = "WiKG"

    def names(self, model: SlideModel) -> dict[str, str]:
        return {"aggregator.embed.0": "_fc1.0", **layers(model), "head.linear": "fc"}

    def made_up(self, model: SlideModel) -> dict[str, Tensor]:
        return gates(model)

    def overrides(self, tensors: Mapping[str, Tensor]) -> list[str]:
        mix = {"linear1.weight": "bi-interaction", "linear.weight": "gcn"}
        found = next((mix[name] for name in mix if name in tensors), None)
        dim = width(tensors, "_fc1.0.weight", 0)
        if found == "gcn" and width(tensors, "linear.weight", 1) != dim:
            found = "sage"
        return told(
            encoder__dim=width(tensors, "_fc1.0.weight", 1),
            aggregator__dim=dim,
            aggregator__mix=found,
            aggregator__pool="attention" if "readout.gate_nn.0.weight" in tensors else None,
        )


def layers(model: SlideModel) -> dict[str, str]:
    """Names of all but the embedding and the classifier, also with MIL-Lab."""
    two = "aggregator.mixes.1.weight" in model.inference_state()
    mixes = ("linear1", "linear2") if two else ("linear",)
    return {
        "aggregator.head": "W_head",
        "aggregator.tail": "W_tail",
        **{f"aggregator.mixes.{i}": name for i, name in enumerate(mixes)},
        **{f"aggregator.attention.{i}": f"readout.gate_nn.{i}" for i in (0, 2)},
        "aggregator.norm": "norm",
    }


def gates(model: SlideModel) -> dict[str, Tensor]:
    """Layers that the published code has and never uses, also with MIL-Lab."""
    e = len(model.inference_state()["aggregator.norm.weight"])
    shapes = {"gate_U": (e // 2, e), "gate_V": (e // 2, e), "gate_W": (e, e // 2)}
    return {
        **{f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()},
        **{f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()},
    }
