"""What the readers of parity cases share: a model of a case, strictly filled, and its gradients."""

from __future__ import annotations

import copy

import torch

import wsizoo
from wsizoo.weight_formats import fill, published


def model_of(case, layout, name, *overrides, classes=None, tensors=None):
    """The zoo's model with these overrides, with the case's weights in the layout."""
    head = ["head=null"] if classes == 0 else []
    if classes:
        head = [f"head.classes={[f'c{i}' for i in range(max(2, classes))]}"]
        head += ["head.one_logit=true"] if classes == 1 else []
    model = wsizoo.build(name, *overrides, *head)
    fill(model, case.weights() if tensors is None else tensors, layout, case.name)
    return model


def gradients(model, layout):
    """Of all parameters, by their published names, as `grad.NAME`; 0 where there is none."""
    twin = copy.deepcopy(model)
    grads = {name: p.grad for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in twin.named_parameters():
            p.copy_(torch.zeros_like(p) if grads[name] is None else grads[name])
    return {f"grad.{name}": tensor for name, tensor in published(twin, layout).items()}


def slide(features, label=None):
    target = None if label is None else {"label": int(label)}
    return wsizoo.Bag(features, target=target)


def backward(case, found):
    """Gradients of what the case names, weighed by its cotangent; none where it names nothing."""
    of = case.meta.get("cotangent_for")
    if of is not None:
        (found[f"out.{of}"] * case.inputs()["cotangent"]).sum().backward()


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model
