"""Weight format "mhim-official": what MHIM-MIL saves of its student, as one of our models."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from wsizoo import SlideModel
from wsizoo_plugin_mil.mhim import MhimABMIL, MhimDSMIL, MhimTransMIL
from wsizoo_plugin_mil.renaming import Renaming, told, width
from wsizoo_plugin_mil.transmil_format import block, ppeg

OURS = "aggregator.student.encoder"
THEIRS = "online_encoder"
EMBEDDING = {"v1": "patch_to_emb.0", "v2": "feature.0"}
DSMIL = {
    "instance": "i_classifier.0",
    "query.0": "b_classifier.q.0",
    "query.2": "b_classifier.q.2",
    "value": "b_classifier.v.1",
    "classify": "b_classifier.fcc",
}
QUERIES = "merge.global_q"  # it stands in the file twice
AGAIN = "merge.global_q_mm"


class MHIMOfficial(Renaming):
    """As https://github.com/DearCaat/MHIM-MIL at 5377eb6 (v1) and 9d0c91a (v2) saves `model`."""

    whose, inside = "MHIM-MIL", "model"

    def names(self, model: SlideModel) -> dict[str, str]:
        part = _of(model)
        return {
            "aggregator.student.embed.0": EMBEDDING[part.version],
            **encoder(part),
            "aggregator.merging.norm": "merge.norm",
            "aggregator.merging.to_q": "merge.attn.to_q",
            "aggregator.merging.to_kv": "merge.attn.to_kv",
            "aggregator.merging.out": "merge.attn.to_out.0",
            "aggregator.merging.queries": QUERIES,
            f"{OURS}.classify": "predictor",
        }

    def made_up(self, model: SlideModel) -> dict[str, Tensor]:
        part = _of(model)
        if not isinstance(part, MhimDSMIL):
            return {}
        c, e = model.inference_state()[f"{OURS}.dsmil.instance.weight"].shape
        return {"predictor.weight": torch.zeros(c, e), "predictor.bias": torch.zeros(c)}

    def write(self, model: SlideModel) -> dict[str, Tensor]:
        found = super().write(model)
        return {**found, AGAIN: found[QUERIES]} if QUERIES in found else found

    def overrides(self, tensors: Mapping[str, Tensor]) -> list[str]:
        old = f"{EMBEDDING['v1']}.weight" in tensors
        first = f"{EMBEDDING['v1' if old else 'v2']}.weight"
        queries = tensors.get(QUERIES)
        token, instance = f"{THEIRS}.cls_token", f"{THEIRS}.i_classifier.0.weight"
        kind = "transmil" if token in tensors else "dsmil" if instance in tensors else "abmil"
        return told(
            encoder__dim=width(tensors, first, 1),
            aggregator__dim=width(tensors, first, 0),
            aggregator__version="v1" if old else "v2",
            aggregator__queries=0 if queries is None else queries.shape[1],
            aggregator=f"mhim-{kind}",
        )


def encoder(part: MhimABMIL) -> dict[str, str]:
    if isinstance(part, MhimDSMIL):
        return {f"{OURS}.dsmil.{own}": f"{THEIRS}.{their}" for own, their in DSMIL.items()}
    if isinstance(part, MhimTransMIL):
        return {
            f"{OURS}.token": f"{THEIRS}.cls_token",
            **block(f"{OURS}.blocks.0", f"{THEIRS}.layer1", "attn"),
            **block(f"{OURS}.blocks.1", f"{THEIRS}.layer2", "attn"),
            **ppeg(f"{OURS}.positions", f"{THEIRS}.pos_embedding"),
            f"{OURS}.norm": f"{THEIRS}.norm",
        }
    layers = {"value": "0", "score": "2"}
    return {f"{OURS}.scores.{a}": f"{THEIRS}.attention.attention.{b}" for a, b in layers.items()}


def _of(model: SlideModel) -> MhimABMIL:
    assert isinstance(model.aggregator, MhimABMIL)
    return model.aggregator
