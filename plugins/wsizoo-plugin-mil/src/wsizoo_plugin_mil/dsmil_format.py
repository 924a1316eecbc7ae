"""Weight format "dsmil-official": what DSMIL saves, as one of our models."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from wsizoo import SlideModel
from wsizoo.errors import StrictnessError
from wsizoo_plugin_mil.renaming import Renaming, told, width

FIRST = "i_classifier.fc.weight", "i_classifier.fc.bias"  # as the end-to-end tests rename it
STARTS = "b_classifier.q.", "b_classifier.v."


class DSMILOfficial(Renaming):
    """As https://github.com/binli123/dsmil-wsi at 80465ed saves it."""

    whose = "DSMIL"

    def names(self, model: SlideModel) -> dict[str, str]:
        query = "aggregator.query"
        return {
            "aggregator.instance": "i_classifier.fc.0",
            **{f"{query}.{i}": f"b_classifier.q.{i}" for i in (0, 2)},
            query: "b_classifier.q",
            "aggregator.value": "b_classifier.v.1",
            "aggregator.classify": "b_classifier.fcc",
        }

    def up_to_date(self, tensors: Mapping[str, Tensor], model: SlideModel) -> dict[str, Tensor]:
        renamed = {
            name: name.replace(".fc.", ".fc.0.") if name in FIRST else name for name in tensors
        }
        if tensors and all(name.startswith(STARTS) for name in tensors):
            raise StrictnessError(
                "This file has DSMIL's queries and values and no classifier: it is what training "
                "starts from (init.pth), no trained model. Give a trained one, such as "
                "c16_aggregator.pth with -m dsmil-simclr-c16"
            )
        return {renamed[name]: tensor for name, tensor in tensors.items()}

    def overrides(self, tensors: Mapping[str, Tensor]) -> list[str]:
        linear = "b_classifier.q.weight" in tensors
        query = f"b_classifier.q{'' if linear else '.0'}.weight"
        return told(
            encoder__dim=width(tensors, query, 1),
            aggregator__query=width(tensors, query, 0),
            aggregator__nonlinear=not linear if query in tensors else None,
            aggregator__passing_v="b_classifier.v.1.weight" in tensors,
        )
