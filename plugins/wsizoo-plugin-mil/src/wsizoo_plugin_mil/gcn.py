"""Our GCN: graph convolutions over neighbouring patches."""

from __future__ import annotations

from torch import Tensor, nn

from wsizoo.mil.options import check_sizes
from wsizoo.ops import RowLinear
from wsizoo_plugin_mil.patch_graph import OnGraph, PatchGraph


class GraphConvolution(nn.Module):
    """S h W + b with S = G^-1/2 (A + I) G^-1/2, G the degrees of A + I: (N, E) -> (N, E)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = RowLinear(dim, dim)

    def forward(self, h: Tensor, graph: PatchGraph) -> Tensor:
        root = graph.degrees.to(h.dtype).rsqrt()  # (N,)
        weights = root[graph.targets] * root[graph.sources]  # (M,)
        mixed: Tensor = self.linear(graph.sums(h[:, None], weights[:, None])[:, 0])
        return mixed


class GCN(OnGraph):
    """A baseline of patch graphs, with a vector a patch; no reproduction of a published network.

    Args:
        in_dim: width of the features. dim: width E. layers: of graph convolution.
        dropout: between the layers, training only.

    Returns (forward): `slide` (E,), `scores` (N,), `instances` (N, E), see `OnGraph`.

    Cost: N D E + layers N (E^2 + 9 E) multiply-adds.
    Source: Kipf and Welling, ICLR 2017, https://arxiv.org/abs/1609.02907, Eq. 2; three layers over
    8-adjacent patches as the segmentation baselines of SPAN (2026), which state no more.
    Differs: width, activation, dropout, embedding and the mean over patches are our choice.
    """

    def __init__(self, in_dim: int, dim: int = 256, layers: int = 3, dropout: float = 0.25) -> None:
        check_sizes("GCN", dim=dim, layers=layers)
        super().__init__(in_dim, dim, [GraphConvolution(dim) for _ in range(layers)], dropout)
