"""Weight format "rrt-official": what RRT-MIL saves, as one of our models."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from wsizoo import SlideModel
from wsizoo.errors import SpecError
from wsizoo_plugin_mil.clam_format import scores
from wsizoo_plugin_mil.region_attention import WithinRegions
from wsizoo_plugin_mil.renaming import Renaming, told, width
from wsizoo_plugin_mil.rrt import RRT

ENCODER, EPEG = "online_encoder", "online_encoder.layers.0.attn.attn.pe.weight"


class RRTOfficial(Renaming):
    """As https://github.com/DearCaat/RRT-MIL at 7ecbdfb saves it (`model` of a checkpoint).

    EPEG's biases change nothing and are no part of our model.
    """

    whose, inside = "RRT-MIL", "model"

    def names(self, model: SlideModel) -> dict[str, str]:
        aggregator = _of(model)
        last = len(aggregator.layers) - 1
        found = {"aggregator.embed.0": "patch_to_emb.0", "head.linear": "predictor"}
        for i in range(last + 1):
            their = f"{ENCODER}.cr_msa" if i == last else f"{ENCODER}.layers.{i}"
            found |= {
                f"aggregator.layers.{i}.{own}": f"{their}.{name}" for own, name in LAYER.items()
            }
        across, phi = f"aggregator.layers.{last}.attention", f"{ENCODER}.cr_msa.attn.phi"
        found |= {f"{across}.slots.{i}": f"{phi}.{i}" for i in (0, 2)}
        found |= {f"{across}.phi": phi, "aggregator.norm": f"{ENCODER}.norm"}
        return {**found, **pooling(model, "pool_fn.attention")}

    def made_up(self, model: SlideModel) -> dict[str, Tensor]:
        return {
            f"{ENCODER}.layers.{i}.attn.attn.pe.bias": torch.zeros(layer.attention.attention.heads)
            for i, layer in enumerate(_of(model).layers)
            if isinstance(layer.attention, WithinRegions)
            and layer.attention.attention.epeg is not None
        }

    def overrides(self, tensors: Mapping[str, Tensor]) -> list[str]:
        pool, phi = "pool_fn.attention.attention", f"{ENCODER}.cr_msa.attn.phi"
        told_by_names = {
            "slot_mlp": f"{phi}.2.weight" in tensors,
            "ffn": f"{ENCODER}.cr_msa.mlp.fc1.weight" in tensors,
            "gated": f"{pool}_a.0.weight" in tensors,
            "bias": f"{pool}_a.0.bias" in tensors or f"{pool}.0.bias" in tensors,
        }
        found = told(
            encoder__dim=width(tensors, "patch_to_emb.0.weight", 1),
            aggregator__dim=width(tensors, "patch_to_emb.0.weight", 0),
            aggregator__heads=width(tensors, EPEG, 0),
            aggregator__epeg=width(tensors, EPEG, 2),
            aggregator__slots=width(tensors, f"{phi}.2.weight", 0) or width(tensors, phi, 1),
        )
        return found + told(**{f"aggregator__{k}": v for k, v in told_by_names.items()})


LAYER = {
    "norm": "norm",
    "norm2": "norm2",
    "mlp.0": "mlp.fc1",
    "mlp.3": "mlp.fc2",
    "attention.attention.qkv": "attn.attn.qkv",
    "attention.attention.out": "attn.attn.proj",
    "attention.attention.epeg": "attn.attn.pe",
}


def pooling(model: SlideModel, theirs: str) -> dict[str, str]:
    """Names of attention pooling, with RRT and in MIL-Lab's RRT."""
    if "aggregator.attention.gate.weight" in model.inference_state():
        return scores("aggregator.attention", theirs, True)
    layers = {"value": "0", "score": "2"}
    return {f"aggregator.attention.{n}": f"{theirs}.attention.{i}" for n, i in layers.items()}


def _of(model: SlideModel) -> RRT:
    if not isinstance(model.aggregator, RRT) or model.aggregator.lab:
        raise SpecError(
            f"'{model.name}' is not the authors' RRT. Add aggregator.variant=rrt, or take the "
            "format mil-lab"
        )
    return model.aggregator
