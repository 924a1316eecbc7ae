"""Values that an option of SPAN takes, whatever the others are."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from wsizoo.errors import SpecError

ATTENTION = ("long", "long_noshift", "swin", "tradswin")
ACTIVATION = ("relu", "gelu", "silu", "elu", "leakyrelu", "tanh", "sigmoid")
CHOICES: Mapping[str, tuple[Any, ...]] = {
    "attention": ATTENTION,
    "decoder_attention": ATTENTION,
    "positions": ("rpb", "alibi", "rope", "none"),
    "activation": ACTIVATION,
    "input_activation": (None, *ACTIVATION),
    "pool_activation": ACTIVATION,
    "global_path": ("identity", "proj", "kernel"),
    "down": ("dwpatchconv", "patchconv", "patchmerge", "linear", "identity"),
    "up": ("pixelshuffle", "patchinvs", "dwpatchinvs"),
    "edge": ("none", "count", "partial"),
    "conv_norm": ("pre", "post"),
    "skip": ("concat", "add", "none"),
    "pooling": ("multi_addition", "concat", "mean", "last", "addition", "multiattn"),
    "compat": (None, "published"),
}
POSITIVE = (
    *("dim", "head_dim", "widening", "kernel", "stride", "dilation", "conv_groups"),
    "pool_divisor",
)
WIDEST = 16  # half_window; pairs within a window grow with its fourth power
FLAGS = (
    *("share_qkv", "conv_bias", "input_bias", "input_norm", "input_dropout_first"),
    *("skip_after_layers", "shifted"),
)
SHARES = (
    *("attention_dropout", "dropout", "drop_path", "input_dropout", "pool_dropout"),
    "head_dropout",
)
NUMBERS = ("edge_eps", "ff_ratio", "input_ratio")
SAME_GRID = ("linear", "identity")  # blocks that leave the cells as they are
READ_GLOBALS = ("multi_addition", "concat", "mean", "last")  # poolings of global tokens alone
NORMED = ("multi_addition", "concat", "addition", "multiattn")  # poolings with a norm, by default
STATISTICS = ("max", "mean", "std")


def check_value(name: str, value: Any, whose: str = "span") -> None:
    """Raise SpecError unless the option of this component may have this value."""
    if name in CHOICES and not any(value == each for each in CHOICES[name]):
        refuse(name, value, f"one of {', '.join(map(str, CHOICES[name]))}", whose)
    if name in POSITIVE and not (type(value) is int and value >= 1):
        refuse(name, value, "a whole number from 1", whose)
    if name == "half_window" and not (type(value) is int and 1 <= value <= WIDEST):
        need = f"a whole number from 1 to {WIDEST}: memory grows with its fourth power"
        refuse(name, value, need, whose)
    if name in FLAGS and not isinstance(value, bool):
        refuse(name, value, "true or false", whose)
    if name == "pool_norm" and not (value is None or isinstance(value, bool)):
        refuse(name, value, "true, false or null", whose)
    if name in SHARES and not (_is_number(value) and 0 <= value < 1):
        refuse(name, value, "a share from 0 to below 1", whose)
    if name in NUMBERS and not (_is_number(value) and 0 <= value < math.inf):
        refuse(name, value, "a number from 0", whose)
    if name == "table_std" and not (_is_number(value) and 0 < value < math.inf):
        refuse(name, value, "a number above 0", whose)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def token_kind(
    token: str | float, lenient: bool = False, whose: str = "span"
) -> tuple[str, float] | None:
    """A global token's kind (max, mean, std, random, fixed, learnable) and standard deviation.

    Args:
        lenient: None for what is no token, as the published code leaves it out; else SpecError.
    """
    text = str(token).strip().lower()
    if text in STATISTICS:
        return text, 0.0
    found = re.fullmatch(r"(?s)(?:(fix|lrn)[:_]?)?(.*)", text)
    assert found is not None
    kind = {"fix": "fixed", "lrn": "learnable", None: "random"}[found[1]]
    try:
        spread = 1e-4 if found[1] and not found[2] else float(found[2])
        if math.isfinite(spread) and spread >= 0:
            return kind, spread
    except ValueError:
        pass
    if lenient:
        return None
    refuse("tokens", token, "max, mean, std, a number, fix<number> or lrn<number>", whose)


def refuse(name: str, value: Any, expected: str, whose: str = "span") -> NoReturn:
    """Raise SpecError: this option's value, and what was expected."""
    raise SpecError(f"{whose}'s {name} is {value!r}, expected {expected}")
