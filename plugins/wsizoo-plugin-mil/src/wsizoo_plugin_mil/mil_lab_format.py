"""Weight format "mil-lab": what MIL-Lab saves of its models, FEATHER's too, as ours.

A method adds its names to `TABLES`; a model of it is one of MIL-Lab's by `aggregator.variant`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from wsizoo import SlideModel
from wsizoo.errors import SpecError
from wsizoo_plugin_mil import ilra_format, wikg_format
from wsizoo_plugin_mil.clam_format import scores
from wsizoo_plugin_mil.dtfd_format import residuals
from wsizoo_plugin_mil.renaming import Renaming, packed_projection, told, width
from wsizoo_plugin_mil.rrt_format import pooling
from wsizoo_plugin_mil.transmil_format import block, ppeg

PREFIX = "model."
HEAD = {"head.linear": "classifier"}
Names = Callable[[SlideModel], Mapping[str, str]]


def embedding(model: SlideModel) -> dict[str, str]:
    """Linear, ReLU and dropout: each third is linear, with us and with them."""
    places = range(0, 3 * 10, 3)
    return {f"aggregator.embed.{i}": f"patch_embed.{i}" for i in places}


def abmil(model: SlideModel) -> dict[str, str]:
    gated = getattr(model.aggregator, "gate", None) is not None
    return {**embedding(model), **scores("aggregator", "global_attn", gated), **HEAD}


def clam(model: SlideModel) -> dict[str, str]:
    gated = "aggregator.attention.gate.weight" in model.inference_state()
    return {
        **embedding(model),
        **scores("aggregator.attention", "global_attn", gated),
        "aggregator.classify": "classifier",
        "aggregator.judge": "instance_classifiers",
    }


def dsmil(model: SlideModel) -> dict[str, str]:
    return {
        **embedding(model),
        "aggregator.instance": "i_classifier.inst_classifier",
        "aggregator.query": "b_classifier.q",
        "aggregator.value": "b_classifier.v.1",
        "aggregator.norm": "b_classifier.norm",
        "aggregator.classify": "classifier",
    }


def transmil(model: SlideModel) -> dict[str, str]:
    count = len(getattr(model.aggregator, "blocks", ()))
    blocks = (block(f"aggregator.blocks.{i}", f"blocks.{i}", "attention") for i in range(count))
    return {
        **embedding(model),
        "aggregator.token": "cls_token",
        **dict(itertools.chain.from_iterable(names.items() for names in blocks)),
        **ppeg("aggregator.positions", "pos_layer"),
        "aggregator.norm": "norm",
        **HEAD,
    }


def dtfd(model: SlideModel) -> dict[str, str]:
    return {
        "aggregator.embed.0": "patch_embed.fc1.0",
        **residuals(model, "patch_embed"),
        **scores("aggregator.attention", "attention", True),
        "aggregator.judge": "classifier.fc",
        **scores("aggregator.attention_of_groups", "attCls.global_attn", True),
        "aggregator.classify": "attCls.classifier.fc",
    }


def transformer(model: SlideModel) -> dict[str, str]:
    names = {**embedding(model), "aggregator.token": "cls_token", "aggregator.norm": "norm", **HEAD}
    for i in range(len(getattr(model.aggregator, "blocks", ()))):
        ours, theirs = f"aggregator.blocks.{i}", f"blocks.{i}"
        names |= {f"{ours}.{n}": f"{theirs}.{n}" for n in ("norm", "norm2", "mlp.0", "mlp.3")}
        names |= {f"{ours}.attention.out": f"{theirs}.attention.out_proj"}
        names |= packed_projection(f"{ours}.attention", f"{theirs}.attention")
    return names


def rrt(model: SlideModel) -> dict[str, str]:
    count = len(getattr(model.aggregator, "layers", ()))
    places = ["layer1", *(f"layers.{i}" for i in range(count - 1))]
    found = {**embedding(model), "aggregator.norm": "encoder.norm", **HEAD}
    for i, place in enumerate(places):
        found |= block(f"aggregator.layers.{i}", f"encoder.{place}", "attn")
    return {**found, **pooling(model, "encoder.pool_fn.attention")}


def ilra(model: SlideModel) -> dict[str, str]:
    return {**ilra_format.layers(model, "multihead_attention"), **HEAD}


def wikg(model: SlideModel) -> dict[str, str]:
    return {**embedding(model), **wikg_format.layers(model), **HEAD}


TABLES: dict[str, Names] = {
    "wikg": wikg,
    "ilra": ilra,
    "rrt": rrt,
    "abmil": abmil,
    "clam-sb": clam,
    "dsmil": dsmil,
    "transmil": transmil,
    "dtfd": dtfd,
    "transformer": transformer,
}
ONLY_MIL_LAB_S = ("abmil", "transformer")  # no variant of another code
STACKS: dict[str, dict[str, int]] = {"clam-sb": {"aggregator.judge": 2}}


def never_read(name: str, model: SlideModel) -> dict[str, Tensor]:
    """What MIL-Lab's models hold beside what they use, by their names without the prefix."""
    if name == "wikg":
        return wikg_format.gates(model)
    if name == "rrt":
        e, prefix = (
            model.inference_state()["aggregator.norm.weight"].shape[0],
            "encoder.pos_embedding",
        )
        sizes = {"proj": 7, "proj1": 5, "proj2": 3}
        found = {f"{prefix}.{n}.weight": torch.zeros(e, 1, k, k) for n, k in sizes.items()}
        return {**found, **{f"{prefix}.{n}.bias": torch.zeros(e) for n in sizes}}
    if name != "dsmil":
        return {}
    e = model.inference_state()["aggregator.instance.weight"].shape[1]
    return {
        "b_classifier.fcc.weight": torch.zeros(3, 3, e),
        "b_classifier.fcc.bias": torch.zeros(3),
    }


class MILLab(Renaming):
    """As https://github.com/mahmoodlab/MIL-Lab at dfc3c17 saves `model.safetensors`.

    All names begin with `model.`. A file without a classifier, as FEATHER is published, is of a
    model with `head=null`.
    """

    whose = "MIL-Lab"

    def names(self, model: SlideModel) -> dict[str, str]:
        table = TABLES[_checked(model)](model)
        return {ours: PREFIX + theirs for ours, theirs in table.items()}

    def stacks(self, model: SlideModel) -> dict[str, int]:
        return STACKS.get(_checked(model), {})

    def made_up(self, model: SlideModel) -> dict[str, Tensor]:
        return {PREFIX + n: t for n, t in never_read(_checked(model), model).items()}

    def overrides(self, tensors: Mapping[str, Tensor]) -> list[str]:
        embed, plain = (f"{PREFIX}{n}.weight" for n in ("patch_embed.0", "global_attn.module.0"))
        gated = f"{PREFIX}global_attn.attention_a.0.weight"
        attention = width(tensors, gated, 0) or width(tensors, plain, 0)
        return [
            *told(
                encoder__dim=width(tensors, embed, 1),
                aggregator__dim=width(tensors, embed, 0),
                aggregator__attention=attention,
                aggregator__gated=gated in tensors if attention else None,
            ),
            *(() if f"{PREFIX}classifier.weight" in tensors else ("head=null",)),
        ]


def _checked(model: SlideModel) -> str:
    """The aggregator's name. Raises SpecError for one that computes something else than MIL-Lab."""
    part = dict(model.spec.aggregator or {})
    name = str(part.get("name"))
    if name not in ONLY_MIL_LAB_S and part.get("variant") != "mil-lab":
        raise SpecError(
            f"'{model.name}' differs from MIL-Lab's {name}, so with the same weights it gives "
            "other numbers. Add aggregator.variant=mil-lab"
        )
    return name
