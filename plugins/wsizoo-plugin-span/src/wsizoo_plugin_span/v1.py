"""SPAN v1: the sparse pyramid attention network of 2024, for the slide as a whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wsizoo.bag import Bag, BagBatch
from wsizoo.bag_checks import check_finite, check_width
from wsizoo.interfaces import Aggregated, Aggregator
from wsizoo.ops import segment_softmax, segment_sum, sparse_conv2d
from wsizoo_plugin_span.cells import cells_of
from wsizoo_plugin_span.options import check_value, refuse
from wsizoo_plugin_span.pyramid import Plan, Pyramid, Step, build
from wsizoo_plugin_span.v1_layers import STD, Layer, position_bias

WHOSE = "span-v1"  # options, in errors
POOLINGS = ("attention", "global")
HALVING = Step(kernel=2, stride=2, dilation=1)


class CornerPlan(Plan):
    """Grids that begin at a slide's first row and column, and end where the last halving ends."""

    def pads(self, length: int) -> tuple[int, int]:
        return 0, -length % self.step.stride ** len(self.downs)


class SpanV1(Aggregator):
    """Patches -> 1x1 convolution -> layers -> (2x2 convolution, stride 2 -> layers) -> pooling.

    A layer attends within windows of 2w x 2w cells, regular and shifted by w, and through global
    tokens; see `Layer`. The top's cells are pooled by attention: a = softmax_t(u . x_t).

    Args:
        in_dim: width D of the features.
        dim: width E of all stages; default D / 4.
        head_dim: width of an attention head.
        layers: one digit a stage; each further stage halves the grid. "3": no pyramid.
        half_window: w, half of a window's side in cells, at most 16.
        shifted: with the shifted windows.
        positions: "rpb" (learnable relative position biases), or of the paper's ablations "alibi"
            (axial), "rope" (axial), "none".
        global_tokens: M, how many; 0: none.
        pooling: "attention", or "global": the mean of the global tokens instead (an ablation; the
            last layer's windows then reach nothing).
        ff_ratio: width of the feed-forward networks, in E.
        attention_dropout, input_dropout: of attention weights, and of the embedded patches;
            training only.

    Returns (forward): `slide` (E,), `scores` (N,) the pooling weight of the top's cell over each
    patch, undivided, scaled to sum to 1 (pooling "global": the weights with which the last layer's
    global tokens attend to the cells, mean over heads and tokens).

    Raises:
        SpecError: arguments that do not fit together.
        BagError: no patches, another width, NaN; patches that share a cell or lie on no grid.

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
          of SPAN 2026 sums). One global token is the default, and has the width E from the start.
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
    conformance_params: ClassVar[dict[str, Any]] = {"dim": 16, "head_dim": 8, "half_window": 2}

    def __init__(
        self,
        in_dim: int,
        dim: int | None = None,
        head_dim: int = 64,
        layers: str | int = "111",
        half_window: int = 6,
        shifted: bool = True,
        positions: str = "rpb",
        global_tokens: int = 1,
        pooling: str = "attention",
        ff_ratio: float = 2.0,
        attention_dropout: float = 0.05,
        input_dropout: float = 0.05,
    ) -> None:
        dim = in_dim // 4 if dim is None else dim
        super().__init__(in_dim, dim)
        check_values(dim=dim, head_dim=head_dim, half_window=half_window, shifted=shifted)
        check_values(positions=positions, ff_ratio=ff_ratio)
        check_values(attention_dropout=attention_dropout, input_dropout=input_dropout)
        check_layers(str(layers), pooling, global_tokens)
        check_widths(dim, head_dim, ff_ratio, positions)
        counts, heads = [int(digit) for digit in str(layers)], dim // head_dim
        self.plan = CornerPlan(HALVING, (HALVING,) * (len(counts) - 1), half_window)

        def layer() -> Layer:
            bias = position_bias(positions, heads, half_window)
            pattern, rotary = "union" if shifted else "regular", positions == "rope"
            return Layer(dim, heads, int(dim * ff_ratio), pattern, bias, rotary, attention_dropout)

        self.embed = nn.Sequential(nn.Linear(in_dim, dim), nn.Dropout(input_dropout))
        self.stages = nn.ModuleList(nn.ModuleList(layer() for _ in range(n)) for n in counts)
        self.halvings = nn.ModuleList(nn.Conv2d(dim, dim, 2, stride=2) for _ in counts[1:])
        self.tokens = nn.Parameter(torch.empty(global_tokens, dim)) if global_tokens else None
        if self.tokens is not None:
            nn.init.trunc_normal_(self.tokens, std=STD)
        self.score = nn.Linear(dim, 1, bias=False) if pooling == "attention" else None

    def forward(self, bag: Bag) -> Aggregated:
        slides, scores = self.pooled(bag.features, [bag])
        return Aggregated(slides[0], scores)

    def forward_packed(self, batch: BagBatch) -> Aggregated:
        return Aggregated(*self.pooled(batch.features, batch.bags))

    def pooled(self, features: Tensor, bags: Sequence[Bag]) -> tuple[Tensor, Callable[[], Tensor]]:
        """Slides (B, E), and what gives the scores (N_total,) when asked."""
        for bag in bags:
            check_width(bag, self.in_dim, WHOSE)
        features = features.to(next(self.parameters()).dtype)
        pyramid = build([cells_of(bag) for bag in bags], self.plan)
        tokens, relays, heard = self.refined(self.embed(features), pyramid)
        top = pyramid.levels[-1]
        if self.score is None:
            slides, weights = relays.mean(1), heard.mean((1, 2))  # (B, E), (T,)
        else:
            weights = segment_softmax(self.score(tokens)[:, 0], top.offsets)  # (T,)
            slides = segment_sum(weights[:, None] * tokens, top.offsets)  # (B, E)
        check_finite(slides, bags, WHOSE)
        return slides, lambda: pyramid.to_patches({len(pyramid.levels) - 1: weights})

    def refined(self, tokens: Tensor, pyramid: Pyramid) -> tuple[Tensor, Tensor, Tensor]:
        """The top's cells (T, E), the global tokens (B, M, E), and how these attended (T, M, H).

        Args:
            tokens: (N_total, E), the embedded patches.
        """
        own = tokens.new_empty(0, self.out_dim) if self.tokens is None else self.tokens
        relays, heard = own.expand(pyramid.levels[0].n_slides, -1, -1), own  # (B, M, E)
        for i, (level, layers) in enumerate(zip(pyramid.levels, self.stages, strict=True)):
            if i:
                conv, book = self.halvings[i - 1], pyramid.rulebooks[i - 1]
                tokens = sparse_conv2d(tokens, conv.weight, book, conv.bias)
            assert isinstance(layers, nn.ModuleList)
            for layer in layers:
                tokens, relays, heard = layer(tokens, relays, level)
        return tokens, relays, heard


def check_values(**given: Any) -> None:
    """Raise SpecError for values that `check_value` refuses."""
    for name, value in given.items():
        check_value(name, value, WHOSE)


def check_layers(layers: str, pooling: str, global_tokens: int) -> None:
    """Raise SpecError for no stages, an unknown pooling, or tokens that it cannot use."""
    if pooling not in POOLINGS:
        refuse("pooling", pooling, f"one of {', '.join(POOLINGS)}", WHOSE)
    if not re.fullmatch("[1-9]+", layers):
        refuse("layers", layers, 'a digit from 1 a stage, such as "111"', WHOSE)
    if type(global_tokens) is not int or global_tokens < 0:
        refuse("global_tokens", global_tokens, "a whole number from 0", WHOSE)
    if pooling == "global" and global_tokens < 1:
        need = "at least 1 for pooling=global, which reads them"
        refuse("global_tokens", global_tokens, need, WHOSE)


def check_widths(dim: int, head_dim: int, ff_ratio: float, positions: str) -> None:
    """Raise SpecError unless heads share the width evenly, and RoPE a head's."""
    if dim % head_dim:
        refuse("dim", dim, f"a multiple of head_dim ({head_dim})", WHOSE)
    if positions == "rope" and head_dim % 4:
        refuse("head_dim", head_dim, "a multiple of 4 for positions=rope", WHOSE)
    if dim * ff_ratio < 1:
        refuse("ff_ratio", ff_ratio, f"at least 1 / dim ({dim})", WHOSE)
