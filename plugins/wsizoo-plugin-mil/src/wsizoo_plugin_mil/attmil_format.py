"""Weight format "attmil": what marugoto (STAMP 1) saves of its attMIL, as one of our models."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from wsizoo import SlideModel
from wsizoo_plugin_mil.renaming import Renaming, told, width


class AttMILOfficial(Renaming):
    """As the model of https://github.com/KatherLab/marugoto at e05ab1a names its tensors.

    Its `export.pkl` is a pickle of code and is not read: save `learner.model.state_dict()`.
    """

    whose = "attMIL"

    def names(self, model: SlideModel) -> dict[str, str]:
        return {
            "aggregator.embed.0": "encoder.0",
            "aggregator.attention.value": "attention.0",
            "aggregator.attention.score": "attention.2",
            "aggregator.norm": "head.1",
            "head.linear": "head.3",
        }

    def overrides(self, tensors: Mapping[str, Tensor]) -> list[str]:
        return told(
            encoder__dim=width(tensors, "encoder.0.weight", 1),
            aggregator__dim=width(tensors, "encoder.0.weight", 0),
            aggregator__attention=width(tensors, "attention.0.weight", 0),
        )
