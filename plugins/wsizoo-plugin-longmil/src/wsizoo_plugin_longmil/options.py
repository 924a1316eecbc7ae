"""What a LongMIL is made of: every option under one name, checked before anything is built."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from wsizoo.errors import SpecError
from wsizoo.names import suggest

POSITIONS = ("none", "alibi", "rope", "both")
WITH_ALIBI = ("alibi", "both")
CHOICES: Mapping[str, tuple[Any, ...]] = {
    "local_position": POSITIONS,
    "global_position": POSITIONS,
    "position": POSITIONS,
    "positions": ("alibi", "alibi_rope", "rope"),
    "distance": ("exact", "v1"),
    "pooling": ("2x2", "none"),
    "global_layer": ("attention", "cross-scan-mamba"),
    "compat": (None, "published"),
}
POSITIVE = ("dim", "heads", "layers")
PLURAL = ("heads", "layers", "local_blocks", "positions", "slopes")
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {},
    "v1": {
        "heads": 4,
        "radius": 20.0,
        "local_position": "alibi",
        "distance": "v1",
        "attention_dropout": 0.05,
    },
}


@dataclass(frozen=True)
class Settings:
    """The options of `longmil`; defaults are those of the preset "paper".

    Args:
        in_dim: width of the features.
        dim: width E of the tokens.
        heads: of attention, in all layers.
        local_blocks: layers that attend within the radius.
        radius: of local attention, Euclidean and inclusive, in patches; may be fractional, or 0:
            a patch attends to itself, and to others that lie in the same place.
        local_position, global_position: "none", "alibi" (minus slope times distance is added to a
            score), "rope" (queries and keys are rotated by their place), or "both". Distances are
            in cells of the layer's own grid: patches, or blocks of 2x2 behind the pooling.
        slopes: of ALiBi, a number a head; None: those of its paper.
        distance: of ALiBi: "exact", or "v1": rounded down to whole blocks of two patches, and 100
            of them beyond 10.
        mlp_ratio: width of the feed-forward layers, in E; 0: there are none.
        attention_dropout: share of attention weights that is dropped in training.
        pooling: before the global layer: "2x2": mean of the patches in each block of 2x2 cells;
            "none": no pooling.
        global_layer: "attention" among all tokens of a slide, or "cross-scan-mamba": a state-space
            layer along rows and columns, linear in their number; it has no positions, no heads and
            no feed-forward layer.

    Raises:
        SpecError: an option that does not exist, or a value that it cannot have; one that was
            changed (`of`) and has no effect, since no layer is there that reads it.
    """

    in_dim: int
    dim: int = 384
    heads: int = 1
    local_blocks: int = 2
    radius: float = 10.0
    local_position: str = "none"
    global_position: str = "alibi"
    slopes: tuple[float, ...] | None = None
    distance: str = "exact"
    mlp_ratio: float = 4.0
    attention_dropout: float = 0.0
    pooling: str = "2x2"
    global_layer: str = "attention"

    @classmethod
    def of(cls, in_dim: int, preset: str, options: Mapping[str, Any]) -> Settings:
        """The preset's options, where these do not say otherwise. Raises SpecError."""
        if preset not in PRESETS:
            refuse("preset", preset, f"one of {', '.join(PRESETS)}")
        known = [f.name for f in dataclasses.fields(cls) if f.name != "in_dim"]
        for name in options:
            if name not in known:
                hint = suggest(name, [*known, "preset"], "It takes: ")
                raise SpecError(f"longmil has no argument '{name}'. {hint}")
        made, plain = (cls(in_dim, **{**PRESETS[preset], **own}) for own in (options, {}))
        for name, why in made._unread().items():
            if name in options and options[name] != getattr(plain, name):
                _refuse_unread(name, options[name], why)
        return made

    def _unread(self) -> dict[str, str]:
        """Options that no layer reads, and why."""
        near, far = self.local_blocks > 0, self.global_layer == "attention"
        alibi = near and self.local_position in WITH_ALIBI
        alibi |= far and self.global_position in WITH_ALIBI
        rules = (
            (near, "with local_blocks=0", ("radius", "local_position")),
            (far, f"with global_layer={self.global_layer}", ("global_position",)),
            (
                near or far,
                "without layers of attention",
                ("heads", "mlp_ratio", "attention_dropout"),
            ),
            (alibi, "without ALiBi in any layer", ("slopes", "distance")),
        )
        return {name: why for read, why, names in rules if not read for name in names}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_value(field.name, getattr(self, field.name))
        rotated = self.local_position in ("rope", "both") and self.local_blocks > 0
        if self.global_layer == "attention":
            rotated |= self.global_position in ("rope", "both")
        check_widths(self.dim, self.heads, self.mlp_ratio, rotated)
        if self.slopes is not None:
            object.__setattr__(self, "slopes", check_slopes(self.slopes, self.heads))


def check_value(name: str, value: Any, whose: str = "longmil") -> None:
    """Raise SpecError unless the option of this component may have this value."""
    if name in CHOICES and not any(value == each for each in CHOICES[name]):
        refuse(name, value, f"one of {', '.join(map(str, CHOICES[name]))}", whose)
    if name in POSITIVE and not (type(value) is int and value >= 1):
        refuse(name, value, "a whole number from 1", whose)
    if name == "local_blocks" and not (type(value) is int and value >= 0):
        refuse(name, value, "a whole number from 0", whose)
    if name in ("radius", "mlp_ratio") and not (_is_number(value) and value >= 0):
        refuse(name, value, "a number from 0", whose)
    if name == "unit" and not (_is_number(value) and value > 0):
        refuse(name, value, "a number above 0, in level-0 px", whose)
    if name == "attention_dropout" and not (_is_number(value) and 0 <= value < 1):
        refuse(name, value, "a share from 0 to below 1", whose)


def check_widths(
    dim: int, heads: int, mlp_ratio: float, rotated: bool, whose: str = "longmil"
) -> None:
    """Raise SpecError unless heads share the width evenly, and RoPE a head's."""
    if dim % heads:
        refuse("dim", dim, f"a multiple of heads ({heads})", whose)
    if rotated and dim // heads % 4:
        need = f"a number for which RoPE finds pairs along two axes: dim {dim} / heads in fours"
        refuse("heads", heads, need, whose)
    if 0 < dim * mlp_ratio < 1:
        refuse("mlp_ratio", mlp_ratio, f"0, or at least 1 / dim ({dim})", whose)


def check_slopes(
    slopes: Any, heads: int, whose: str = "longmil", alibi: bool = True
) -> tuple[float, ...]:
    """The slopes as numbers. Raises SpecError unless ALiBi reads one a head, from 0 on."""
    if not alibi:
        _refuse_unread("slopes", slopes, "without ALiBi in any layer", whose)
    listed = isinstance(slopes, Sequence) and not isinstance(slopes, str)
    if not listed or len(slopes) != heads or not all(_is_number(x) and x >= 0 for x in slopes):
        refuse("slopes", slopes, f"a list of numbers from 0, one a head (heads={heads})", whose)
    return tuple(float(slope) for slope in slopes)


def _is_number(value: Any) -> bool:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and math.isfinite(value)


def refuse(name: str, value: Any, expected: str, whose: str = "longmil") -> NoReturn:
    """Raise SpecError: this option's value, and what was expected."""
    raise SpecError(f"{whose}'s {name} {_is(name)} {value!r}, expected {expected}")


def _refuse_unread(name: str, value: Any, why: str, whose: str = "longmil") -> NoReturn:
    raise SpecError(
        f"{whose}'s {name} {_is(name)} {value!r}, which has no effect {why}: leave it out"
    )


def _is(name: str) -> str:
    return "are" if name in PLURAL else "is"
