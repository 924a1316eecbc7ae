"""SPAN v1: the sparse pyramid attention network of 2024, for the slide as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from wsizoo.bag import Bag, BagBatch
from wsizoo.errors import SpecError
from wsizoo.interfaces import Aggregated, Aggregator
from wsizoo.ops import segment_softmax, segment_sum, sparse_conv2d
from wsizoo_plugin_span.v1_grids import Grid, ancestors, pyramid
from wsizoo_plugin_span.v1_layers import POSITIONS, STD, Layer, axial_turns, position_bias

POOLS = ("attention", "global")


class SpanV1(Aggregator):
    """Patches -> 1x1 convolution -> layers -> (2x2 convolution, stride 2 -> layers) -> pooling.

    A layer attends within windows of 2w x 2w cells, regular and shifted by w, and through global
    tokens; see `Layer`. The top's cells are pooled by attention: a = softmax_t(u . x_t).

    Args:
        in_dim: width D of the features.
        dim: width E of all stages; the paper's is D / 4.
        heads: attention heads.
        layers: how many in each stage; each further stage halves the grid. [3]: no pyramid.
        window: w, half of a window's side in cells.
        shifted: with the shifted windows.
        position: "rpb" (learnable relative position biases), or of the paper's ablations "alibi"
            (axial), "rope" (axial), "none".
        global_tokens: M, how many; 0: none.
        pool: "attention", or "global": the mean of the global tokens instead (an ablation; the last
            layer's windows then reach nothing).
        ff_ratio: width of the feed-forward networks, in E.
        dropout: of the embedded patches and of attention weights, training only.

    Returns (forward): `slide` (E,), `scores` (N,) the pooling weight of the top's cell over each
    patch, shared equally among the patches under it (they sum to 1; pool "global": the weights with
    which the last layer's global tokens attend to the cells, mean over heads and tokens).

    Raises:
        SpecError: arguments that do not fit together.
        BagError: patches that share a cell.

    Cost: per cell of a stage (4 + 2 ff_ratio) E^2 multiply-adds a layer, and 2 E a pair of cells in
    a window; N D E for the first convolution, E^2 a cell for each other one.
    Source: Wu et al., "Memory-Efficient Sparse Pyramid Attention Networks for Whole Slide Image
    Analysis" (2024), https://arxiv.org/abs/2406.09333v1. Its code is not published. Where the paper
    is silent or at odds with itself:
        - w = 6 is half of a window's side, as in its Algorithm 1 and Fig. 2.
        - The bias table is (2w+1)^2, as stated, though offsets reach 2w-1: see `RelativeBias`.
        - Regular and shifted windows are one set of keys, no key twice; windows begin at the first
          row and column of patches.
        - Local and global attention are two softmaxes with one set of projections, summed (Eq. 8
          of SPAN 2026 sums). One token is the default, and has the width E from the start.
        - Global tokens attend to patches only, pass a convolution unchanged, and have no place:
          they are neither biased nor rotated.
        - One layer a stage, ff_ratio 2, a linear pooling score: with E = D / 4 and two classes
          2.37 M parameters, the paper's number.
        - Heads are 64 wide, layers are pre-norm with ReLU, dropout is 0.05: as in the authors' code
          of 2026. Convolutions have neither norm nor activation.
        - ALiBi is -slope (|da| + |db|); RoPE gives each axis half of a head's channels.
        - A 2x2 cell exists where any of its four does; an odd last row or column is not dropped.
    """

    uses_coords = True

    def __init__(
        self,
        in_dim: int,
        dim: int = 256,
        heads: int = 4,
        layers: Sequence[int] = (1, 1, 1),
        window: int = 6,
        shifted: bool = True,
        position: str = "rpb",
        global_tokens: int = 1,
        pool: str = "attention",
        ff_ratio: float = 2.0,
        dropout: float = 0.05,
    ) -> None:
        super().__init__(in_dim, dim)
        check_arguments(dim, heads, layers, window, position, global_tokens, pool)
        self.window, self.pattern = window, "union" if shifted else "regular"
        self.rotary = dim // heads if position == "rope" else 0
        self.embed = nn.Sequential(nn.Linear(in_dim, dim), nn.Dropout(dropout))
        self.tokens = nn.Parameter(torch.empty(global_tokens, dim)) if global_tokens else None
        if self.tokens is not None:
            nn.init.trunc_normal_(self.tokens, std=STD)
        self.halvings = nn.ModuleList(nn.Conv2d(dim, dim, 2, stride=2) for _ in layers[1:])
        hidden = int(dim * ff_ratio)
        self.stages = nn.ModuleList(
            nn.ModuleList(
                Layer(dim, heads, hidden, position_bias(position, heads, window), dropout)
                for _ in range(n)
            )
            for n in layers
        )
        self.score = nn.Linear(dim, 1, bias=False) if pool == "attention" else None

    def forward(self, bag: Bag) -> Aggregated:
        offsets = torch.tensor([0, len(bag)], device=bag.device)
        slides, scores = self.pooled(bag.features, [bag], offsets)
        return Aggregated(slides[0], scores)

    def forward_packed(self, batch: BagBatch) -> Aggregated:
        return Aggregated(*self.pooled(batch.features, batch.bags, batch.offsets))

    def pooled(
        self, features: Tensor, bags: Sequence[Bag], offsets: Tensor
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        """Slides (B, E), and what gives the scores (N_total,) when asked."""
        grids = pyramid(bags, offsets, len(self.stages), self.window, self.pattern)
        tokens, relays, heard = self.refined(self.embed(features), grids)
        top = grids[-1].offsets
        if self.score is None:
            slides, weights = relays.mean(1), heard.mean((1, 2))  # (B, E), (T,)
        else:
            weights = segment_softmax(self.score(tokens)[:, 0], top)  # (T,)
            slides = segment_sum(weights[:, None] * tokens, top)  # (B, E)
        return slides, lambda: shared(weights, ancestors(grids))

    def refined(self, tokens: Tensor, grids: Sequence[Grid]) -> tuple[Tensor, Tensor, Tensor]:
        """The top's cells (T, E), the global tokens (B, M, E), and how these attended (T, M, H)."""
        slides = len(grids[0].offsets) - 1
        own = tokens.new_empty(0, self.out_dim) if self.tokens is None else self.tokens
        relays = own.expand(slides, -1, -1)  # (B, M, E)
        heard = tokens.new_empty(0)
        for i, (grid, layers) in enumerate(zip(grids, self.stages, strict=True)):
            if grid.rulebook is not None:
                conv = self.halvings[i - 1]
                tokens = sparse_conv2d(tokens, conv.weight, grid.rulebook, conv.bias)
            turns = axial_turns(grid.windows.cells, self.rotary) if self.rotary else None
            assert isinstance(layers, nn.ModuleList)
            for layer in layers:
                tokens, relays, heard = layer(tokens, relays, grid, turns)
        return tokens, relays, heard


def shared(weights: Tensor, over: Tensor) -> Tensor:
    """(N,) the weight (T,) of the cell over each patch, divided by the patches under it."""
    return (weights / torch.bincount(over, minlength=len(weights)))[over]


def check_arguments(
    dim: int,
    heads: int,
    layers: Sequence[int],
    window: int,
    position: str,
    global_tokens: int,
    pool: str,
) -> None:
    """Raise SpecError unless the arguments of `SpanV1` make a network."""
    if position not in POSITIONS:
        raise SpecError(f"aggregator.position is {position!r}, expected one of {POSITIONS}")
    if pool not in POOLS:
        raise SpecError(f"aggregator.pool is {pool!r}, expected one of {POOLS}")
    if not layers or min(layers) < 1:
        raise SpecError(
            f"aggregator.layers is {list(layers)}, expected layers of each stage: [1,1,1]"
        )
    if heads < 1 or dim % heads or (position == "rope" and dim // heads % 4):
        four = ", four times as many for RoPE" if position == "rope" else ""
        raise SpecError(
            f"aggregator.dim is {dim} for {heads} heads, expected a multiple of the heads{four}"
        )
    if window < 1:
        raise SpecError(f"aggregator.window is {window}, expected at least 1 cell")
    if global_tokens < (pool == "global"):
        raise SpecError(
            f"aggregator.global_tokens is {global_tokens}, expected "
            f"{'at least 1, which pool=global reads' if pool == 'global' else '0 or more'}"
        )
