"""A toy's authors and their layout of weights, a registry that knows both; for tests."""

import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import wsizoo
from wsizoo.model import SlideModel
from wsizoo.plugins import discover
from wsizoo.registry import Entry, Registry
from wsizoo.weight_formats import WeightLayout

TOY = {
    "summary": "a toy",
    "licence": "MIT",
    "source": "a test",
    "encoder": {"name": "made-up", "dim": 8, "mpp": 0.5},
    "aggregator": {"name": "abmil", "dim": 6, "attention": 4},
    "head": {"name": "classification", "classes": ["normal", "tumour"]},
}
NAMES = {
    "attention_V": "aggregator.value",
    "attention_U": "aggregator.gate",
    "attention_w": "aggregator.score",
    "classifier": "head.linear",
}


class Toy(WeightLayout):
    """Other names, one matrix transposed, one vector twice, a constant, and a leftover."""

    def write(self, model: SlideModel) -> dict[str, Tensor]:
        state = model.inference_state()
        found = {f"{t}.{kind}": state[name] for t, kind, name in _renamed(state)}
        found["fc.kernel"] = state["aggregator.embed.0.weight"].T
        found["fc.bias"] = found["fc.shift"] = state["aggregator.embed.0.bias"]
        found["temperature"] = torch.tensor(2.0)
        found["loss.weight"] = torch.zeros(3)
        return found

    def read(self, tensors: Mapping[str, Tensor], model: SlideModel) -> dict[str, Tensor]:
        state = model.inference_state()
        found = {name: tensors[f"{t}.{kind}"] for t, kind, name in _renamed(state)}
        found["aggregator.embed.0.weight"] = tensors["fc.kernel"].T
        found["aggregator.embed.0.bias"] = tensors["fc.bias"]
        return found

    def unused(self, model: SlideModel) -> list[str]:
        return ["loss.weight"]

    def overrides(self, tensors: Mapping[str, Tensor]) -> list[str]:
        told = [f"aggregator.gated={str('attention_U.bias' in tensors).lower()}"]
        return told + [f"aggregator.dim={len(t)}" for k, t in tensors.items() if k == "fc.bias"]


def _renamed(state: Mapping[str, Tensor]) -> list[tuple[str, str, str]]:
    """Their stem, weight or bias, and our name of what is only called otherwise."""
    pairs = [
        (t, kind, f"{ours}.{kind}") for t, ours in NAMES.items() for kind in ("weight", "bias")
    ]
    return [(theirs, kind, name) for theirs, kind, name in pairs if name in state]


def weight_format(name: str, target: type, *components: str) -> wsizoo.WeightFormat:
    where = f"{target.__module__}:{target.__name__}"
    return wsizoo.WeightFormat(name, components or ("abmil",), where, "a toy's", "a test")


def toy_registry(*formats: wsizoo.WeightFormat) -> Registry:
    """The core's registry with the model `toy`, and a plugin that offers these formats."""
    hooks: dict[str, Any] = {"wsizoo_api": 1}
    name = "wsizoo_weight_formats"
    hooks[name] = wsizoo.hookimpl(lambda: list(formats), specname=name)
    module = types.ModuleType("toy_hooks")
    module.__dict__.update(hooks)
    dist = types.SimpleNamespace(name="toy-plugin", version="1")
    point = types.SimpleNamespace(name="toy", value="toy_hooks", dist=dist, load=lambda: module)
    registry = Registry.of(discover([point]))
    assert all(plugin.works for plugin in registry.plugins.all), registry.plugins.all
    registry.models["toy"] = Entry("toy", dict(TOY), "a test")
    return registry


def build(registry: Registry, *overrides: str, seed: int = 0) -> SlideModel:
    return wsizoo.build("toy", *overrides, seed=seed, registry=registry)


def assert_same(a: SlideModel, b: SlideModel) -> None:
    mine, theirs = a.inference_state(), b.inference_state()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
