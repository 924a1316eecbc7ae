"""SPAN: sparse pyramid attention over the true grid of a slide (2026)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from wsizoo import Aggregated, Aggregator, Bag, BagBatch
from wsizoo.bag_checks import check_finite, check_width
from wsizoo.ops import segment_sum
from wsizoo_plugin_span.cells import cells_of
from wsizoo_plugin_span.decoder import Decoder
from wsizoo_plugin_span.encoder import Encoder, Staged
from wsizoo_plugin_span.pooling import make_pooling
from wsizoo_plugin_span.pyramid import Pyramid, build
from wsizoo_plugin_span.settings import Settings, SlideSettings, UNetSettings


class _OnGrid(Aggregator):
    """What both networks share: bags onto one grid, features in the weights' dtype."""

    uses_coords = True
    conformance_params: ClassVar[dict[str, Any]] = {"in_dim": 24, "dim": 8, "head_dim": 4}

    def __init__(self, settings: Settings, out_dim: int) -> None:
        super().__init__(settings.in_dim, out_dim)
        self.settings = settings
        self.encoder = Encoder(settings)

    @property
    def forward_packed(self) -> Callable[[BagBatch], Aggregated] | None:  # type: ignore[override]
        """Several slides on one grid, where downsampling tiles it; else None."""
        return self._packed if self.settings.plan.packs else None

    def forward(self, bag: Bag) -> Aggregated:
        return self._one(self._aggregate([bag], bag.features))

    def _packed(self, batch: BagBatch) -> Aggregated:
        return self._aggregate(list(batch), batch.features)

    def _one(self, aggregated: Aggregated) -> Aggregated:
        """Without the leading dimension of slides."""
        if aggregated.slide is not None:
            aggregated.slide = aggregated.slide[0]
        return aggregated

    def _aggregate(self, bags: Sequence[Bag], features: Tensor) -> Aggregated:
        for bag in bags:
            check_width(bag, self.in_dim, self.settings.whose)
        cells = [cells_of(bag) for bag in bags]
        pyramid = build(cells, self.settings.plan)
        weight = next(self.parameters())
        found = self.run(features.to(weight.dtype), pyramid)
        seen = found.slide if found.instances is None else found.instances
        assert seen is not None
        check_finite(seen, bags, self.settings.whose)
        return found

    def run(self, features: Tensor, pyramid: Pyramid) -> Aggregated:
        """Features (N, C) of the patches of a pyramid -> what the network gives, packed."""
        raise NotImplementedError


class Span(_OnGrid):
    """One vector a slide, from the global tokens (or tokens) of a pyramid's stages.

    Args:
        in_dim: width of the features.
        options: see `SlideSettings` and `Settings`; defaults are the published classification's.

    Returns (forward): `slide` (out_dim,), pooled, normed and dropped out, so that a linear head
    is the published one; `scores` (N,), which sum to 1 over a slide.
        pooling multi_addition, concat, mean, last: the attention that the global tokens pay to the
            tokens of each stage that is read, mean over heads, global tokens and layers;
        multiattn: a token's pooling weight times its stage's weight;
        addition: the share of channels whose maximum a token of the last stage holds.
    Each patch has that of the cell over it, undivided; stages keep their totals and are summed.
    None where global tokens hear nothing (attention swin).

    Cost: 11 E^2 multiply-adds a token and layer, and as many products as pairs of cells in windows.
    Source: "Learning Spatial-Preserving Hierarchical Representations for Digital Pathology" (SPAN),
    2026; numbers as https://github.com/wwyi1828/SPAN at 08e4ba0, with compat="published".
    Differs by default from the published code:
        pads are no tokens: the grid is enlarged, but nothing is added to it;
        every token attends to itself and meets the global tokens, also a stage's first and last;
        windows shift on every grid larger than a window, also one that they tile;
        a convolution's bias is added after the division by `edge`, not before;
        global tokens through a kernel are laid out and divided as tokens are;
        tokens that cannot be read, and a slide vector that no slide can change, are refused.
    """

    options_type: ClassVar[type] = SlideSettings

    def __init__(self, in_dim: int, **options: Any) -> None:
        settings = SlideSettings.of(in_dim, options)
        super().__init__(settings, settings.pooled_width)
        self.pooling = make_pooling(settings)
        self.reads_tokens = settings.reads_tokens

    def run(self, features: Tensor, pyramid: Pyramid) -> Aggregated:
        stages: list[Staged] = self.encoder(features, pyramid, self.reads_tokens)
        slide = self.pooling(stages)  # (B, out_dim)
        seen = [stage.seen(self.reads_tokens) for stage in stages]
        return Aggregated(slide, lambda: self._scores(seen, pyramid))

    def _scores(self, stages: list[Staged], pyramid: Pyramid) -> Tensor | None:
        weights = self.pooling.weights(stages)
        if not weights:
            return None
        given = pyramid.to_patches(weights)  # (N,)
        total = segment_sum(given, pyramid.offsets)  # (B,)
        lengths = pyramid.offsets.diff()
        return given / total.clamp(min=1e-30).repeat_interleave(lengths)


class SpanUNet(_OnGrid):
    """One vector a patch, from a decoder over the encoder's own grids.

    Args:
        in_dim: width of the features.
        options: see `UNetSettings` and `Settings`; defaults are the published segmentation's.

    Returns (forward): `instances` (N, instance_dim), dropped out, so that a linear head of one
    logit is the published one. No slide vector.

    Cost, Source, Differs: see `Span`; the published head maps the global tokens too, unread.
    """

    gives_instances, gives_slide = True, False
    options_type: ClassVar[type] = UNetSettings

    def __init__(self, in_dim: int, **options: Any) -> None:
        settings = UNetSettings.of(in_dim, options)
        super().__init__(settings, settings.instance_width)
        self.decoder = Decoder(settings)
        self.dropout = nn.Dropout(settings.head_dropout)

    def run(self, features: Tensor, pyramid: Pyramid) -> Aggregated:
        encoded = self.encoder(features, pyramid)
        tokens = self.decoder(encoded, pyramid)[-1].tokens  # (T, I), pads among them
        return Aggregated(instances=self.dropout(pyramid.patches(tokens)))
