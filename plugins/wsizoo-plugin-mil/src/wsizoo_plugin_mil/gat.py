"""Our GAT: graph attention over neighbouring patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsizoo.mil.options import check_heads, check_sizes
from wsizoo.ops import RowLinear, segment_softmax
from wsizoo_plugin_mil.patch_graph import OnGraph, PatchGraph

SLOPE = 0.2  # of LeakyReLU


class GraphAttention(nn.Module):
    """(N, E) -> (N, H W): each head's sum of W h over neighbours, by a softmax of scores.

    The score of j for i is LeakyReLU(a_gives . W h_j + a_takes . W h_i).

    Args:
        dim: width E. heads: H. width: W of each. average: heads are averaged, -> (N, W).
    """

    def __init__(self, dim: int, heads: int, width: int, average: bool) -> None:
        super().__init__()
        self.heads, self.average = heads, average
        self.linear = RowLinear(dim, heads * width, bias=False)
        self.gives, self.takes = (
            nn.Parameter(nn.init.xavier_normal_(self.linear.weight.new_empty(heads, width)))
            for _ in range(2)
        )
        self.bias = nn.Parameter(self.linear.weight.new_zeros(width if average else heads * width))

    def forward(self, h: Tensor, graph: PatchGraph) -> Tensor:
        values = self.linear(h).unflatten(1, (self.heads, -1))  # (N, H, W)
        weight = self.linear.weight.unflatten(0, (self.heads, -1))  # (H, W, E)
        # a . (W h) is h . (W^T a): the second is a product as wide as there are heads
        gives, takes = (
            h @ torch.einsum("hwe,hw->eh", weight, own) for own in (self.gives, self.takes)
        )  # (N, H)
        scores = F.leaky_relu(gives[graph.sources] + takes[graph.targets], SLOPE)  # (M, H)
        heads = graph.sums(values, segment_softmax(scores, graph.offsets))
        return (heads.mean(1) if self.average else heads.flatten(1)) + self.bias


class GAT(OnGraph):
    """A baseline of patch graphs, with a vector a patch; no reproduction of a published network.

    Args:
        in_dim: width of the features. dim: width E. layers: of graph attention.
        heads: of each layer, of width E / heads side by side; of the last, of width E, averaged.
        dropout: between the layers, training only.

    Returns (forward): `slide` (E,), `scores` (N,), `instances` (N, E), see `OnGraph`.

    Cost: N D E + (layers - 1 + heads) N (E^2 + 9 E) multiply-adds.
    Source: Velickovic et al., ICLR 2018, https://arxiv.org/abs/1710.10903, Eq. 3 to 6; three layers
    over 8-adjacent patches as the segmentation baselines of SPAN (2026), which state no more.
    Differs: widths, heads, activation, dropout, embedding and the mean over patches are our choice.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int = 256,
        layers: int = 3,
        heads: int = 4,
        dropout: float = 0.25,
    ) -> None:
        check_sizes("GAT", dim=dim, layers=layers, heads=heads)
        check_heads("GAT", dim, heads=heads)
        first = [GraphAttention(dim, heads, dim // heads, False) for _ in range(layers - 1)]
        super().__init__(in_dim, dim, [*first, GraphAttention(dim, heads, dim, True)], dropout)
