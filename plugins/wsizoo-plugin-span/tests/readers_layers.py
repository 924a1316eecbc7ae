"""Readers of the parity cases of SPAN's pieces: padding, who attends to whom, positions, layers."""

from __future__ import annotations

import torch
from wsizoo_plugin_span.layers import SpanLayer, TwoStepLayer
from wsizoo_plugin_span.official import down_names, layer_entries, slot_entries, up_names
from wsizoo_plugin_span.positions import alibi_table
from wsizoo_plugin_span.pyramid import Level, Plan, Step, build
from wsizoo_plugin_span.settings import Settings, SlideSettings, UNetSettings
from wsizoo_plugin_span.slots import DownConv, Merge, PixelShuffle, Slot, UpConv

from wsizoo.ops import Grids, alibi_slopes, rotary_turns, rotate, rulebook, transpose_rulebook

TWICE = {"norm3": "norm3", "norm4": "norm4", "fc_out_2": "out2"}


def level_of(pos, half_window):
    """A level of the published code on positions as they are."""
    size = (pos.max(0).values + 1).tolist()
    bounds = (0, len(pos))
    grids = Grids(torch.tensor([size]), torch.zeros(1, 2, dtype=torch.int64), torch.tensor(bounds))
    return Level(pos, grids, bounds, (tuple(size),), half_window, published=True)


def read_padder(case):
    inputs, found = case.inputs(), {}
    plans = {sub["id"]: _plan(sub) for sub in case.meta["subcases"]}
    for name, plan in plans.items():
        pyramid = build([inputs[f"{name}.pos"].long()], plan)
        found[f"out.{name}.pos"] = pyramid.levels[0].cells
        found[f"out.{name}.feats"] = pyramid.tokens(inputs[f"{name}.feats"])
    for i, combination in enumerate(case.meta["combos"]):
        plan = _plan(combination)
        found[f"out.{i}.pad_table"] = torch.tensor([plan.pads(n) for n in range(1, 81)])
    return found


def _plan(options):
    step = Step(options["kernel_size"], options["stride"], options["dilation"])
    return Plan(step, (None,) * options["n_layers"], half_window=3, published=True)


def read_adjacency(case):
    """Which weights are not zero where all scores are equal, read off one-hot values."""
    inputs, found = case.inputs(), {}
    for sub in case.meta["subcases"]:
        level = level_of(inputs[f"{sub['grid']}.pos"], sub["window_size"])
        tokens, others = len(level), sub["num_globals"]
        mode = sub["mode"]
        pairs = {p: _in_windows(level, others, p) for p in ("union", "regular", "shifted")}
        joined = _with_globals(level, others)
        local = {"long": "union", "long_noshift": "regular"}.get(mode, "shifted")
        second = joined if mode.startswith("long") else pairs["regular"]
        if mode == "swin_global":
            second = second | joined
        found[f"out.{sub['id']}.local"] = pairs[local].to(torch.uint8)
        found[f"out.{sub['id']}.second"] = second.to(torch.uint8)
        assert len(second) == tokens + others
    return found


def _blank(dim, half_window):
    """A layer whose scores are all 0 and whose values are its inputs."""
    layer = SpanLayer(dim, 1, half_window, positions="none").eval()
    with torch.no_grad():
        for linear in (layer.q2, layer.k2, layer.v2):
            linear.weight.zero_()
            linear.bias.zero_()
        layer.v2.weight.copy_(torch.eye(dim))
    return layer


@torch.no_grad()
def _in_windows(level, others, pattern):
    n = len(level)
    none = torch.zeros(n, n)
    weights = _blank(n, level.half_window).among(none, none, torch.eye(n), level, pattern)
    return torch.nn.functional.pad(weights > 0, (0, others, 0, others))


@torch.no_grad()
def _with_globals(level, others):
    every = torch.eye(len(level) + others)
    if not others:
        return every == 2
    return _blank(len(every), level.half_window)._with_globals(every, level) > 0


def read_positions(case):
    inputs, found = case.inputs(), {}
    for sub in case.meta["subcases"]:
        i, reach = sub["id"], 2 * sub["window_size"] - 1
        table = inputs[f"{i}.table"]
        assert table.shape == SpanLayer(64, sub["num_heads"], sub["window_size"]).table.shape
        dx, dy = inputs[f"{i}.dx"], inputs[f"{i}.dy"]
        found[f"out.{i}.bias"] = table[:, dx + reach, dy + reach].T
    for name in case.tolerance:
        if name.startswith("out.alibi_slopes_"):
            found[name] = alibi_slopes(int(name.rpartition("_")[2]))
        if name.startswith("out.rope_"):
            key = name.removeprefix("out.").removesuffix(".x")
            x = inputs[f"{key}.x"]
            width = int(key.partition("partial")[2] or x.shape[-1]) // 4 * 4
            found[name] = rotate(x, rotary_turns(inputs[f"{key}.pos"], width, x.dtype))
    dx, dy = inputs["alibi_dx"], inputs["alibi_dy"]
    reach = int(torch.stack([dx, dy]).abs().max())
    table = alibi_table(alibi_slopes(3), reach)
    found["out.alibi_bias_3heads"] = table[:, dx + reach, dy + reach].T
    return found


def read_resampling(case):
    inputs, weights, found = case.inputs(), case.weights(), {}
    for sub in case.meta["subcases"]:
        i, pos = sub["id"], inputs[f"{sub['id']}.pos"]
        up = "target_pos" in {k.partition(".")[2] for k in inputs if k.startswith(f"{i}.")}
        settings = _slot_settings(sub, up)
        kernel, stride, dilation = settings.kernel, settings.stride, settings.dilation
        if up:
            targets = inputs[f"{i}.target_pos"]
            book, out = transpose_rulebook(pos, targets, kernel, stride, dilation), targets
        else:
            book = rulebook(pos, sub["spatial_shape"], kernel, stride, dilation)
            out = book.out_cells
        slot = _slot(sub, settings, up)
        names = (up_names if up else down_names)(settings)
        dim, out_dim = sub["in_channels"], sub["out_channels"]
        known = slot_entries(f"{i}.", "", settings, names, dim, out_dim, normed=True)
        own = {e.ours: weights[e.published] for e in known if e.ours is not None}
        slot.load_state_dict(own, strict=True)
        with torch.no_grad():
            tokens, globals_ = slot(inputs[f"{i}.feats"], inputs[f"{i}.globals"][None], book)
        found.update({f"out.{i}.pos": out, f"out.{i}.feats": tokens})
        found[f"out.{i}.globals"] = globals_[0]
    return found


def _slot_settings(sub, up):
    options = {
        "dim": 8,
        "head_dim": 8,
        "kernel": sub["kernel_size"],
        "stride": sub["stride"],
        "dilation": sub.get("dilation", 1),
        "conv_groups": sub.get("groups", 1),
        "conv_bias": sub["bias"],
        "conv_norm": sub["norm_position"],
        "edge": sub["edge_mode"],
        "edge_eps": sub.get("edge_eps", Settings.edge_eps),
        "global_path": sub["global_strategy"],
        "compat": "published",
    }
    if up:
        return UNetSettings.of(
            16, {**options, "up": sub["layer_type"], "widening": 1, "skip": "add"}
        )
    return SlideSettings.of(16, {**options, "down": sub["layer_type"]})


def _slot(sub, settings, up):
    dim, out_dim, kind = sub["in_channels"], sub["out_channels"], sub["layer_type"]
    groups = dim if kind.startswith("dw") else settings.conv_groups
    if kind == "pixelshuffle":
        block = PixelShuffle(dim, out_dim, settings)
    elif up:
        block = UpConv(dim, out_dim, groups, settings)
    elif kind == "patchmerge":
        block = Merge(dim, out_dim, settings.edge, settings)
    else:
        block = DownConv(dim, out_dim, groups, settings.edge, settings)
    return Slot(block, dim, out_dim, settings.global_path, settings.conv_norm == "pre")


def read_layer(case):
    inputs, meta = case.inputs(), case.meta
    assert meta.get("rope_theta", 10_000) == 10_000, "layers turn by powers of 10,000 alone"
    options = {
        "dim": meta["embed_dim"],
        "heads": meta["num_heads"],
        "half_window": meta["window_size"],
        "positions": meta["pos_emb"],
        "share_qkv": meta["share_qkv"],
        "ff_ratio": meta["ff_ratio"],
        "activation": meta["activation"].lower(),
        "rotary_share": meta["rope_partial_factor"],
    }
    twice = meta["layer_type"] == "tradswin"
    layer = TwoStepLayer(**options) if twice else SpanLayer(**options, attention=meta["layer_type"])
    layer.load_state_dict(_layer_tensors(case.weights(), meta, twice), strict=True)
    level = level_of(inputs["pos"], meta["window_size"])
    with torch.no_grad():
        tokens, globals_ = layer.eval()(inputs["feats"], inputs["globals"][None], level)
    return {"out.feats": tokens, "out.globals": globals_[0]}


def _layer_tensors(weights, meta, twice):
    """Under our names; tradswin, which no published network holds, has names of its own."""
    bare = {name.removeprefix("trans_block."): tensor for name, tensor in weights.items()}
    settings = SlideSettings.of(
        2 * meta["embed_dim"],
        {"share_qkv": meta["share_qkv"], "positions": meta["pos_emb"], "compat": "published"},
    )
    names = {e.published: e.ours for e in layer_entries("", "", settings)}
    if twice:
        for part in ("weight", "bias"):
            names.update({f"{k}.{part}": f"{v}.{part}" for k, v in TWICE.items()})
            for at in (0, 3):
                names[f"ffn.{at}.{part}"] = f"ffn.{at}.{part}"
                names[f"ffn_2.{at}.{part}"] = f"ffn2.{at}.{part}"
    slopes = "pos_encoder.slopes"
    return {names[k]: v.flatten() if k == slopes else v for k, v in bare.items()}


READERS = {
    "op_padder": read_padder,
    "op_adjacency": read_adjacency,
    "op_position_encoding": read_positions,
    "op_resample_layers": read_resampling,
    "layer": read_layer,
}
