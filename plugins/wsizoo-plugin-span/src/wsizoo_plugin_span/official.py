"""A published state dict under our names, and back, tensor by tensor.

Every published tensor is known by name: one that is missing or unexpected is an error. Some are in
the file but in no computation (the survival heads that were not selected, a norm of global tokens
beside global_strategy "kernel", the head's map of global tokens): they come back as `unused`, and
are written again from there; without them they are written as they would begin, weights of norms
1, everything else 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from wsizoo.errors import StrictnessError
from wsizoo_plugin_span.settings import Settings, SlideSettings, UNetSettings

Tensors = Mapping[str, Tensor]
BOTH = ("weight", "bias")


@dataclass(frozen=True)
class Entry:
    """One tensor of a published file.

    Args:
        published: its name there. ours: that of the tensor in a slide model; None: unused there.
        row: which row of ours it is, for tokens that the file holds one by one.
        shape: of an unused one. twin: the published name of a tensor that this one must equal.
    """

    published: str
    ours: str | None = None
    row: int | None = None
    shape: tuple[int, ...] = ()
    twin: str | None = None


def from_official(
    tensors: Tensors, task: str, settings: Settings
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A published state dict -> tensors of a slide model, and the unused ones as they are.

    Args:
        task: classification, survival or segmentation. settings: what it was trained with.

    Raises:
        StrictnessError: tensors missing, unexpected, of another shape, or pairs (share_qkv) that
            differ.
    """
    known = entries(task, settings, _outputs(tensors, task, settings))
    _check_names(tensors, known)
    ours: dict[str, Tensor] = {}
    unused: dict[str, Tensor] = {}
    rows: dict[str, list[Tensor]] = {}
    for entry in known:
        tensor = tensors[entry.published]
        if entry.twin is not None and not torch.equal(tensor, tensors[entry.twin]):
            raise StrictnessError(
                f"{entry.published} and {entry.twin} differ; with share_qkv they are one tensor"
            )
        if entry.ours is None:
            _check_shape(entry, tensor)
            unused[entry.published] = tensor
        elif entry.row is not None:
            rows.setdefault(entry.ours, []).append(tensor)
        else:
            ours[entry.ours] = tensor.flatten() if entry.ours.endswith("slopes") else tensor
    ours.update({name: torch.cat(parts) for name, parts in rows.items()})
    return ours, unused


def to_official(
    ours: Tensors, task: str, settings: Settings, unused: Tensors | None = None
) -> dict[str, Tensor]:
    """Tensors of a slide model -> a published state dict.

    Args: as `from_official` takes and gives.

    Raises:
        StrictnessError: tensors missing or unexpected.
    """
    head = ours.get("head.linear.weight")
    known = entries(task, settings, 1 if head is None else len(head))
    wanted = {entry.ours for entry in known if entry.ours is not None}
    _check_sets("a slide model of these settings", set(ours), wanted)
    given = unused or {}
    tensors: dict[str, Tensor] = {}
    for entry in known:
        if entry.ours is None:
            fresh = torch.ones if entry.published.endswith("norm.weight") else torch.zeros
            tensors[entry.published] = given.get(entry.published, fresh(entry.shape))
        else:
            tensor = ours[entry.ours]
            if entry.row is not None:
                tensor = tensor[entry.row : entry.row + 1]
            slopes = entry.ours.endswith("slopes")
            tensors[entry.published] = tensor[:, None, None] if slopes else tensor
    return tensors


def entries(task: str, settings: Settings, n_outputs: int) -> list[Entry]:
    """Every tensor of a published file of these settings; `n_outputs` classes or time bins."""
    found = [*_tokens(settings), *_encoder(settings)]
    if isinstance(settings, UNetSettings):
        return [*found, *_decoder(settings)]
    assert isinstance(settings, SlideSettings)
    pooled = _survival if task == "survival" else _classification
    return [*found, *pooled(settings, n_outputs)]


def _tokens(settings: Settings) -> Iterator[Entry]:
    kinds = settings.token_kinds
    for kind in ("random", "fixed"):
        if kind in kinds:
            yield Entry(f"encoder.{kind}_tokens", f"aggregator.encoder.tokens.{kind}")
    for j in range(kinds.count("learnable")):
        ours = "aggregator.encoder.tokens.learnable"
        yield Entry(f"encoder.learnable_tokens.{j}", ours, row=j)


def _encoder(settings: Settings) -> Iterator[Entry]:
    for i, count in enumerate(settings.encoder):
        block = f"encoder.blocks.{i}.modules_dict."
        ours = f"aggregator.encoder.stages.{i}."
        if i == 0:
            yield from slot_entries(
                block + "convs_0.0.",
                ours + "slot.",
                settings,
                _input(settings),
                settings.in_dim,
                settings.width(0),
                normed=False,
            )
        else:
            yield from slot_entries(
                block + "convs_0.0.",
                ours + "slot.",
                settings,
                down_names(settings),
                settings.width(i - 1),
                settings.width(i),
                normed=True,
            )
        yield from _layers(block + "trans_2.", ours, settings, count)


def _decoder(settings: UNetSettings) -> Iterator[Entry]:
    widths = settings.decoder_widths
    for i, (count, (dim, width)) in enumerate(zip(settings.decoder, widths, strict=True)):
        block, ours = f"decoder.blocks.{i}.modules_dict.", f"aggregator.decoder.stages.{i}."
        up = up_names(settings)
        yield from slot_entries(
            block + "convs_0.0.", ours + "slot.", settings, up, dim, width, True
        )
        at = 0
        if not settings.skip_after_layers:
            at = 1 if settings.skip == "none" else 2
            wide = width * (2 if settings.skip == "concat" else 1)
            names = {"linear.0.weight": "first.weight"}
            reduce = f"{block}convs_{at}.0."
            yield from slot_entries(reduce, ours + "reduce.", settings, names, wide, width, False)
        yield from _layers(f"{block}trans_{at + 2}.", ours, settings, count)
    block = f"decoder.blocks.{len(widths)}.modules_dict.convs_0.0."
    for part in BOTH:
        yield Entry(f"{block}conv_block.linear.1.{part}", f"head.linear.{part}")
    yield from _head_globals(block, settings)


def _head_globals(block: str, settings: UNetSettings) -> Iterator[Entry]:
    """The head slot's map of global tokens, which nothing reads."""
    name = {"proj": "g_proj", "identity": "identity_proj"}.get(settings.global_path)
    if name == "identity_proj" and settings.instance_width == 1:
        return
    if name is not None:
        yield Entry(f"{block}{name}.weight", shape=(1, settings.instance_width))
        yield Entry(f"{block}{name}.bias", shape=(1,))


def slot_entries(
    block: str,
    ours: str,
    settings: Settings,
    names: Mapping[str, str],
    dim: int,
    out_dim: int,
    normed: bool,
) -> Iterator[Entry]:
    """A slot's block, of these names (published: ours), and its way for global tokens."""
    for published, own in names.items():
        yield Entry(f"{block}conv_block.{published}", f"{ours}block.{own}")
    path = settings.global_path
    if normed and settings.conv_norm == "pre":
        for part in BOTH:
            used = None if path == "kernel" else f"{ours}global_norm.{part}"
            yield Entry(f"{block}global_input_norm.{part}", used, shape=(dim,))
    name = {"proj": "g_proj", "identity": "identity_proj"}.get(path)
    if name == "g_proj" or (name and dim != out_dim):
        for part in BOTH:
            yield Entry(f"{block}{name}.{part}", f"{ours}global_map.{part}")


def _input(settings: Settings) -> dict[str, str]:
    parts = BOTH if settings.input_bias else BOTH[:1]
    names = {f"prenorm.{p}": f"norm.{p}" for p in BOTH} if settings.input_norm else {}
    if settings.input_activation is not None:
        names.update({f"linear.0.{p}": f"first.{p}" for p in parts})
        return {**names, **{f"linear.3.{p}": f"second.{p}" for p in parts}}
    at = 1 if settings.input_dropout_first else 0
    return {**names, **{f"linear.{at}.{p}": f"first.{p}" for p in parts}}


def down_names(settings: Settings) -> dict[str, str]:
    parts = BOTH if settings.conv_bias else BOTH[:1]
    if settings.down == "identity":
        return {}
    if settings.down == "linear":
        first = {f"linear.0.{p}": f"first.{p}" for p in parts}
        return {**first, **{f"linear.3.{p}": f"second.{p}" for p in parts}}
    if settings.merges:
        return {**{f"pwconv.{p}": f"map.{p}" for p in parts}, **_norm(settings)}
    return {**{f"dwconv.{p}": p for p in parts}, **_norm(settings)}


def up_names(settings: UNetSettings) -> dict[str, str]:
    parts = BOTH if settings.conv_bias else BOTH[:1]
    if settings.up == "pixelshuffle":
        return {**{f"conv.{p}": f"map.{p}" for p in parts}, **_norm(settings)}
    return {**{f"upconv.{p}": p for p in parts}, **{f"norm.{p}": f"norm.{p}" for p in BOTH}}


def _norm(settings: Settings) -> dict[str, str]:
    name = "input_norm" if settings.conv_norm == "pre" else "output_norm"
    return {f"{name}.{p}": f"{name}.{p}" for p in BOTH}


def _layers(block: str, ours: str, settings: Settings, count: int) -> Iterator[Entry]:
    for i in range(count):
        yield from layer_entries(f"{block}{i}.trans_block.", f"{ours}layers.{i}.", settings)


def layer_entries(block: str, ours: str, settings: Settings) -> Iterator[Entry]:
    """One layer's tensors, under these prefixes."""
    names = {"fc_out": "out", "ffn.0": "ffn_in", "ffn.3": "ffn_out"}
    names.update({n: n for n in ("norm1", "norm2", "q1", "k1", "v1", "q2", "k2", "v2")})
    for published, own in names.items():
        twin = f"{own[0]}1" if settings.share_qkv and own in ("q2", "k2", "v2") else None
        for p in BOTH:
            first = None if twin is None else f"{block}{twin}.{p}"
            yield Entry(f"{block}{published}.{p}", f"{ours}{own}.{p}", twin=first)
    if settings.positions == "rpb":
        yield Entry(f"{block}table_RPB.adjustment_tables", f"{ours}table")
    if settings.positions == "alibi":
        yield Entry(f"{block}pos_encoder.slopes", f"{ours}slopes")


def _classification(settings: SlideSettings, n_outputs: int) -> Iterator[Entry]:
    if settings.pooling == "multiattn":
        yield from _multiattn(settings)
        norm, linear = "aggregator.norm", "aggregator.fc"
    elif settings.pooling == "multi_addition":
        norm, linear = "aggregator.module.norm", "aggregator.module.fc.1"
    else:
        at = 2 if settings.pool_norm else 1
        norm, linear = "aggregator.module.0", f"aggregator.module.{at}"
    for p in BOTH:
        if settings.pool_norm:
            yield Entry(f"{norm}.{p}", f"aggregator.pooling.norm.{p}")
        yield Entry(f"{linear}.{p}", f"head.linear.{p}")


def _multiattn(settings: SlideSettings) -> Iterator[Entry]:
    second = 3 if settings.pool_dropout else 2  # its dropout layer is left out at 0
    for i in range(settings.stages):
        for at, own in ((0, 0), (second, 2)):
            block = f"aggregator.aggregators.{i}.attention_mechanism.{at}"
            for p in BOTH:
                yield Entry(f"{block}.{p}", f"aggregator.pooling.stages.{i}.{own}.{p}")
    yield Entry("aggregator.scale_logits", "aggregator.pooling.scale")
    yield Entry("aggregator.scale_router.weight", "aggregator.pooling.scale_router.weight")
    names = {
        "context_alpha": "context",
        **{f"context_router.{p}": f"context_router.{p}" for p in BOTH},
    }
    shapes = {"context_alpha": (settings.stages,), "context_router.bias": (1,)}
    for published, name in names.items():
        used = f"aggregator.pooling.{name}" if settings.n_tokens else None
        shape = shapes.get(published, (1, 2 * settings.width(0)))
        yield Entry(f"aggregator.{published}", used, shape=shape)


def _survival(settings: SlideSettings, n_outputs: int) -> Iterator[Entry]:
    """Three heads, of which one is selected."""
    dim = settings.width(settings.stages - 1)
    heads = {
        "multi_addition": ("multi_addition", "multi_aggregator.fc.1", dim),
        "addition": ("addition", "aggregator.fc", dim),
        "concat": ("concat", "classifier_1.1", settings.stages * dim),
    }
    for pooling, linear, width in heads.values():
        used = settings.pooling == pooling
        for p, shape in zip(BOTH, ((n_outputs, width), (n_outputs,)), strict=True):
            yield Entry(f"{linear}.{p}", f"head.linear.{p}" if used else None, shape=shape)
    for p in BOTH:
        used_norm = f"aggregator.pooling.norm.{p}" if settings.pooling == "addition" else None
        yield Entry(f"aggregator.norm.{p}", used_norm, shape=(dim,))


def _outputs(tensors: Tensors, task: str, settings: Settings) -> int:
    """Rows of the linear head in a published file; 1 where it lacks one."""
    for entry in entries(task, settings, 1):
        if entry.ours == "head.linear.bias" and entry.published in tensors:
            return len(tensors[entry.published])
    return 1


def _check_names(tensors: Tensors, known: list[Entry]) -> None:
    _check_sets("a published file of these settings", set(tensors), {e.published for e in known})


def _check_sets(what: str, found: set[str], wanted: set[str]) -> None:
    missing, unexpected = sorted(wanted - found), sorted(found - wanted)
    if missing or unexpected:
        raise StrictnessError(
            f"{what} holds other tensors: {len(missing)} missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}"
        )


def _check_shape(entry: Entry, tensor: Tensor) -> None:
    if tuple(tensor.shape) != entry.shape:
        raise StrictnessError(
            f"{entry.published} is {tuple(tensor.shape)}, expected {entry.shape} for these settings"
        )
