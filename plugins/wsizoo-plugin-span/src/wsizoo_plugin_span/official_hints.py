"""What the names and shapes of a published file tell of its configuration, as overrides."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
SLOT = r"blocks\.\d+\.modules_dict\.convs_0\.0\."
MARKS = (  # a name that only a choice has; the choice; that of a file without it, if there are two
    (rf"encoder\.{SLOT}g_proj", "global_path=proj", None),
    (rf"encoder\.{SLOT}identity_proj", "global_path=identity", None),
    (rf"encoder\.{SLOT}conv_block\.input_norm", "conv_norm=pre", None),
    (rf"encoder\.{SLOT}conv_block\.output_norm", "conv_norm=post", None),
    (rf"encoder\.{SLOT}conv_block\.pwconv", "down=patchmerge", None),
    (rf"decoder\.{SLOT}conv_block\.conv\.", "up=pixelshuffle", None),
    (r"table_RPB", "positions=rpb", None),
    (r"pos_encoder\.slopes", "positions=alibi", None),
    (r"^aggregator\.module\.fc", "pooling=multi_addition", None),
    (r"^aggregator\.aggregators", "pooling=multiattn", None),
    (r"attention_mechanism\.2\.", "pool_dropout=0", None),  # its dropout layer is left out at 0
    (r"attention_mechanism\.3\.", "pool_dropout above 0", None),
    (r"conv_block\.(dwconv|pwconv|conv|upconv)\.bias", "conv_bias=true", "conv_bias=false"),
    (r"blocks\.0\..*conv_block\.linear\.[01]\.bias", "input_bias=true", "input_bias=false"),
    (r"conv_block\.prenorm", "input_norm=true", "input_norm=false"),
)


def told(tensors: Tensors) -> list[str]:
    """Overrides of `span` or `span-unet`; nothing of a file that is no SPAN's."""
    found = dict.fromkeys(_of_encoder(tensors))
    for pattern, present, absent in MARKS if found else ():
        seen = any(re.search(pattern, name) for name in tensors)
        if choice := present if seen else absent:
            found[f"aggregator.{choice}"] = None
    return list(found)


def _of_encoder(tensors: Tensors) -> Iterator[str]:
    first = _first(tensors, r"^encoder\.blocks\.0\..*conv_block\.linear\.[01]\.weight")
    if first is None or first.ndim != 2:
        return
    yield f"encoder.dim={first.shape[1]}"
    yield _tokens(tensors)
    yield f"aggregator.layers={_layers(tensors)}"
    norm = _first(tensors, r"^encoder\.blocks\.0\..*trans_block\.norm1\.weight")
    dim = len(first if norm is None else norm)
    yield f"aggregator.dim={dim}"
    deeper = _first(tensors, r"^encoder\.blocks\.1\..*trans_block\.norm1\.weight")
    if norm is not None and deeper is not None:
        yield f"aggregator.widening={len(deeper) // dim}"
    yield from _of_layers(tensors, dim)
    kernel = _first(tensors, r"^encoder\..*conv_block\.dwconv\.weight")
    if kernel is not None and kernel.ndim == 4:
        yield f"aggregator.down={'dwpatchconv' if kernel.shape[1] == 1 else 'patchconv'}"
        yield f"aggregator.kernel={kernel.shape[2]}"
    outputs = _first(tensors, r"(aggregator\.module\.(fc\.1|1|2)|aggregator\.fc)\.bias$")
    if outputs is not None:
        yield f"head with {len(outputs)} outputs"


def _of_layers(tensors: Tensors, dim: int) -> Iterator[str]:
    hidden = _first(tensors, r"^encoder\.blocks\.0\..*ffn\.0\.bias")
    if hidden is not None and dim:
        yield f"aggregator.ff_ratio={len(hidden) / dim:g}"
    table = _first(tensors, r"^encoder\.blocks\.0\..*adjustment_tables")
    if table is not None and table.ndim == 3:
        yield f"aggregator.half_window={(table.shape[1] + 1) // 4}"
        yield f"aggregator.head_dim={dim // len(table)}"
    pair = [_first(tensors, rf"trans_block\.{name}\.weight") for name in ("q1", "q2")]
    if pair[0] is not None and pair[1] is not None:
        yield f"aggregator.share_qkv={str(torch.equal(pair[0], pair[1])).lower()}"


def _tokens(tensors: Tensors) -> str:
    """Which global tokens are stored: statistics of the features leave nothing in a file."""
    drawn = {"fix": "encoder.fixed_tokens", "random": "encoder.random_tokens"}
    counts = {kind: len(tensors[name]) for kind, name in drawn.items() if name in tensors}
    if learned := sum(name.startswith("encoder.learnable_tokens.") for name in tensors):
        counts["lrn"] = learned
    if not counts:
        return "aggregator.tokens with nothing but max, mean, std"
    stored = " and ".join(f"{count} {kind}" for kind, count in counts.items())
    return f"aggregator.tokens with {stored}, perhaps with max, mean, std"


def _layers(tensors: Tensors) -> str:
    """Layers of each stage, as in "111-11"."""
    parts = []
    for part in ("encoder", "decoder"):
        counts: dict[int, set[str]] = {}
        for name in tensors:
            at = re.match(rf"{part}\.blocks\.(\d+)\.modules_dict\.(?:trans_\d\.(\d+))?", name)
            if at:
                counts.setdefault(int(at[1]), set()).update({at[2]} if at[2] else ())
        digits = "".join(str(len(counts[stage])) for stage in sorted(counts))
        parts.append(digits if part == "encoder" else digits[:-1])  # the decoder's last is a head
    return "-".join(part for part in parts if part)


def _first(tensors: Tensors, pattern: str) -> Tensor | None:
    return next((tensors[name] for name in sorted(tensors) if re.search(pattern, name)), None)
