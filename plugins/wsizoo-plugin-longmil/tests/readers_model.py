"""Readers of the parity cases of whole models: what they give on the way, and all gradients."""

from __future__ import annotations

import torch
from torch import nn
from wsizoo_plugin_longmil.model import LongMIL
from wsizoo_plugin_longmil.official_format import published_name
from wsizoo_plugin_longmil.places import place
from wsizoo_plugin_longmil.v1 import LongMILV1

from wsizoo import Bag
from wsizoo.errors import DataError

SPACING = 224  # level-0 px; places of version 2 are given in patches


def head_of(tensors, prefix):
    """A linear head of these tensors, which are taken out."""
    weight = tensors.pop(f"{prefix}.weight")
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight, "bias": tensors.pop(f"{prefix}.bias")})
    return head


def listen(module, found, name, before=False):
    """Write what this module gives (or is given) into `found`."""
    if before:
        module.register_forward_pre_hook(lambda _, given: found.update({name: given[0]}))
    else:
        module.register_forward_hook(lambda _, given, out: found.update({name: out[0]}))


def gradients(features, module, head, names):
    """names: of a parameter, which is `aggregator.*` or `head.linear.*`, to the case's name."""
    parameters = {f"aggregator.{name}": p for name, p in module.named_parameters()}
    parameters |= {f"head.linear.{name}": p for name, p in head.named_parameters()}
    found = {f"grad.{names(name)}": p.grad for name, p in parameters.items()}
    return {**found, "grad.features": features.grad}


def read_v1(case):
    config, inputs, tensors = case.config, case.inputs(), case.weights()
    head = head_of(tensors, "_fc2")
    module = LongMILV1(
        config["input_size"], config["feat_size"], config["n_heads"], config["positional"]
    ).eval()
    ours = {name: tensors.pop(published_name(f"aggregator.{name}")) for name in module.state_dict()}
    assert not tensors
    module.load_state_dict(ours, strict=True)
    features = inputs["features"].requires_grad_()
    bag = Bag(features, inputs["coords"].round().long())
    assert torch.equal(module.cells_of(bag), inputs["cells"])
    found = {}
    for i, layer in enumerate(module.layers):
        listen(layer, found, f"out.layer{i + 1}")
    slide = module(bag).slide[None]  # (1, E)
    logits = head(slide)
    (logits * inputs["cotangent"]).sum().backward()
    found |= {"out.logits": logits, "out.prob": logits.softmax(1), "out.y_hat": logits.argmax(1)}
    return {**found, "out.pooled": slide, **gradients(features, module, head, published_name)}


def read_v2(case):
    config, inputs = case.config, case.inputs()
    tensors = weights_of(case)
    head = head_of(tensors, "head")
    names = {"none": "none", "alibi": "alibi", "rope": "rope", "alibi rope": "both"}
    module = LongMIL(
        config["input_size"],
        dim=config["dim"],
        heads=config["n_heads"],
        local_blocks=config["n_local"],
        radius=config["radius"],
        local_position=names[config["local_position"]],
        global_position=names[config["global_position"]],
        mlp_ratio=config["mlp_ratio"],
    ).eval()
    module.load_state_dict(tensors, strict=True)
    features = inputs["features"].requires_grad_()
    bag = Bag(features, inputs["coords"] * SPACING, spacing=float(SPACING))
    found = {}
    for i, layer in enumerate(module.local):
        listen(layer, found, f"out.local{i + 1}")
    listen(module.glob, found, "out.pooled_tokens", before=True)
    listen(module.glob, found, "out.global")
    slide = module(bag).slide[None]
    logits = head(slide)
    (logits * inputs["cotangent"]).sum().backward()
    coarse = place([bag]).pooled()
    found |= {"out.logits": logits, "out.bag": slide}
    found |= {"out.pooled_cells": coarse.cells, "out.pooled_counts": coarse.counts}
    return {**found, **gradients(features, module, head, own_name)}


def own_name(name):
    """Of version 2's cases, whose names of tensors are those of the aggregator."""
    return name.removeprefix("aggregator.").replace("head.linear.", "head.")


def weights_of(case):
    """Those in the case's folder; drawn where there is no such file and its config states a seed.

    A file that is there and empty, or a case with neither, is an error and nothing is drawn.
    """
    if (case.path / "weights.safetensors").exists():
        tensors = case.weights()
        if not tensors:
            raise DataError(f"{case.name}: its weights.safetensors holds no tensors")
        return tensors
    if "seed" not in case.config:
        raise DataError(
            f"{case.name} has no weights.safetensors, and its config no seed to draw by"
        )
    return drawn(case.config)


def drawn(config):
    """The weights that the reference of version 2 drew from a case's seed.

    Layers in order, as torch begins them; then, tensor by tensor, norms around one, biases around
    nothing, and qkv 2.5 times as large, so that no softmax is flat.

    The cases do not state this recipe. It shows in the weights that the cases of version 1 keep
    (qkv up to 2.5 times torch's bound, all others up to it; norms around one and biases around
    nothing, with deviations of 0.2 and 0.1), and it is the right one: by it all outputs and
    gradients of version 2's cases agree, by another order of drawing none would.
    """
    dim, hidden = config["dim"], int(config["dim"] * config["mlp_ratio"])

    def block():
        parts = {"norm1": nn.LayerNorm(dim), "qkv": nn.Linear(dim, 3 * dim, bias=False)}
        parts["proj"] = nn.Linear(dim, dim)
        if hidden:
            parts |= {"norm2": nn.LayerNorm(dim), "fc1": nn.Linear(dim, hidden)}
            parts["fc2"] = nn.Linear(hidden, dim)
        return nn.ModuleDict(parts)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        parts = {"embed": nn.Linear(config["input_size"], dim)}
        parts["local"] = nn.ModuleList(block() for _ in range(config["n_local"]))
        parts |= {"glob": block(), "norm": nn.LayerNorm(dim)}
        model = nn.ModuleDict({**parts, "head": nn.Linear(dim, config["n_classes"])})
        tensors = model.state_dict()
        for name, tensor in tensors.items():
            if tensor.ndim == 1:
                noise = torch.randn_like(tensor)
                norm = "norm" in name and name.endswith("weight")
                tensor.copy_(1 + 0.2 * noise if norm else 0.1 * noise)
            elif "qkv" in name:
                tensor.mul_(2.5)
    return dict(tensors)


READERS = {"v1": read_v1, "v2": read_v2}
