"""RRT-MIL: patches are embedded anew by attention within regions and across them, then pooled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from wsizoo import Aggregated, Bag
from wsizoo.errors import SpecError
from wsizoo.mil.options import check_choice, check_heads, check_shares, check_sizes
from wsizoo.ops import RowLinear, RowSequential
from wsizoo_plugin_mil.attention_pooling import EMBEDDING_ACTIVATIONS, AttentionScores, pooled
from wsizoo_plugin_mil.initialisation import begin
from wsizoo_plugin_mil.packed import Packed, split
from wsizoo_plugin_mil.region_attention import AcrossRegions, WithinRegions
from wsizoo_plugin_mil.transmil import Block

VARIANTS = ("rrt", "mil-lab")
LANDMARKS = 256  # of MIL-Lab's


class Layer(nn.Module):
    """h + attention(LN h), then h + MLP(LN h) where ffn is set: (n, E) -> (n, E)."""

    def __init__(self, attention: nn.Module, dim: int, ffn: bool, dropout: float) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(dim), attention
        self.norm2 = nn.LayerNorm(dim) if ffn else None
        layers = RowLinear(dim, 4 * dim), nn.GELU(), nn.Dropout(dropout)
        self.mlp = nn.Sequential(
            *(*layers, RowLinear(4 * dim, dim), nn.Dropout(dropout)) if ffn else ()
        )

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.attention(self.norm(h))
        return h if self.norm2 is None else h + self.mlp(self.norm2(h))


class NystromLayer(Block):
    """A layer of TransMIL for the tokens of one slide."""

    def forward(self, h: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(h[None])[0][0]


def regional(
    layers: int,
    within: tuple[int, int, float, int, int],
    across: tuple[int, int, float, int, bool],
) -> list[nn.Module]:
    """The attention of each layer: within regions, and at last across them."""
    return [*(WithinRegions(*within) for _ in range(layers - 1)), AcrossRegions(*across)]


class RRT(Packed):
    """Attention within regions, attention across them, and attention pooling of what they give.

    Regions are squares of patches in the order of the file, filled up with zeros that take part.

    Args:
        in_dim: width of the features. dim: width E of the tokens.
        variant: "rrt", the authors'; or "mil-lab", which has none of their attention: layers of
            Nystrom attention with 256 landmarks, and pooling. It reads neither of the next eight.
        regions: a side, of the layers within regions. epeg: reach of their EPEG, odd; 0: none.
        slots: vectors a region of the layer across regions, always of 8 x 8 regions.
        cross_heads: of that layer. slot_mlp: its scores are of two layers.
        shortcut: the embedding is added again before the last norm.
        ffn: each attention is followed by an MLP. layer_dropout: after each of both, training only.
        layers: of attention, the last of which is the one across regions. heads: of all others.
        dim_head: width of a head of MIL-Lab's; None: dim / heads.
        activation: of the pooling: "tanh", "relu", "gelu". gated, bias: of the pooling.
        embed_activation: "relu" or "gelu". dropout: after the embedding, training only.

    Returns (forward): `slide` (E,), `scores` (N,) the weights of the pooling, which sum to 1,
    `instances` (N, E) the patches embedded anew.

    Cost: with T = (8 ceil(sqrt(N) / 8))^2, P^2 = T / 64, K slots, k of EPEG: N D E + 4 T E^2 +
    2 T P^2 E + k T E + 3 T K E + 256 K E^2 + 8192 K E + 129 N E multiply-adds.
    Source: Tang et al., CVPR 2024, https://arxiv.org/abs/2402.17228, Section 3, and
    https://github.com/DearCaat/RRT-MIL at 7ecbdfb; MIL-Lab at dfc3c17.
    Differs: EPEG convolves queries instead of scores, which gives the same; the pooling's tanh is
    that of the published commands (in the class it is relu).
    """

    order_matters = True
    gives_instances = True
    conformance_params: ClassVar[dict[str, Any]] = {"dim": 16, "regions": 2}

    def __init__(
        self,
        in_dim: int,
        dim: int = 512,
        variant: str = "rrt",
        regions: int = 8,
        epeg: int = 15,
        slots: int = 3,
        cross_heads: int = 8,
        slot_mlp: bool = False,
        shortcut: bool = False,
        ffn: bool = False,
        layer_dropout: float = 0.1,
        layers: int = 2,
        heads: int = 8,
        dim_head: int | None = None,
        activation: str = "tanh",
        gated: bool = False,
        bias: bool = False,
        embed_activation: str = "relu",
        dropout: float = 0.25,
    ) -> None:
        within = dim, heads, layer_dropout, epeg, regions
        across = dim, cross_heads, layer_dropout, slots, slot_mlp
        _check(variant, embed_activation, within, across, layers, dim_head, dropout)
        super().__init__(in_dim, dim)
        self.lab = lab = variant == "mil-lab"
        self.shortcut = shortcut and not lab
        act = EMBEDDING_ACTIVATIONS[embed_activation]()
        self.embed = RowSequential(RowLinear(in_dim, dim), act, nn.Dropout(dropout))
        made = (
            [NystromLayer(dim, heads, 0.0, dim_head, LANDMARKS) for _ in range(layers)]
            if lab
            else [Layer(each, dim, ffn, layer_dropout) for each in regional(layers, within, across)]
        )
        self.layers, self.norm = nn.ModuleList(made), nn.LayerNorm(dim)
        activation = "relu" if lab else activation
        self.attention = AttentionScores(dim, 128, 1, gated, 0.0, bias, activation)
        begin(self, "he" if lab else "xavier")

    def run(self, features: Tensor, bags: Sequence[Bag]) -> Aggregated:
        parts = [self.steps(part)[-1] for part in split(self.embed(features), bags)]
        instances = torch.cat(parts)  # (N_total, E)
        weights, sums = pooled(split(self.attention(instances), bags), instances)
        return Aggregated(
            slide=sums[:, 0],
            scores=lambda: torch.cat([each.detach()[:, 0] for each in weights]),
            instances=instances,
        )

    def steps(self, embedded: Tensor) -> list[Tensor]:
        """Tokens (n, E) of one slide after each layer, and after the last norm."""
        h, found = embedded, []
        for layer in self.layers:
            h = layer(h)
            found.append(h)
        return [*found, cast(Tensor, self.norm(h + embedded if self.shortcut else h))]


def _check(
    variant: str,
    embed_activation: str,
    within: tuple[int, int, float, int, int],
    across: tuple[int, int, float, int, bool],
    layers: int,
    dim_head: int | None,
    dropout: float,
) -> None:
    dim, heads, layer_dropout, epeg, regions = within
    _, cross_heads, _, slots, slot_mlp = across
    check_choice("RRT", VARIANTS, variant=variant)
    check_choice("RRT", EMBEDDING_ACTIVATIONS, embed_activation=embed_activation)
    check_sizes("RRT", 4 if slot_mlp else 1, dim=dim)  # its MLP is a quarter as wide
    check_sizes("RRT", heads=heads, cross_heads=cross_heads, layers=layers)
    check_sizes("RRT", regions=regions, slots=slots, dim_head=dim_head)
    check_sizes("RRT", 0, epeg=epeg)
    check_shares("RRT", dropout=dropout, layer_dropout=layer_dropout)
    check_heads("RRT", dim, heads=heads, cross_heads=cross_heads)
    if epeg and epeg % 2 == 0:
        raise SpecError(f"RRT's epeg is {epeg}, expected an odd number, or 0 for none")
