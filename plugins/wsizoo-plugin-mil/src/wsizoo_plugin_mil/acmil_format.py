"""Weight format "acmil-official": what ACMIL saves, as one of our models."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from wsizoo import SlideModel
from wsizoo_plugin_mil.acmil import AcmilGA, AcmilMHA
from wsizoo_plugin_mil.renaming import Renaming, told, width

SHARED = {
    "aggregator.embed.0": "dimreduction.fc1",
    "aggregator.branch": "classifier.{}.fc",
    "aggregator.classify": "Slide_classifier.fc",
}
GATED = {"value": "attention_V.0", "gate": "attention_U.0", "score": "attention_weights"}
ASKING = {"query": "q_proj", "key": "k_proj"}
TELLING = {"value": "v_proj", "out": "out_proj", "norm": "layer_norm"}


class ACMILOfficial(Renaming):
    """As https://github.com/dazhangyu123/ACMIL at e53d19c saves it under `model`.

    Of one attention, its files hold a classifier of that branch, which is never used.
    """

    whose, inside = "ACMIL", "model"

    def names(self, model: SlideModel) -> dict[str, str]:
        part = _of(model)
        if not isinstance(part, AcmilMHA):
            return {**SHARED, **gated("aggregator.attention", "attention")}
        found = {**SHARED, "aggregator.tokens": "q"}
        last = len(part.telling) - 1
        for i in range(part.branches):
            theirs = f"sub_attention.{i}"
            found |= {f"aggregator.asking.{i}.{a}": f"{theirs}.{b}" for a, b in ASKING.items()}
            if i < last:
                found |= telling(i, theirs)
        return found | telling(last, "bag_attention")

    def stacks(self, model: SlideModel) -> dict[str, int]:
        return {"aggregator.branch": _of(model).outputs}

    def made_up(self, model: SlideModel) -> dict[str, Tensor]:
        part = _of(model)
        if part.branches > 1:
            return {}
        names = {"aggregator.classify": "classifier.0.fc"}
        if isinstance(part, AcmilMHA):
            names |= telling(0, "sub_attention.0")
        state = model.inference_state()
        return {
            f"{theirs}.{ending}": torch.zeros_like(state[f"{ours}.{ending}"])
            for ours, theirs in names.items()
            for ending in ("weight", "bias")
        }

    def write(self, model: SlideModel) -> dict[str, Tensor]:
        return {n: t[None] if n == "q" else t for n, t in super().write(model).items()}

    def read(self, tensors: Mapping[str, Tensor], model: SlideModel) -> dict[str, Tensor]:
        return super().read({n: t[0] if n == "q" else t for n, t in tensors.items()}, model)

    def overrides(self, tensors: Mapping[str, Tensor]) -> list[str]:
        numbers = [
            m[1] for m in map(re.compile(r"classifier\.(\d+)\.fc\.weight").match, tensors) if m
        ]
        return told(
            encoder__dim=width(tensors, "dimreduction.fc1.weight", 1),
            aggregator__dim=width(tensors, "dimreduction.fc1.weight", 0),
            aggregator__attention=width(tensors, "attention.attention_V.0.weight", 0),
            aggregator__branches=len(numbers) or None,
            aggregator="acmil-mha" if "q" in tensors else "acmil-ga",
        )


def telling(i: int, theirs: str) -> dict[str, str]:
    return {f"aggregator.telling.{i}.{a}": f"{theirs}.{b}" for a, b in TELLING.items()}


def gated(ours: str, theirs: str) -> dict[str, str]:
    """Names of a gated attention network, as ACMIL and DTFD-MIL call its layers."""
    return {f"{ours}.{own}": f"{theirs}.{their}" for own, their in GATED.items()}


def _of(model: SlideModel) -> AcmilGA:
    assert isinstance(model.aggregator, AcmilGA)
    return model.aggregator
