"""What a Pixel-Mamba network is made of: every option under one name, checked before it runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Self

from wsizoo.errors import SpecError
from wsizoo.names import suggest
from wsizoo_plugin_pixelmamba.expansion import grid_after

KINDS = ("", "h-cat", "v-cat", "h-avg", "v-avg")
_START = ("h-cat", "v-cat", "h-cat", "v-cat")
_BODY = (*_START, "", "h-cat", "", "v-cat", "", "")
_END = ("", "", "v-avg", "", "", "", "", "", "h-avg", "", "v-cat", "", "")
SIZES: Mapping[str, tuple[str, ...]] = {
    "6m": (*_BODY, "h-avg", *_END),
    "21m": (*_BODY, "h-cat", *_END),
    "tiny": (*_START, "h-avg", "v-avg", "h-avg", "v-avg", "h-avg", "v-avg", "", ""),
}
CHOICES: Mapping[str, tuple[str, ...]] = {
    "inner": ("snake", "raster"),
    "outer": ("snake", "raster"),
    "shift_padding": ("replicate", "zeros"),
    "cls_mode": ("repeat", "zero", "linear"),
    "split": ("alternate", "halves"),
    "shared": ("mean", "pairwise"),
    "count": ("input", "current"),
    "norm": ("rms", "layer"),
}
FLAGS = ("final_norm", "share_conv", "divide_out", "vim_init", "recompute")
WHOLE = ("d_state", "d_conv", "expand", "working_mb")


@dataclass(frozen=True)
class Settings:
    """Options of a network. Those of a choice that the paper leaves open name it: C1 to C14.

    Args:
        size: "6m" and "21m" as published (Tables 7 and 8), "tiny" (0.2 M, ours) for tests.
        layers: instead of the size's: what follows each layer, "" nothing, or a Token Expansion
            "h-cat", "v-cat", "h-avg", "v-avg".
        alpha: share of the regions that Region Fusion takes away in all layers together, 0 to 1.
        inner: order of the pixels of a region, "snake" or "raster". (C1)
        outer: order of the regions, likewise. (C2)
        shift_padding: of the shift merging, "replicate" or "zeros". (C5)
        cls_mode: how CLS tokens double, "repeat", "zero" or "linear". (C6)
        split: who is gallery and who probe, "alternate" or "halves". (C7)
        shared: regions fused into one are their "mean", or averaged "pairwise". (C8)
        count: n in k = ceil(alpha n / L): regions of the "input", or "current" ones. (C11)
        share_conv: one convolution for both directions. (C12)
        divide_out: halve the sum of both directions, as published Vim models do. (C12)
        norm: before each block and at the end, "rms" or "layer". norm_eps: theirs. (C13)
        final_norm: norm the CLS tokens before they are averaged. (C13)
        d_state, d_conv, expand: N, W and E / C of the blocks. (C12)
        vim_init: the backward direction starts with Vim's larger time steps.
        recompute: training keeps the inputs of layers only, and computes the rest again.
        working_mb: memory within which one layer works, in MB, on a GPU eight times as much: longer
            sequences are run in pieces (where `recompute` is off, in evaluation only). Results do
            not depend on it.

    C3, C9, C10 and C14 have no option; C4 is `serialise(pad_value)`, C15 the survival head's.
    """

    size: str = "6m"
    layers: tuple[str, ...] = ()
    alpha: float = 0.8
    inner: str = "snake"
    outer: str = "snake"
    shift_padding: str = "replicate"
    cls_mode: str = "repeat"
    split: str = "alternate"
    shared: str = "mean"
    count: str = "input"
    share_conv: bool = False
    divide_out: bool = False
    norm: str = "rms"
    norm_eps: float = 1e-5
    final_norm: bool = True
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    vim_init: bool = False
    recompute: bool = True
    working_mb: int = 64

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Settings of these options. Raises SpecError: an unknown name, the near one named."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise SpecError(
                    f"pixel-mamba has no option '{name}'. {suggest(name, known, 'It takes: ')}"
                )
        return cls(**options)

    def __post_init__(self) -> None:
        """Raises SpecError: a value that an option cannot have."""
        if self.size not in SIZES:
            _refuse("size", self.size, f"one of {', '.join(SIZES)}")
        given = self.layers
        if isinstance(given, str) or not isinstance(given, Sequence) or set(given) - set(KINDS):
            _refuse("layers", given, f"a list of {', '.join(repr(kind) for kind in KINDS)}")
        object.__setattr__(self, "layers", tuple(given) or SIZES[self.size])
        for name, values in CHOICES.items():
            if getattr(self, name) not in values:
                _refuse(name, getattr(self, name), " or ".join(values))
        for name in FLAGS:
            if not isinstance(getattr(self, name), bool):
                _refuse(name, getattr(self, name), "true or false")
        for name in WHOLE:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                _refuse(name, value, "a whole number from 1")
        for name, most in (("alpha", 1.0), ("norm_eps", math.inf)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                _refuse(name, value, "a number")
            if not 0 <= value <= most:
                _refuse(name, value, f"a number from 0 to {most:g}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Width C of the tokens of each layer."""
        widths = [3]
        for kind in self.layers[:-1]:
            widths.append(widths[-1] * (2 if kind.endswith("cat") else 1))
        return tuple(widths)

    @property
    def out_dim(self) -> int:
        return self.widths[-1] * (2 if self.layers[-1].endswith("cat") else 1)

    @property
    def step(self) -> tuple[int, int]:
        """What height and width of a region must be multiples of."""
        down = "".join(kind[:1] for kind in self.layers)
        return 2 ** down.count("v"), 2 ** down.count("h")

    def grids(self, region: tuple[int, int]) -> list[tuple[int, int]]:
        """Token grid (h, w) of a region in each layer, and after the last."""
        grids = [region]
        for kind in self.layers:
            grids.append(grid_after(grids[-1], kind))
        return grids

    def dt_rank(self, width: int) -> int:
        return math.ceil(width / 16)


def _refuse(name: str, value: Any, need: str) -> NoReturn:
    raise SpecError(f"pixel-mamba: {name} is {value!r}, expected {need}")
