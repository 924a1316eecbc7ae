"""LongMIL: local, then global attention on the slide plane (2024); and full attention beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wsizoo import Aggregated, Aggregator, Bag, BagBatch
from wsizoo.bag_checks import check_finite, check_width
from wsizoo.mamba import param_groups
from wsizoo.ops import Neighbourhood, OffsetBias, alibi_slopes, rotary_turns, segment_mean
from wsizoo_plugin_longmil.blocks import Block, Where, received
from wsizoo_plugin_longmil.cross_scan import CrossScanMamba
from wsizoo_plugin_longmil.options import (
    WITH_ALIBI,
    Settings,
    check_slopes,
    check_value,
    check_widths,
)
from wsizoo_plugin_longmil.places import Places, place
from wsizoo_plugin_longmil.positions import Alibi, Clamped
from wsizoo_plugin_longmil.rows import linear

TWO = 2  # patches; the unit of distances in version 1
Scores = Callable[[], Tensor | None]


class OnGrid(Aggregator):
    """What the methods of this plugin share: bags in, the mean of tokens out."""

    uses_coords = True
    whose: ClassVar[str]  # options and features, in errors

    def forward(self, bag: Bag) -> Aggregated:
        found = self._aggregate(bag.features, [bag])
        assert found.slide is not None
        found.slide = found.slide[0]
        return found

    def _aggregate(self, features: Tensor, bags: Sequence[Bag]) -> Aggregated:
        for bag in bags:
            check_width(bag, self.in_dim, self.whose)
        slide, scores = self.run(features, bags)
        check_finite(slide, bags, self.whose)
        return Aggregated(slide, scores)

    def run(self, features: Tensor, bags: Sequence[Bag]) -> tuple[Tensor, Scores]:
        """Features (N_total, D) -> slide vectors (B, E), and what gives scores when asked."""
        raise NotImplementedError


class _Packed(OnGrid):
    """Several slides at once, with ALiBi and RoPE by name."""

    slopes: Tensor

    def forward_packed(self, batch: BagBatch) -> Aggregated:
        return self._aggregate(batch.features, list(batch))

    def where(
        self, neighbourhood: Neighbourhood, places: Places, position: str, bias: OffsetBias
    ) -> Where:
        """A layer's `Where` on these places, with the position terms of this name."""
        rotated = position in ("rope", "both")
        width = self.out_dim // len(self.slopes)
        dtype = next(self.parameters()).dtype
        return Where(
            neighbourhood,
            bias if position in WITH_ALIBI else None,
            rotary_turns(places.cells, width, dtype) if rotated else None,
        )


class LongMIL(_Packed):
    """Local attention within a radius, pooling of 2x2 patches, one global layer, mean, norm.

    Args:
        in_dim: width of the features.
        preset: "paper": as the paper states it; "v1": what its published code sets, brought to
            this layout: 4 heads, ALiBi in whole units everywhere, a radius of 20 patches, dropout.
        options: see `Settings`; each wins over the preset's.

    Returns (forward): `slide` (E,), `scores` (N,), which sum to 1: the attention that a token
    receives in the global layer, mean over heads and over the tokens that pay it (the slide vector
    is their mean); each patch has that of the token over it, undivided, scaled to the sum. None for
    "cross-scan-mamba", which pays no attention. No `instances`: the method is one of slides.

    Patches may share a cell: they are neighbours at distance 0, and each counts in the pooling.

    Cost: (4 + 2 mlp_ratio) E^2 multiply-adds a token and layer, 2 E a pair of patches within the
    radius and local layer, and 2 E a pair of pooled tokens.
    Source: Li et al., "Rethinking Transformer for Long Contextual Histopathology Whole Slide Image
    Analysis", NeurIPS 2024, https://arxiv.org/abs/2410.14195. Its code is not published. Where the
    paper is silent: pre-norm blocks with residuals and feed-forward layers, as in the code of its
    first version; the pooling is a mean over the patches that are there, so that borders of tissue
    keep their scale; the radius is in patches; the grid begins at a slide's smallest coordinates.
    """

    whose = "longmil"
    options_type: ClassVar[type] = Settings
    conformance_params: ClassVar[dict[str, Any]] = {"dim": 16, "radius": 2.5}

    def __init__(self, in_dim: int, preset: str = "paper", **options: Any) -> None:
        settings = Settings.of(in_dim, preset, options)
        super().__init__(in_dim, settings.dim)
        self.settings = settings

        def block() -> Block:
            sizes = settings.dim, settings.heads, settings.mlp_ratio
            return Block(*sizes, settings.attention_dropout)

        self.embed = nn.Linear(in_dim, settings.dim)
        self.local = nn.ModuleList(block() for _ in range(settings.local_blocks))
        self.glob: nn.Module
        if settings.global_layer == "attention":
            self.glob = block()
        else:
            self.glob = CrossScanMamba(settings.dim)
        self.norm = nn.LayerNorm(settings.dim)
        slopes = alibi_slopes(settings.heads)
        if settings.slopes is not None:
            slopes = torch.tensor(settings.slopes)
        self.register_buffer("slopes", slopes, persistent=False)

    def param_groups(self, base_lr: float) -> list[dict[str, Any]]:
        return param_groups(self, base_lr)

    def run(self, features: Tensor, bags: Sequence[Bag]) -> tuple[Tensor, Scores]:
        places = place(bags)
        x = self.local_tokens(features, places)
        if self.settings.pooling == "none":
            coarse, tokens, spread = places, x, lambda shares: shares
        else:
            coarse = pooled = places.pooled()
            tokens, spread = pooled.mean(x), pooled.spread
        tokens, shares = self.global_tokens(tokens, coarse)
        slide = self.norm(segment_mean(tokens, coarse.offsets))  # (B, E)

        def scores() -> Tensor | None:
            found = shares()
            return None if found is None else spread(found)

        return slide, scores

    def local_tokens(self, features: Tensor, places: Places) -> Tensor:
        """(N, D) -> (N, E), what the last local layer gives."""
        x = torch.relu(linear(features, self.embed))
        if not len(self.local):
            return x
        disk, position = places.disk(self.settings.radius), self.settings.local_position
        where = self.where(disk, places, position, self.alibi(TWO))
        for block in self.local:
            x, _, _ = block(x, where)
        return x

    def global_tokens(self, tokens: Tensor, places: Places) -> tuple[Tensor, Scores]:
        """(T, E) anew, and what gives the share of attention (T,) that each received."""
        if self.settings.global_layer != "attention":
            return self.glob(tokens, places.cells, places.offsets), lambda: None
        unit = TWO if self.settings.pooling == "none" else 1
        position = self.settings.global_position
        where = self.where(places.everywhere, places, position, self.alibi(unit))
        tokens, q, k = self.glob(tokens, where)
        met = q.detach(), k.detach(), places.everywhere, where.bias
        return tokens, lambda: received(*met)

    def alibi(self, unit: int) -> OffsetBias:
        """unit: of version 1's distances, in cells."""
        if self.settings.distance == "v1":
            return Clamped.of(self.slopes, unit)
        return Alibi(self.slopes)


class FullAttention(_Packed):
    """Full attention among all patches of a slide, layer after layer; mean, norm.

    Args:
        in_dim: width of the features. dim: width E of the tokens.
        heads, layers: of attention.
        position: "rope", "alibi", "both" or "none", see `Settings`; in patches.
        slopes: of ALiBi, a number a head; None: those of its paper.
        mlp_ratio: width of the feed-forward layers, in E; 0: there are none.
        attention_dropout: share of attention weights that is dropped in training.

    Returns (forward): `slide` (E,), `scores` (N,), which sum to 1: the attention that a patch
    receives in the last layer, mean over heads and over the patches that pay it.

    Cost: as `LongMIL`, with 2 E multiply-adds a layer for every pair of patches.
    Source: the comparison "Full Attention" of LongMIL (2024), two layers of RoFormer (Su et al.
    2021, https://arxiv.org/abs/2104.09864); its embedding follows both axes of the plane.
    """

    whose = "full-attention"
    conformance_params: ClassVar[dict[str, Any]] = {"dim": 16}

    def __init__(
        self,
        in_dim: int,
        dim: int = 384,
        heads: int = 1,
        layers: int = 2,
        position: str = "rope",
        slopes: Sequence[float] | None = None,
        mlp_ratio: float = 4.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__(in_dim, dim)
        given = {"dim": dim, "heads": heads, "layers": layers, "position": position}
        given |= {"mlp_ratio": mlp_ratio, "attention_dropout": attention_dropout}
        for name, value in given.items():
            check_value(name, value, self.whose)
        check_widths(dim, heads, mlp_ratio, position in ("rope", "both"), self.whose)
        self.position = position
        self.embed = nn.Linear(in_dim, dim)
        self.layers = nn.ModuleList(
            Block(dim, heads, mlp_ratio, attention_dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)
        own = alibi_slopes(heads)
        if slopes is not None:
            own = torch.tensor(check_slopes(slopes, heads, self.whose, position in WITH_ALIBI))
        self.register_buffer("slopes", own, persistent=False)

    def run(self, features: Tensor, bags: Sequence[Bag]) -> tuple[Tensor, Scores]:
        places = place(bags)
        where = self.where(places.everywhere, places, self.position, Alibi(self.slopes))
        x = torch.relu(linear(features, self.embed))
        for block in self.layers:
            x, q, k = block(x, where)
        met = q.detach(), k.detach(), places.everywhere, where.bias
        return self.norm(segment_mean(x, places.offsets)), lambda: received(*met)
