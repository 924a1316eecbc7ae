"""LongMIL's published file: clamped ALiBi in three layers of full attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wsizoo import Bag
from wsizoo.bag_checks import check_any, check_extent
from wsizoo.errors import BagError
from wsizoo.ops import alibi_slopes
from wsizoo_plugin_longmil.blocks import Block, Where, received
from wsizoo_plugin_longmil.model import OnGrid, Scores
from wsizoo_plugin_longmil.options import check_value, refuse
from wsizoo_plugin_longmil.places import packed
from wsizoo_plugin_longmil.positions import (
    FAR,
    LENGTH,
    Clamped,
    Turns,
    published_turns,
)
from wsizoo_plugin_longmil.rows import linear

MLP_RATIO = 4.0
LAYERS = 3


class LongMILV1(OnGrid):
    """Three transformer layers over all patches of a slide, their mean, a norm.

    A cell is `unit` level-0 px, of coordinates from the smallest ones on, rounded half to even. To
    a head's score is added minus its slope times the distance in whole cells, and 100 cells beyond
    10. In the first two layers the lowest of all these numbers becomes minus infinity: a mask of
    the head with the largest slope alone, beyond 10 cells, or, on a slide that is no larger,
    between its farthest patches.

    Args:
        in_dim: width of the features. dim: width E. heads: H.
        positions: "alibi"; "alibi_rope"; or "rope": rotated, and no number is added at all.
        unit: edge of a cell in level-0 px; 896 is two patches in the settings of the code.
        attention_dropout: share of attention weights that is dropped in training.
        compat: None; "published": slides that the code cannot place, or for which it gives NaN, are
            refused.

    Returns (forward): `slide` (E,), `scores` (N,), which sum to 1: the attention that a patch
    receives in the last layer, mean over heads and over the patches that pay it.

    Raises:
        SpecError: options that do not fit together.
        BagError: no patches or coords, another width, NaN; with compat="published", all patches in
            one cell, or more than 300 cells along an axis.

    Cost: 12 E^2 multiply-adds a patch and layer, 2 E a pair of patches and layer.
    Source: https://github.com/invoker-LL/Long-MIL at 457b1cf, the first version of LongMIL
    (https://arxiv.org/abs/2311.12885). It states no licence; none of it is here.
    Differs: nothing is dropped outside of training; where all patches lie in one cell nothing is
    masked (the code gives NaN); grids may be larger than its tables of 300 x 300.
    """

    whose = "longmil-v1"
    uses_spacing: ClassVar[bool] = False
    conformance_params: ClassVar[dict[str, Any]] = {"dim": 16}
    slopes: Tensor

    def __init__(
        self,
        in_dim: int,
        dim: int = 384,
        heads: int = 4,
        positions: str = "alibi",
        unit: float = 896.0,
        attention_dropout: float = 0.05,
        compat: str | None = None,
    ) -> None:
        super().__init__(in_dim, dim)
        given = {"dim": dim, "heads": heads, "positions": positions, "unit": unit}
        given |= {"attention_dropout": attention_dropout, "compat": compat}
        for name, value in given.items():
            check_value(name, value, self.whose)
        odd = dim // heads % 2 or dim % 4
        if dim % heads or (odd and positions != "alibi"):
            need = f"a multiple of heads ({heads}), with RoPE of 2 heads and of 4"
            refuse("dim", dim, need, self.whose)
        self.positions, self.unit, self.compat = positions, unit, compat
        self.embed = nn.Linear(in_dim, dim)
        self.layers = nn.ModuleList(
            Block(dim, heads, MLP_RATIO, attention_dropout) for _ in range(LAYERS)
        )
        self.norm = nn.LayerNorm(dim)
        self.register_buffer("slopes", alibi_slopes(heads), persistent=False)

    @property
    def cell_px(self) -> float:
        """Edge of a cell in level-0 px, for `wsizoo diagnose`."""
        return self.unit

    def run(self, features: Tensor, bags: Sequence[Bag]) -> tuple[Tensor, Scores]:
        (bag,) = bags
        stages, scores = self.stages(features, self.cells_of(bag))
        return self.norm(stages[-1].mean(0, keepdim=True)), scores

    def stages(self, features: Tensor, cells: Tensor) -> tuple[list[Tensor], Scores]:
        """What each layer gives, (N, E), and what gives the scores.

        Args:
            features: (N, D). cells: (N, 2) int64 from (0, 0).
        """
        among = packed([cells]).everywhere
        near, far = self.biases(cells)
        x, found = torch.relu(linear(features, self.embed)), []
        by = self.turns(cells, x.dtype)
        for layer, bias in zip(self.layers, (near, near, far), strict=True):
            x, q, k = layer(x, Where(among, bias, by))
            found.append(x)
        met = q.detach(), k.detach(), among, far
        return found, lambda: received(*met)

    def biases(self, cells: Tensor) -> tuple[Clamped | None, Clamped | None]:
        """What is added to scores in the first two layers, and in the last."""
        if self.positions == "rope":
            return None, None
        far = Clamped.of(self.slopes)
        farthest = int(far.squares(_widest(cells)).max())
        if farthest == 0:
            return far, far
        return far.masked(far.by_square[:, farthest].min()), far

    def turns(self, cells: Tensor, dtype: torch.dtype) -> Turns | None:
        """By which queries and keys are rotated."""
        if self.positions == "alibi":
            return None
        return published_turns(cells, self.out_dim, len(self.slopes), dtype)

    def cells_of(self, bag: Bag) -> Tensor:
        """(N, 2) int64, from (0, 0). Raises BagError, see the class."""
        check_any(bag, "nothing to attend to")
        if bag.coords is None:
            return bag.grid()  # which says what is missing
        check_extent(bag, self.unit)
        # in float32, as the published code reads coordinates, and rounds
        cells = torch.round((bag.coords - bag.coords.amin(0)).float() / self.unit).long()
        if self.compat is not None:
            _check_published(bag, cells, self.positions)
        return cells


def _widest(cells: Tensor) -> Tensor:
    """Offsets (n, 2) among which is the longest, or one beyond `FAR` where there is such a one."""
    extent = cells.amax(0)
    if int(extent.max()) > FAR:
        return extent[None]
    distinct: Tensor = torch.unique(cells, dim=0)  # at most 11 x 11
    return (distinct[:, None] - distinct).flatten(0, 1)


def _check_published(bag: Bag, cells: Tensor, positions: str) -> None:
    last = int(cells.max())
    if last >= LENGTH:
        raise BagError(
            f"{bag.slide_id}: patches span {last + 1} cells, the published LongMIL has tables of "
            f"{LENGTH} x {LENGTH}; aggregator.compat=null computes larger ones"
        )
    if last == 0 and positions != "rope":
        raise BagError(
            f"{bag.slide_id}: all {len(bag)} patches lie in one cell, for which the published "
            "LongMIL gives NaN; aggregator.compat=null masks none of them"
        )
