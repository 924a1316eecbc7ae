"""WiKG: a graph of each patch and those most similar to it, with knowledge-aware attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wsizoo import Aggregated, Bag
from wsizoo.mil.options import check_choice, check_shares, check_sizes, preset
from wsizoo.mil.pooling import projection
from wsizoo.ops import RowLinear, RowSequential
from wsizoo_plugin_mil.initialisation import begin
from wsizoo_plugin_mil.neighbours import most_similar
from wsizoo_plugin_mil.packed import Packed, split

VARIANTS: dict[str, dict[str, Any]] = {
    "wikg": {"k": 6, "pool": "mean", "dropout": 0.3},
    "mil-lab": {"k": 4, "pool": "attention", "dropout": 0.25},
}
MIXES = {"bi-interaction": 2, "gcn": 1, "sage": 1}  # linear layers of each
POOLS = ("mean", "max", "attention")
AT_ONCE = 2**23  # numbers of neighbours' vectors that are held at once


class WiKG(Packed):
    """Each patch gathers from the patches whose tail its head is most like, then all are pooled.

    Args:
        in_dim: width of the features. dim: width E of the patches.
        variant: "wikg", the authors'; or "mil-lab": ReLU in the embedding, and another attention.
            The next three are the variant's where they are None.
        k: neighbours of a patch; a slide of fewer patches gives all. pool: "mean", "max" or
            "attention". dropout: of the patches before it, training only.
        mix: "bi-interaction", "gcn" or "sage": how a patch is joined with what it gathered.

    Returns (forward): `slide` (E,), `scores` (N,) the attention of the pooling, which sums to 1; of
    the mean, the projection of a patch on it; of the maximum, the share of channels whose maximum
    a patch holds. `instances` (N, E).

    The attention of the authors' code is the product of two sums, over a neighbour's channels and
    over the gate's; MIL-Lab's is their scalar product.

    Cost: N D E + 4 N E^2 + N^2 E + 5 N k E multiply-adds. N x N similarities are never held.
    Source: Li et al., CVPR 2024, https://arxiv.org/abs/2403.07719, and
    https://github.com/WonderLandxD/WiKG at eb3144f, its training script (the class has "attention"
    for pool); MIL-Lab at dfc3c17.
    Differs: of equally similar patches the first are neighbours; the published code fails on
    slides of fewer than k patches.
    """

    gives_instances = True
    conformance_params: ClassVar[dict[str, Any]] = {"dim": 16}

    def __init__(
        self,
        in_dim: int,
        dim: int = 512,
        variant: str = "wikg",
        k: int | None = None,
        pool: str | None = None,
        dropout: float | None = None,
        mix: str = "bi-interaction",
    ) -> None:
        check_choice("WiKG", MIXES, mix=mix)
        check_choice("WiKG", (None, *POOLS), pool=pool)
        told = preset("WiKG", VARIANTS, variant, k=k, pool=pool, dropout=dropout)
        check_sizes("WiKG", 2 if told["pool"] == "attention" else 1, dim=dim)  # half as wide
        check_sizes("WiKG", k=k)
        check_shares("WiKG", dropout=dropout)
        super().__init__(in_dim, dim)
        self.k, self.mix, self.pool = told["k"], mix, told["pool"]
        self.lab = variant == "mil-lab"
        act: nn.Module = nn.ReLU() if self.lab else nn.LeakyReLU()
        self.embed = RowSequential(RowLinear(in_dim, dim), act)
        self.head, self.tail = RowLinear(dim, dim), RowLinear(dim, dim)
        wide = 2 * dim if mix == "sage" else dim
        self.mixes = nn.ModuleList(RowLinear(wide, dim) for _ in range(MIXES[mix]))
        self.drop = nn.Dropout(told["dropout"])
        narrow = RowLinear(dim, dim // 2), nn.LeakyReLU(), nn.Linear(dim // 2, 1)
        self.attention = nn.Sequential(*narrow) if self.pool == "attention" else None
        self.norm = nn.LayerNorm(dim)
        begin(self, "he" if self.lab else "torch")

    def run(self, features: Tensor, bags: Sequence[Bag]) -> Aggregated:
        head, tail = self.ends(features, bags)
        gathered, _ = self.gather(head, tail, self.neighbours(head, tail, bags))
        instances = self.drop(self.joined(head, gathered))  # (N_total, E)
        parts = split(instances, bags)
        shares = self.shares(parts)
        sums = torch.stack([self.pooled(part, w) for part, w in zip(parts, shares, strict=True)])

        def scores() -> Tensor:
            found = zip(parts, shares, sums.detach(), strict=True)
            return torch.cat([shown(part.detach(), w, at, self.pool) for part, w, at in found])

        return Aggregated(self.norm(sums), scores, instances)

    def ends(self, features: Tensor, bags: Sequence[Bag]) -> tuple[Tensor, Tensor]:
        """(N_total, E) each: the heads of patches, which look for neighbours, and their tails."""
        parts = split(self.embed(features), bags)
        h = torch.cat([(part + part.mean(0)) / 2 for part in parts])
        return self.head(h), self.tail(h)

    def neighbours(self, head: Tensor, tail: Tensor, bags: Sequence[Bag]) -> list[Tensor]:
        """(n, k) int64 of each slide, rows of its own, the most similar first."""
        pairs = zip(split(head.detach(), bags), split(tail.detach(), bags), strict=True)
        return [most_similar(one, other, self.k) for one, other in pairs]

    def gather(
        self, head: Tensor, tail: Tensor, neighbours: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """What each patch gathers (N_total, E), and its likeness to its neighbours (slides end to
        end, each (n, k) flat); a few rows at a time, computed again for their gradient.
        """
        found, start = [], 0
        for index in neighbours:
            end = start + len(index)
            few = max(1, AT_ONCE // (index.shape[1] * tail.shape[1]))
            for rows, near in zip(head[start:end].split(few), index.split(few), strict=True):
                one = checkpoint(
                    gathered, rows, tail[start:end], near, self.lab, use_reentrant=False
                )
                found.append(cast(tuple[Tensor, Tensor], one))
            start = end
        vectors, likeness = zip(*found, strict=True)
        return torch.cat(vectors), torch.cat([each.flatten() for each in likeness])

    def joined(self, head: Tensor, gathered: Tensor) -> Tensor:
        if self.mix == "sage":
            return F.leaky_relu(self.mixes[0](torch.cat([head, gathered], 1)))
        found = F.leaky_relu(self.mixes[0](head + gathered))
        if self.mix == "bi-interaction":
            found = found + F.leaky_relu(self.mixes[1](head * gathered))
        return found

    def shares(self, parts: Sequence[Tensor]) -> list[Tensor | None]:
        """The attention (n,) of each slide, None where the pooling has none."""
        if self.attention is None:
            return [None] * len(parts)
        raw = self.attention(torch.cat(list(parts)))[:, 0].split([len(part) for part in parts])
        return [torch.softmax(one, 0) for one in raw]

    def pooled(self, patches: Tensor, share: Tensor | None) -> Tensor:
        if share is not None:
            return share @ patches
        return patches.mean(0) if self.pool == "mean" else patches.amax(0)


def gathered(
    head: Tensor, tails: Tensor, index: Tensor, dot: bool = False
) -> tuple[Tensor, Tensor]:
    """(n, E) heads, (m, E) tails, (n, k) -> what is gathered (n, E), likeness (n, k).

    dot: MIL-Lab's attention.
    """
    near = F.embedding(index, tails)  # (n, k, E)
    likeness = (near @ head[:, :, None])[..., 0] * head.shape[1] ** -0.5
    share = torch.softmax(likeness, 1)[..., None]
    relation = share * near if dot else torch.lerp(head[:, None], near, share)
    gate = torch.tanh(head[:, None] + relation)
    knowledge = (near * gate).sum(2) if dot else near.sum(2) * gate.sum(2)
    return (torch.softmax(knowledge, 1)[:, None] @ near)[:, 0], likeness


def shown(patches: Tensor, share: Tensor | None, slide: Tensor, pool: str) -> Tensor:
    """(n,) the scores of one slide."""
    if share is not None:
        return share.detach()
    if pool == "mean":
        return projection(patches, slide)
    winners = patches == slide  # (n, E)
    return (winners / winners.sum(0)).mean(1)
