"""ILRA-MIL: patches meet through a few latent vectors, gated, and are pooled by attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsizoo import Aggregated, Bag
from wsizoo.errors import SpecError
from wsizoo.mil.options import check_choice, check_heads, check_sizes
from wsizoo.ops import RowLinear, row_linear
from wsizoo_plugin_mil.initialisation import begin
from wsizoo_plugin_mil.multihead import Multihead, attend, weights
from wsizoo_plugin_mil.packed import Packed

RANKS = {"ilra": 1, "mil-lab": 64}  # by variant


class Attention(nn.Module):
    """Rows of one kind ask rows of another: (n, A), (m, B) -> (n, E), slide by slide.

    o = q + attention(q, k, v), LN, o + ReLU(linear o), LN, and times SiLU(linear of what asks).

    Args:
        asking, asked: widths A and B. dim: E. norm: with both LN. gated: with the last factor.
    """

    def __init__(
        self, asking: int, asked: int, dim: int, heads: int, norm: bool, gated: bool
    ) -> None:
        super().__init__()
        self.query = RowLinear(asking, dim)
        self.key, self.value = RowLinear(asked, dim), RowLinear(asked, dim)
        self.attention = Multihead(dim, heads)
        self.norm0 = nn.LayerNorm(dim) if norm else nn.Identity()
        self.over = RowLinear(dim, dim)
        self.norm1 = nn.LayerNorm(dim) if norm else nn.Identity()
        self.gate = RowLinear(asking, dim) if gated else None

    def forward(
        self, asking: Tensor, asked: Tensor, lengths: Sequence[int], of: Sequence[int]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """lengths, of: rows of each slide in `asking` and in `asked`. Also queries and keys."""
        query = self.query(asking)  # (n, E)
        inner = self.attention.qkv
        wq, wk, wv = inner.weight.chunk(3)
        bq, bk, bv = inner.bias.chunk(3)
        # two layers in a row are one, which spares a product of all patches each
        wide = torch.cat([wk @ self.key.weight, wv @ self.value.weight])
        bias = torch.cat([wk @ self.key.bias + bk, wv @ self.value.bias + bv])
        keys = row_linear(asked, wide, bias).split(list(of))  # (m, 2 E) of each slide
        queries = row_linear(query, wq, bq).split(list(lengths))
        pairs = [(q, *kv.chunk(2, 1)) for q, kv in zip(queries, keys, strict=True)]
        mixed = torch.cat([attend(q, k, v, self.attention.heads) for q, k, v in pairs])
        out = self.norm0(query + self.attention.out(mixed))
        out = self.norm1(out + torch.relu(self.over(out)))
        if self.gate is not None:
            out = out * F.silu(self.gate(asking))
        return out, [(q.detach(), k.detach()) for q, k, _ in pairs]


class LowRank(nn.Module):
    """R latent vectors ask the patches, then the patches ask them: (N, D) -> (N, E)."""

    def __init__(self, in_dim: int, dim: int, rank: int, heads: int, norm: bool) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.empty(1, rank, dim))
        self.collect = Attention(dim, in_dim, dim, heads, norm, gated=True)
        self.spread = Attention(in_dim, dim, dim, heads, norm, gated=True)

    def forward(self, patches: Tensor, lengths: Sequence[int]) -> Tensor:
        rank, slides = self.latent.shape[1], len(lengths)
        latent = self.latent[0].repeat(slides, 1)  # (B R, E)
        latent, _ = self.collect(latent, patches, [rank] * slides, lengths)
        return cast(Tensor, self.spread(patches, latent, lengths, [rank] * slides)[0])


class ILRA(Packed):
    """Layers of low-rank attention between all patches, then one learned query that pools them.

    Args:
        in_dim: width of the features. dim: width E of the patches after the first layer.
        variant: "ilra", the authors'; or "mil-lab": rank 64, norms always, another initialisation.
        rank: latent vectors R of a layer; None: the variant's, 1 or 64.
        layers: of low-rank attention. heads: of each attention. norm: with its LayerNorms.

    Returns (forward): `slide` (E,), `scores` (N,) what the query pays to each patch, the mean over
    heads, which sums to 1, `instances` (N, E).

    Cost: a layer from width D: N (4 D E + 3 E^2 + 4 R E) multiply-adds, and 2 N E^2 for pooling.
    Source: Xiang and Zhang, ICLR 2023, https://openreview.net/forum?id=01KmhBsEPFO, and
    https://github.com/jinxixiang/low_rank_wsi at bb45b9b, its configuration (the class has rank 2
    and no norms); MIL-Lab at dfc3c17.
    Differs: two linear layers in a row are one product.
    """

    gives_instances = True
    conformance_params: ClassVar[dict[str, Any]] = {"dim": 16, "rank": 2}

    def __init__(
        self,
        in_dim: int,
        dim: int = 256,
        variant: str = "ilra",
        rank: int | None = None,
        layers: int = 2,
        heads: int = 8,
        norm: bool = True,
    ) -> None:
        check_choice("ILRA", RANKS, variant=variant)
        rank = RANKS[variant] if rank is None else rank
        lab = variant == "mil-lab"
        check_sizes("ILRA", dim=dim, rank=rank, layers=layers, heads=heads)
        check_heads("ILRA", dim, heads=heads)
        if lab and not norm:
            raise SpecError("ILRA's norm is false, but MIL-Lab's variant always has norms")
        super().__init__(in_dim, dim)
        widths = [in_dim] + [dim] * layers
        self.layers = nn.ModuleList(LowRank(one, dim, rank, heads, norm) for one in widths[:-1])
        self.query = nn.Parameter(torch.empty(1, 1, dim))
        self.pool = Attention(dim, dim, dim, heads, norm, gated=False)
        self.begin(lab)

    def begin(self, lab: bool) -> None:
        begin(self, "he" if lab else "xavier-weights")
        for module in self.modules():
            if isinstance(module, Multihead):
                nn.init.xavier_uniform_(module.qkv.weight)
                nn.init.zeros_(module.qkv.bias)
                nn.init.zeros_(module.out.bias)
            if isinstance(module, LowRank):
                nn.init.xavier_uniform_(module.latent)
        nn.init.xavier_uniform_(self.query)

    def run(self, features: Tensor, bags: Sequence[Bag]) -> Aggregated:
        lengths = [len(bag) for bag in bags]
        patches = features
        for layer in self.layers:
            patches = layer(patches, lengths)
        queries = self.query[0].expand(len(bags), -1)  # (B, E)
        slide, pairs = self.pool(queries, patches, [1] * len(bags), lengths)
        heads = self.pool.attention.heads
        return Aggregated(
            slide=slide,
            scores=lambda: torch.cat([weights(q, k, heads)[0] for q, k in pairs]),
            instances=patches,
        )
