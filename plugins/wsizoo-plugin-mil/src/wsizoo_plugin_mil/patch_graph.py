"""The graph of a slide's patches: each is joined with those in the 3 x 3 cells around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsizoo import Aggregated, Bag
from wsizoo.mil.options import check_shares
from wsizoo.ops import RowLinear, RowSequential, segment_mean, transpose_rulebook
from wsizoo_plugin_mil.initialisation import begin
from wsizoo_plugin_mil.packed import Packed, projections


@dataclass(frozen=True, eq=False)
class PatchGraph:
    """M edges, by the patch that receives; each patch is a neighbour of its own.

    Args:
        sources: (M,) int64 rows of patches that give.
        offsets: (N + 1,) int64, patch i receives from sources[offsets[i]:offsets[i + 1]].
    """

    sources: Tensor
    offsets: Tensor

    @property
    def degrees(self) -> Tensor:
        """(N,) int64, 1 to 9."""
        return self.offsets.diff()

    @property
    def targets(self) -> Tensor:
        """(M,) int64 rows of patches that receive."""
        n = len(self.offsets) - 1
        rows = torch.arange(n, device=self.sources.device)
        return rows.repeat_interleave(self.degrees, output_size=len(self.sources))

    def sums(self, values: Tensor, weights: Tensor) -> Tensor:
        """What each patch receives: the values of its neighbours, weighed. Nothing (M, W) is made.

        Args:
            values: (N, H, W). weights: (M, H).

        Returns:
            (N, H, W).
        """
        heads, edges = weights.shape[1], len(self.sources)
        step = torch.arange(heads, device=values.device)[:, None]
        summed = F.embedding_bag(
            (self.sources + step * len(values)).flatten(),  # (H M,)
            values.transpose(0, 1).flatten(0, 1),  # (H N, W)
            (self.offsets[:-1] + step * edges).flatten(),  # (H N,)
            mode="sum",
            per_sample_weights=weights.t().flatten().to(values.dtype),
        )
        return summed.unflatten(0, (heads, -1)).transpose(0, 1)


def graph_of(bags: Sequence[Bag]) -> PatchGraph:
    """The graph of these slides' patches, end to end; none reaches into another slide.

    Raises:
        BagError: a slide without coords or spacing, or with patches that share a cell.
    """
    sources, targets, n = [], [], 0
    for bag in bags:
        cells = bag.require_unique_cells()
        for near, own in transpose_rulebook(cells - 1, cells, kernel=3, stride=1).pairs:
            sources.append(near + n)
            targets.append(own + n)
        n += len(bag)
    by_target = torch.cat(targets)
    order = by_target.argsort(stable=True)
    degrees = torch.bincount(by_target, minlength=n)
    return PatchGraph(torch.cat(sources)[order], F.pad(degrees.cumsum(0), (1, 0)))


class OnGraph(Packed):
    """What GCN and GAT share: Linear + ReLU, graph layers, ReLU and dropout between them.

    A kind of layer is called with (N, E) patches and their graph.

    Returns (forward): `instances` (N, E) of the last layer; `slide` (E,) their mean; `scores` (N,)
    how far each lies along it.
    """

    uses_coords = True
    gives_instances = True
    conformance_params: ClassVar[dict[str, Any]] = {"dim": 16}

    def __init__(self, in_dim: int, dim: int, layers: Sequence[nn.Module], dropout: float) -> None:
        check_shares(type(self).__name__, dropout=dropout)
        super().__init__(in_dim, dim)
        self.embed = RowSequential(RowLinear(in_dim, dim), nn.ReLU())
        self.layers = nn.ModuleList(layers)
        self.drop = nn.Dropout(dropout)
        begin(self, "xavier")

    def run(self, features: Tensor, bags: Sequence[Bag]) -> Aggregated:
        graph = graph_of(bags)
        h = self.embed(features)  # (N_total, E)
        for i, layer in enumerate(self.layers):
            h = layer(self.drop(F.relu(h)) if i else h, graph)
        offsets = torch.tensor([0, *map(len, bags)], device=h.device).cumsum(0)
        slide = segment_mean(h, offsets)  # (B, E)
        return Aggregated(slide, lambda: projections(h, slide, bags), h)
