"""Readers of the parity cases of the noise gate, the denoiser, the training path, the schedule."""

from __future__ import annotations

import torch
from wsizoo_plugin_sparselearn.denoiser import Denoiser
from wsizoo_plugin_sparselearn.noise_gate import NoiseGate
from wsizoo_plugin_sparselearn.selector import SparseLearn

from wsizoo import Bag
from wsizoo.selection import annealed, given_gates


def read_gate(case):
    """Slide by slide; rows of padding are left out, and are 0."""
    inputs = case.inputs()
    x, gates = inputs["x"].requires_grad_(), inputs["gates"].requires_grad_()
    masks = inputs.get("mask", torch.ones_like(gates)).bool()
    gate = NoiseGate(x.shape[-1], case.config["stats"])
    y = torch.zeros_like(x)
    for slide, mask in enumerate(masks):
        rows = gate(x[slide][mask], given_gates(gates[slide][mask]), inputs["noise"][slide][mask])
        y = y.index_put((torch.tensor(slide), mask.nonzero()[:, 0]), rows)
    (y * inputs["cotangent"]).sum().backward()
    return {"out.y": y, "grad.x": x.grad, "grad.gates": gates.grad}


def read_denoiser(case):
    config, inputs = case.config, case.inputs()
    block = Denoiser(config["d_model"], config["dim_feedforward"])
    block.load_state_dict(case.weights())
    x = inputs["x"].requires_grad_()
    y = block(x)
    (y * inputs["cotangent"]).sum().backward()
    jacobian = torch.autograd.functional.jacobian(block, x[0].detach())
    return {"out.y": y, "out.jacobian": jacobian, "grad.x": x.grad, **slopes(block)}


def slopes(block):
    """Gradients under the names of torch's layer, whose queries and keys have none."""
    found = {f"grad.{name}": p.grad for name, p in block.named_parameters()}
    for name in ("weight", "bias"):
        values = found.pop(f"grad.self_attn.value.{name}")
        none = torch.zeros_like(values)
        found[f"grad.self_attn.in_proj_{name}"] = torch.cat([none, none, values])
    return found


class Replayed(SparseLearn):
    """Scores and noise are given."""

    given: tuple[torch.Tensor, torch.Tensor]

    def score(self, bag):
        return self.given[0]

    def noise(self, x, generator):
        return self.given[1]


def read_train_path(case):
    config, inputs = case.config, case.inputs()
    selector = Replayed(
        config["d_model"],
        config["k"],
        form=config["function"],
        standardise=config["zscore"],
        stats=config["stats"],
        feedforward=config["dim_feedforward"],
    )
    selector.denoiser.load_state_dict(case.weights())
    x, scores = inputs["x"].requires_grad_(), inputs["scores"].requires_grad_()
    rows, gates = [], []
    for slide in range(len(x)):
        selector.given = scores[slide], inputs["noise"][slide]
        found = selector.soft(Bag(x[slide]), temperature=config["temperature"])
        rows.append(found.bag.features)
        gates.append(found.scores)
    y = torch.stack(rows)
    (y * inputs["cotangent"]).sum().backward()
    slope = {"grad.x": x.grad, "grad.scores": scores.grad, **slopes(selector.denoiser)}
    return {"out.gates": torch.stack(gates), "out.y": y, **slope}


def read_schedule(case):
    config = case.config
    steps = case.inputs()["step"].tolist()
    ends = config["start"], config["end"], config["steps"]
    return {"out.tau": torch.tensor([annealed(step, *ends) for step in steps])}


READERS = {
    "vpgate": read_gate,
    "denoiser": read_denoiser,
    "trainpath": read_train_path,
    "tau_schedule": read_schedule,
}
