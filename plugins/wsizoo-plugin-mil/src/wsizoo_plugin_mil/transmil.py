"""TransMIL: a class token and patches under Nystrom attention, with PPEG between two layers."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wsizoo import Aggregated, Aggregator, Bag
from wsizoo.errors import SpecError
from wsizoo.mil.options import check_choice, check_heads, check_shares, check_sizes
from wsizoo.ops import RowLinear, RowSequential
from wsizoo_plugin_mil.initialisation import begin
from wsizoo_plugin_mil.nystrom import Factors, NystromAttention
from wsizoo_plugin_mil.ppeg import PPEG

HEADS = {"transmil": 8, "mil-lab": 4}  # by variant


class Block(nn.Module):
    """h + Nystrom(LN h). Heads are dim / heads wide, landmarks dim / 2, unless they are said."""

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float,
        dim_head: int | None = None,
        landmarks: int | None = None,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = NystromAttention(
            dim, heads, dim_head or dim // heads, landmarks or dim // 2, dropout=dropout
        )

    def forward(self, h: Tensor) -> tuple[Tensor, Factors]:
        moved, factors = self.attention.with_factors(self.norm(h))
        return h + moved, factors


class TransMIL(Aggregator):
    """Two layers of Nystrom attention on a square of patches in the order of the file.

    Args:
        in_dim: width of the features. dim: width E of the tokens, twice the landmarks.
        variant: "transmil", the authors'; or "mil-lab": 4 heads, scores and initialisation.
        heads: of attention; None: the variant's. layers: of attention; PPEG is after the first.
        dropout: of what attention gives, training only.

    Returns (forward): `slide` (E,) the class token; `scores` (N,), of the authors' variant what the
    class token pays to each patch in the last layer (mean over heads; no probabilities, as Nystrom
    attention may be negative), of MIL-Lab's the product of both after the first layer; `instances`
    (N, E) the tokens of the last layer. The first patches stand on the square twice, to fill it:
    what is paid to both is added up, and their token is the first.

    The pseudo-inverse couples slides that are computed together, so each is computed alone.

    Cost: N D E, two layers of `NystromAttention`, and 49 E N multiply-adds.
    Source: Shao et al., NeurIPS 2021, https://arxiv.org/abs/2106.00908, and
    https://github.com/szc19990412/TransMIL at 9d6aee5; MIL-Lab at dfc3c17.
    """

    order_matters = True
    gives_instances = True
    conformance_params: ClassVar[dict[str, Any]] = {"dim": 16}

    def __init__(
        self,
        in_dim: int,
        dim: int = 512,
        variant: str = "transmil",
        heads: int | None = None,
        layers: int = 2,
        dropout: float = 0.1,
    ) -> None:
        check_choice("TransMIL", HEADS, variant=variant)
        heads = HEADS[variant] if heads is None else heads
        check_sizes("TransMIL", dim=dim, heads=heads, layers=layers)
        check_shares("TransMIL", dropout=dropout)
        check_heads("TransMIL", dim, heads=heads)
        if dim % 2:
            raise SpecError(f"TransMIL's dim is {dim}, expected twice its landmarks")
        super().__init__(in_dim, dim)
        self.by_product = variant == "mil-lab"
        self.embed = RowSequential(RowLinear(in_dim, dim), nn.ReLU())
        self.token = nn.Parameter(torch.randn(1, 1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.positions = PPEG(dim)
        self.norm = nn.LayerNorm(dim)
        begin(self, "he" if variant == "mil-lab" else "torch")

    def param_groups(self, base_lr: float) -> list[dict[str, Any]]:
        """Biases, norms and other vectors have no weight decay, as with the authors."""
        own = [p for p in self.parameters() if p.requires_grad]
        wide, thin = [p for p in own if p.ndim > 1], [p for p in own if p.ndim <= 1]
        return [{"params": wide, "lr": base_lr}, {"params": thin, "lr": base_lr, "weight_decay": 0}]

    def forward(self, bag: Bag) -> Aggregated:
        found = self.tokens(bag.features[None])
        n = len(bag)
        normed = found["normed"][0]
        kept = {"first": found["first"]} if self.by_product else {"factors": found["factors"][-1:]}

        def scores() -> Tensor:
            paid = self.paid(kept)[0]  # (s^2,)
            if self.by_product:
                return paid[:n]
            twice = torch.zeros_like(paid[:n])
            twice[: len(paid) - n] = paid[n:]
            return paid[:n] + twice

        return Aggregated(normed[0], scores, normed[1 : 1 + n])

    def tokens(self, features: Tensor) -> dict[str, Any]:
        """(B, N, D) -> what comes after the first layer, PPEG, the last layer and its norm, each
        (B, 1 + s^2, E), and the factors of each layer's attention; slides of a batch are coupled.
        """
        h = self.embed(features)  # (B, N, E)
        edge = math.isqrt(h.shape[1] - 1) + 1
        h = torch.cat([h, h[:, : edge**2 - h.shape[1]]], 1)  # (B, s^2, E)
        h = torch.cat([self.token.expand(len(h), -1, -1), h], 1)
        found: dict[str, Any] = {"factors": []}
        for i, block in enumerate(self.blocks):
            h, factors = block(h)
            found["factors"].append(factors.detached())
            if i == 0:
                found["first"] = h
                h = torch.cat([h[:, :1], self.positions(h[:, 1:], edge, edge)], 1)
                found["placed"] = h
        return {**found, "last": h, "normed": self.norm(h)}

    def paid(self, found: dict[str, Any]) -> Tensor:
        """(B, s^2), see `scores`."""
        if self.by_product:
            first: Tensor = found["first"]
            return (first[:, 1:] @ first[:, :1].mT)[..., 0]
        row: Tensor = found["factors"][-1].token_row(0)  # (B, H, 1 + s^2)
        return row.mean(1)[:, 1:]
