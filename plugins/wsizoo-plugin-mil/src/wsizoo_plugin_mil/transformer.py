"""The plain Transformer: a class token and patches under full attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wsizoo import Aggregated, Bag
from wsizoo.errors import SpecError
from wsizoo.mil.embedding import layers as embedding
from wsizoo.mil.options import check_heads, check_shares, check_sizes
from wsizoo.ops import RowLinear, RowSequential
from wsizoo_plugin_mil.initialisation import begin
from wsizoo_plugin_mil.multihead import Multihead, weights
from wsizoo_plugin_mil.packed import Packed

COMPAT = "attention-requested"


class Block(nn.Module):
    """h + attention(LN h), then h + ReLU(linear ReLU(linear LN h)) where mlp is not 0."""

    def __init__(self, dim: int, heads: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = Multihead(dim, heads, dropout)
        self.norm2 = nn.LayerNorm(dim) if mlp else None
        self.mlp = RowSequential(
            *(RowLinear(dim, mlp), nn.ReLU(), nn.Dropout(dropout), RowLinear(mlp, dim), nn.ReLU())
            if mlp
            else ()
        )

    def forward(
        self, h: Tensor, lengths: Sequence[int], first_only: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """first_only: what attention gives to a slide's first row is added to all of its rows."""
        moved, asked = self.attention(self.norm(h), lengths)
        if first_only:
            parts = torch.split(moved, list(lengths))
            moved = torch.cat([part[:1].expand(len(part), -1) for part in parts])
        h = h + moved
        return h if self.norm2 is None else h + self.mlp(self.norm2(h)), asked


class Transformer(Packed):
    """Layers of full attention over a class token and all patches, without positions.

    Args:
        in_dim: width of the features. dim: width E of the tokens.
        hidden: widths of further layers before E in the embedding.
        layers: of attention. heads: of each. mlp: width of its two layers after it; 0: none.
        dropout: of attention's weights, inside the MLP, between layers of the embedding.
        compat: "attention-requested": MIL-Lab's code gives other numbers when it is asked for
            attention too (in the first layer, what the class token gets is added to every token),
            and so does this.

    Returns (forward): `slide` (E,) the class token; `scores` (N,) what the class token pays to each
    patch in the last layer, the mean over heads, which sums to at most 1; `instances` (N, E).

    Cost: N D E and a layer N (4 E^2 + 2 N E + 2 E M) multiply-adds. The N x N weights are never
    held.
    Source: MIL-Lab, https://github.com/mahmoodlab/MIL-Lab at dfc3c17; Shao et al., 2025,
    https://arxiv.org/abs/2506.09022
    """

    gives_instances = True
    conformance_params: ClassVar[dict[str, Any]] = {"dim": 16, "mlp": 32}

    def __init__(
        self,
        in_dim: int,
        dim: int = 512,
        hidden: Sequence[int] = (),
        layers: int = 2,
        heads: int = 8,
        mlp: int = 2048,
        dropout: float = 0.25,
        compat: str | None = None,
    ) -> None:
        check_sizes("Transformer", dim=dim, hidden=hidden, layers=layers, heads=heads)
        check_sizes("Transformer", 0, mlp=mlp)
        check_shares("Transformer", dropout=dropout)
        check_heads("Transformer", dim, heads=heads)
        if compat not in (None, COMPAT):
            raise SpecError(f"Transformer's compat is {compat!r}, expected null or {COMPAT}")
        super().__init__(in_dim, dim)
        self.slip = compat == COMPAT
        self.embed = RowSequential(*embedding([in_dim, *hidden, dim], dropout, last=0.0))
        self.token = nn.Parameter(torch.randn(1, 1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, mlp, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        begin(self, "he")
        for block in self.blocks:
            nn.init.xavier_uniform_(block.attention.qkv.weight)

    def run(self, features: Tensor, bags: Sequence[Bag]) -> Aggregated:
        h, layers = self.tokens(features, bags)
        asked = layers[-1]  # the others are kept by nobody
        parts = torch.split(h, [len(bag) + 1 for bag in bags])
        heads = self.blocks[-1].attention.heads

        def scores() -> Tensor:
            pairs = [part.chunk(3, 1)[:2] for part in asked]
            return torch.cat([weights(q[:1], k, heads)[0, 1:] for q, k in pairs])

        return Aggregated(
            slide=torch.stack([part[0] for part in parts]),
            scores=scores,
            instances=torch.cat([part[1:] for part in parts]),
        )

    def tokens(
        self, features: Tensor, bags: Sequence[Bag]
    ) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """The normed tokens of all slides, the class token before each slide's patches, and what
        attention of each layer and slide is made of, see `Multihead`.
        """
        parts = torch.split(self.embed(features), [len(bag) for bag in bags])
        h = torch.cat([row for part in parts for row in (self.token[0], part)])  # (N_total + B, E)
        asked = []
        for i, block in enumerate(self.blocks):
            h, made_of = block(h, [len(bag) + 1 for bag in bags], self.slip and i == 0)
            asked.append(made_of)
        return self.norm(h), asked
