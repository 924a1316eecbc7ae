"""Mean and max pooling of patches after a linear embedding: the simplest aggregators."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsizoo.bag import Bag, BagBatch
from wsizoo.interfaces import Aggregated, Aggregator
from wsizoo.mil.embedding import layers
from wsizoo.mil.options import check_shares, check_sizes
from wsizoo.ops import RowSequential, segment_max, segment_mean


class _Pooling(Aggregator):
    """Embed each patch, then pool.

    Args:
        in_dim: width D of the features.
        dim: width E of the embedding; None: no embedding, the features themselves (E = D).
        dropout: after each layer of the embedding, training only.
        hidden: widths of further embedding layers before that of width `dim`, Linear + ReLU each.
    """

    gives_instances = True

    def __init__(
        self,
        in_dim: int,
        dim: int | None = 512,
        dropout: float = 0.0,
        hidden: Sequence[int] = (),
    ) -> None:
        check_sizes(type(self).__name__, dim=dim, hidden=hidden)
        check_shares(type(self).__name__, dropout=dropout)
        widths = [in_dim, *hidden, *([] if dim is None else [dim])]
        super().__init__(in_dim, widths[-1])
        self.embed = RowSequential(*layers(widths, dropout)) if widths[1:] else nn.Identity()

    def pool(self, instances: Tensor) -> Tensor:
        """(N, E) of one slide -> (E,)."""
        raise NotImplementedError

    def pool_packed(self, instances: Tensor, offsets: Tensor) -> Tensor:
        """(N_total, E) -> (B, E)."""
        raise NotImplementedError

    def scores(self, instances: Tensor, slide: Tensor) -> Tensor:
        """(N,) how much each patch of one slide gave to its vector."""
        raise NotImplementedError

    def forward(self, bag: Bag) -> Aggregated:
        instances = self.embed(bag.features)  # (N, E)
        slide = self.pool(instances)  # (E,)
        return Aggregated(slide, lambda: self.scores(instances, slide), instances)

    def forward_packed(self, batch: BagBatch) -> Aggregated:
        instances = self.embed(batch.features)  # (N_total, E)
        slide = self.pool_packed(instances, batch.offsets)  # (B, E)

        def scores() -> Tensor:
            cuts = batch.offsets.tolist()
            pairs = itertools.pairwise(cuts)
            return torch.cat(
                [self.scores(instances[a:b], slide[i]) for i, (a, b) in enumerate(pairs)]
            )

        return Aggregated(slide, scores, instances)


def projection(patches: Tensor, slide: Tensor) -> Tensor:
    """(N, E), (E,) -> (N,): how far each patch lies along the slide's vector."""
    along: Tensor = patches @ slide / (slide.norm() + 1e-12)
    return along


class MeanPooling(_Pooling):
    """The mean of the embedded patches. `scores`: projection of a patch on the slide vector."""

    def pool(self, instances: Tensor) -> Tensor:
        return instances.mean(0)

    def pool_packed(self, instances: Tensor, offsets: Tensor) -> Tensor:
        pooled: Tensor = segment_mean(instances, offsets)
        return pooled

    def scores(self, instances: Tensor, slide: Tensor) -> Tensor:
        return projection(instances, slide)


class MaxPooling(_Pooling):
    """The maximum of each channel. `scores`: share of channels whose maximum a patch holds."""

    def pool(self, instances: Tensor) -> Tensor:
        return instances.amax(0)

    def pool_packed(self, instances: Tensor, offsets: Tensor) -> Tensor:
        pooled: Tensor = segment_max(instances, offsets)
        return pooled

    def scores(self, instances: Tensor, slide: Tensor) -> Tensor:
        winners = instances == slide  # (N, E)
        share: Tensor = winners / winners.sum(0).clamp(min=1)
        return share.mean(1)
