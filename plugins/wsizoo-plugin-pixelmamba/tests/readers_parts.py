"""Readers of the parity cases of Pixel-Mamba's parts: serialisation, fusion, expansion, loss."""

from __future__ import annotations

import torch
from wsizoo_plugin_pixelmamba.expansion import expand, grid_after
from wsizoo_plugin_pixelmamba.fusion import fuse
from wsizoo_plugin_pixelmamba.serialise import cls_place, serialise

from wsizoo.losses import discrete_time_nll
from wsizoo.mil.heads import SurvivalHead


def backwards(case, output, inputs):
    """`grad.*` of the inputs (or parameters) that the case names, from its cotangent."""
    wanted = [name for name in case.tolerance if name.startswith("grad.")]
    if not wanted:
        return {}
    leaves = [inputs[name.removeprefix("grad.")] for name in wanted]
    cotangent = case.inputs()["cotangent"]
    return dict(zip(wanted, torch.autograd.grad(output, leaves, cotangent), strict=True))


def read_serialise(case):
    inputs, config = trained(case.inputs()), case.config
    region = tuple(config["region"])
    found = serialise(
        inputs["image"],
        inputs["cls"],
        region,
        config["inner"],
        config["outer"],
        config["pad_value"],
    )
    assert cls_place(*region) == config["cls_index"]
    return {
        "out.tokens": found.tokens,
        "out.inner_order": found.inner_order,
        "out.region_order": found.region_order,
        **backwards(case, found.tokens, inputs),
    }


def read_expand(case):
    inputs, config = trained(case.inputs()), case.config
    kind = f"{config['direction']}-{config['mode']}"
    tokens = expand(
        inputs["tokens"],
        tuple(config["grid"]),
        kind,
        config["shift_padding"],
        config["cls_mode"],
        inputs.get("cls_weight"),
        config["inner"],
    )
    assert grid_after(tuple(config["grid"]), kind) == tuple(config["grid_out"])
    return {"out.tokens": tokens, **backwards(case, tokens, inputs)}


def read_fusion(case):
    inputs, config = trained(case.inputs()), case.config
    found = fuse(inputs["tokens"], config["k"], config["split"], config["multi"])
    return {
        "out.tokens": found.tokens,
        "out.survivor": found.survivor,
        "out.merged_into": found.merged_into,
        **backwards(case, found.tokens, inputs),
    }


def read_nll(case):
    inputs, config = trained(case.inputs()), case.config
    rows = zip(inputs["logits"], inputs["bin"], inputs["censored"], strict=True)
    losses = [
        discrete_time_nll(row[None], at[None], ~censored[None].bool(), floor=config["clamp"])
        for row, at, censored in rows
    ]
    loss = torch.stack(losses)
    head = SurvivalHead(None, bins=config["bins"], floor=config["clamp"])
    return {
        "out.loss": loss,
        "out.risk": head.outputs(inputs["logits"])["risk"],
        **backwards(case, loss, inputs),
    }


def trained(tensors):
    """The float tensors as leaves that gradients reach."""
    return {k: v.requires_grad_() if v.is_floating_point() else v for k, v in tensors.items()}


READERS = {
    "pm_serialize": read_serialise,
    "pm_expand": read_expand,
    "pm_fusion": read_fusion,
    "pm_nll": read_nll,
}
