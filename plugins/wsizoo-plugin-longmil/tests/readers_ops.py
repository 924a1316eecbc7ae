"""Readers of the parity cases of LongMIL's pieces: local attention, pooling, positions."""

from __future__ import annotations

import torch
from wsizoo_plugin_longmil.places import packed
from wsizoo_plugin_longmil.positions import (
    Alibi,
    Clamped,
    published_turns,
)
from wsizoo_plugin_longmil.v1 import LongMILV1

from wsizoo import Bag
from wsizoo.ops import Disk, alibi_slopes, grid_attention, rotary_turns, rotate


def read_local(case):
    inputs, config = case.inputs(), case.config
    q, k, v = (inputs[name].requires_grad_() for name in "qkv")
    cells = inputs["coords"]
    by = rotary_turns(cells, q.shape[2], q.dtype) if config["rope"] else None
    asked, asks = (q, k) if by is None else (rotate(q, by), rotate(k, by))
    bias = Alibi(inputs["slopes"]) if config["alibi"] else None
    out = grid_attention(asked, asks, v, Disk(cells, config["radius"]), bias)
    (out * inputs["cotangent"]).sum().backward()
    return {"out.out": out, "grad.q": q.grad, "grad.k": k.grad, "grad.v": v.grad}


def read_pooling(case):
    inputs = case.inputs()
    x, cells = inputs["x"].requires_grad_(), inputs["coords"]
    pooled = packed([cells - cells.amin(0)]).pooled()
    out = pooled.mean(x)
    (out * inputs["cotangent"]).sum().backward()
    return {
        "out.pooled": out,
        "out.cells": pooled.cells,
        "out.counts": pooled.counts,
        "out.cell_of_patch": pooled.number,
        "grad.x": x.grad,
    }


def read_rotary(case):
    inputs, config = case.inputs(), case.config
    q, k = inputs["q"].requires_grad_(), inputs["k"]
    lengths = config["grid"]
    by = published_turns(inputs["cells"], config["dim"], config["n_heads"], q.dtype, lengths)
    cos, sin = (part.flatten(1) for part in by)  # (T, E / 2)
    found = {"out.q": rotate(q, by), "out.k": rotate(k, by)}
    (found["out.q"] * inputs["cotangent"]).sum().backward()
    return {**found, "out.sincos": torch.stack([sin, cos], -1).flatten(1), "grad.q": q.grad}


def read_slopes(case):
    found = {}
    for heads in case.inputs()["n_heads"].tolist():
        found[f"out.slopes_{heads}"] = alibi_slopes(heads)
        found[f"out.slopes_{heads}_half"] = alibi_slopes(heads).half()
    return found


def read_alibi(case):
    inputs, heads = case.inputs(), case.config["n_heads"]
    module = LongMILV1(8, dim=4 * heads, heads=heads)
    bag = Bag(torch.zeros(len(inputs["coords"]), 8), inputs["coords"].round().long())
    cells = module.cells_of(bag)
    assert torch.equal(cells, inputs["cells"])
    near, far = module.biases(cells)
    offset = cells[None] - cells[:, None]  # (N, N, 2)
    table = Clamped.of(torch.ones(1))(offset)[0]
    return {"out.table": table.to(torch.int8), "out.global": far(offset), "out.local": near(offset)}


READERS = {
    "op_local": read_local,
    "op_pool2": read_pooling,
    "op_rotary": read_rotary,
    "op_slopes": read_slopes,
    "op_alibi": read_alibi,
}
