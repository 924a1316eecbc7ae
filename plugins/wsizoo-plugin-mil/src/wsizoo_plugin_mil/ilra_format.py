"""Weight format "ilra-official": what ILRA saves, as one of our models."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from wsizoo import SlideModel
from wsizoo_plugin_mil.renaming import Renaming, packed_projection, told, width

FIRST = "gab_blocks.0.project_forward"


class ILRAOfficial(Renaming):
    """As https://github.com/jinxixiang/low_rank_wsi at bb45b9b saves it."""

    whose = "ILRA"

    def names(self, model: SlideModel) -> dict[str, str]:
        return {**layers(model, "multihead_attn"), "head.linear": "classifier"}

    def overrides(self, tensors: Mapping[str, Tensor]) -> list[str]:
        known = f"{FIRST}.fc_k.weight" in tensors
        return told(
            encoder__dim=width(tensors, f"{FIRST}.fc_k.weight", 1),
            aggregator__dim=width(tensors, f"{FIRST}.fc_k.weight", 0),
            aggregator__rank=width(tensors, "gab_blocks.0.latent", 1),
            aggregator__norm=f"{FIRST}.ln0.weight" in tensors if known else None,
        )


def layers(model: SlideModel, attention: str) -> dict[str, str]:
    """Names of all but the classifier; MIL-Lab calls torch's attention by another name."""
    found = {"aggregator.query": "pooling.S", **one("aggregator.pool", "pooling.mha", attention)}
    for i in range(len(getattr(model.aggregator, "layers", ()))):
        ours, theirs = f"aggregator.layers.{i}", f"gab_blocks.{i}"
        found[f"{ours}.latent"] = f"{theirs}.latent"
        found |= one(f"{ours}.collect", f"{theirs}.project_forward", attention)
        found |= one(f"{ours}.spread", f"{theirs}.project_backward", attention)
    return found


def one(ours: str, theirs: str, attention: str) -> dict[str, str]:
    """Names of one attention."""
    parts = {
        **{"query": "fc_q", "key": "fc_k", "value": "fc_v", "over": "fc_o"},
        **{"norm0": "ln0", "norm1": "ln1", "gate": "gate.0"},
        "attention.out": f"{attention}.out_proj",
    }
    return {
        **{f"{ours}.{own}": f"{theirs}.{their}" for own, their in parts.items()},
        **packed_projection(f"{ours}.attention", f"{theirs}.{attention}"),
    }
