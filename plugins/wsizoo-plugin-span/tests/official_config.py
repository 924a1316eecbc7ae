"""The published code's configuration under our names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wsizoo_plugin_span.settings import SlideSettings, UNetSettings

from wsizoo.errors import SpecError

TASKS = ("classification", "survival", "segmentation")
RENAMED = {
    "slide_configs": "layers",
    "channel_factor": "widening",
    "trans_type": "attention",
    "window_size": "half_window",
    "pos_emb": "positions",
    "pos_std": "table_std",
    "attn_drop": "attention_dropout",
    "proj_drop": "dropout",
    "token_init_types": "tokens",
    "global_strategy": "global_path",
    "kernel_size": "kernel",
    "groups": "conv_groups",
    "edge_mode": "edge",
    "conv_norm_position": "conv_norm",
}
SAME = ("share_qkv", "ff_ratio", "drop_path", "stride", "dilation", "conv_bias", "edge_eps")
OF_DECODER = {"dtrans_type": "decoder_attention", "connection": "skip"}
OF_INPUT = {
    "mlp_ratio": "input_ratio",
    "dropout": "input_dropout",
    "bias": "input_bias",
    "prenorm": "input_norm",
    "drop_first": "input_dropout_first",
}
OWN = ("econvs_type", "dconvs_type", "enc_act", "embed_dim_div", "input_projection", "skip_first")
DENSE, SPARSE = "d_", "s_"  # prefixes of blocks


def official_settings(
    in_dim: int,
    model: Mapping[str, Any],
    task: str,
    options: Mapping[str, Any] | None = None,
    head_dim: int = 64,
) -> SlideSettings | UNetSettings:
    """What a published configuration builds, as `compat="published"`.

    Args:
        in_dim: width of the features. model: `model.*` of its configuration.
        task: classification, survival or segmentation. options: the section of that name.
        head_dim: width of an attention head, which the published code fixes at 64.

    Raises:
        SpecError: a key that the published code does not read, or what `Settings` refuses.
    """
    if task not in TASKS:
        raise SpecError(f"SPAN has no task '{task}', expected one of {', '.join(TASKS)}")
    decodes = task == "segmentation"
    given = _named(model, decodes)
    given.update(_blocks(model, decodes), **_input(model.get("input_projection") or {}))
    given["layers"] = str(given.get("layers", "111"))
    if not decodes:
        given["layers"] = given["layers"].partition("-")[0]
    given.update(
        dim=in_dim // int(model.get("embed_dim_div", 2)),
        head_dim=head_dim,
        activation=_activation(model.get("enc_act", "ReLU")),
        compat="published",
    )
    if decodes:
        return UNetSettings.of(in_dim, given)
    return SlideSettings.of(in_dim, {**given, **_pooling(task, options or {})})


def _named(model: Mapping[str, Any], decodes: bool) -> dict[str, Any]:
    """What has another name here and no other meaning."""
    known = {*RENAMED, *SAME, *OF_DECODER, *OWN}
    if unknown := sorted(set(model) - known):
        raise SpecError(f"the published SPAN reads no model.{unknown[0]}; it reads {sorted(known)}")
    names = {**RENAMED, **{name: name for name in SAME}, **(OF_DECODER if decodes else {})}
    given = {names[key]: value for key, value in model.items() if key in names}
    for name in ("positions", "edge", "skip"):
        if name in given:  # "none", which some files write as null
            given[name] = str(given[name]).lower()
    for name in ("share_qkv", "conv_bias"):
        if name in given:
            given[name] = bool(given[name])
    given.setdefault("tokens", [1e-4])
    return given


def _blocks(model: Mapping[str, Any], decodes: bool) -> dict[str, Any]:
    """Convolution blocks; the dense ones give the same numbers, but know no edges."""
    given: dict[str, Any] = {}
    down = str(model.get("econvs_type", "dwpatchconv"))
    given["down"] = _bare(down)
    if down.startswith(DENSE):
        given["edge"] = "none"
    if decodes:
        given["up"] = _bare(str(model.get("dconvs_type", "pixelshuffle")))
        given["skip_after_layers"] = bool(model.get("skip_first", 1))
    return given


def _bare(block: str) -> str:
    return block.removeprefix(DENSE).removeprefix(SPARSE)


def _input(projection: Mapping[str, Any]) -> dict[str, Any]:
    given = {OF_INPUT[key]: value for key, value in projection.items() if key in OF_INPUT}
    if projection.get("activation") is not None:
        given["input_activation"] = _activation(projection["activation"])
    if unknown := sorted(set(projection) - {*OF_INPUT, "activation"}):
        raise SpecError(f"the published SPAN reads no model.input_projection.{unknown[0]}")
    return given


def _pooling(task: str, options: Mapping[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {"pool_dropout": options.get("cls_drop", 0.05)}
    if task == "survival":
        pooling = options.get("aggregation", "multi_addition")
        given["pooling"] = pooling if pooling in ("concat", "addition") else "multi_addition"
        given["pool_norm"] = pooling == "addition"
        return given
    given["pooling"] = options.get("aggr_method", "multi_addition")
    if given["pooling"] == "multi_addition":
        given["pool_norm"] = bool(options.get("head_norm", True))
    given["pool_activation"] = _activation(options.get("head_act", "relu"))
    given["pool_divisor"] = options.get("head_div", 4)
    return given


def _activation(name: str) -> str:
    return str(name).lower().replace("_", "")
