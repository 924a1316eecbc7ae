"""Global tokens, and the encoder's stages over the levels of a pyramid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from wsizoo.ops import segment_max, segment_mean, segment_sum
from wsizoo_plugin_span.layers import SpanLayer, TwoStepLayer
from wsizoo_plugin_span.options import STATISTICS, token_kind
from wsizoo_plugin_span.pyramid import Level, Pyramid
from wsizoo_plugin_span.settings import Settings
from wsizoo_plugin_span.slots import Slot, down_slot, input_slot

Layer = SpanLayer | TwoStepLayer


@dataclass
class Staged:
    """What a stage gives.

    Args:
        level: its grid. tokens: (T, C). globals_: (B, M, C).
        inputs: each of its layers with what it was given, without gradients.
    """

    level: Level
    tokens: Tensor
    globals_: Tensor
    inputs: list[tuple[Layer, Tensor, Tensor]] = field(default_factory=list)

    def seen(self, tokens: bool) -> Staged:
        """What scores are made from: no gradients, and only the layers' inputs unless `tokens`."""
        own = self.tokens.detach() if tokens else self.tokens.detach().new_empty(0)
        return Staged(self.level, own, self.globals_.detach(), self.inputs)

    def attention(self) -> Tensor | None:
        """(T,) attention that global tokens pay to tokens, mean over heads, them and the layers.

        Computed anew, without dropout. None: no layer lets them hear tokens.
        """
        paid = [
            weights
            for layer, tokens, globals_ in self.inputs
            if (weights := layer.global_weights(tokens, globals_, self.level)) is not None
        ]
        return torch.stack(paid).mean(0) if paid else None


class GlobalTokens(nn.Module):
    """The first global tokens of each slide, in the features' width.

    In their order: "max", "mean" and "std" of each column over the slide's tokens; "random" and
    "fixed" vectors drawn at construction; "learnable" ones.
    """

    random: Tensor | None
    fixed: Tensor | None
    learnable: nn.Parameter | None

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        kinds = [token_kind(token, settings.published) for token in settings.tokens]
        self.kinds = tuple(kind for kind in kinds if kind is not None)
        self.dim = settings.in_dim
        self.register_buffer("random", self._draw("random"))
        self.register_buffer("fixed", self._draw("fixed"))
        drawn = self._draw("learnable")
        self.learnable = None if drawn is None else nn.Parameter(drawn)

    def _draw(self, wanted: str) -> Tensor | None:
        """(n, C) truncated normal rows, or None."""
        empty = torch.zeros(self.dim)
        rows = [
            nn.init.trunc_normal_(empty.clone(), std=spread) if spread else empty
            for kind, spread in self.kinds
            if kind == wanted
        ]
        return torch.stack(rows) if rows else None

    def forward(self, features: Tensor, pyramid: Pyramid) -> Tensor:
        """(N, C) of the patches -> (B, M, C); statistics are of all tokens, pads among them."""
        level, found = pyramid.levels[0], []
        if any(kind in STATISTICS for kind, _ in self.kinds):
            features = pyramid.tokens(features)  # (T, C)
        stored = {kind: getattr(self, kind) for kind in ("random", "fixed", "learnable")}
        rows = {kind: iter(() if x is None else x.unbind()) for kind, x in stored.items()}
        for kind, _ in self.kinds:
            if kind in rows:
                found.append(next(rows[kind]).expand(level.n_slides, -1))
            elif kind == "max":
                found.append(segment_max(features, level.offsets))
            else:
                mean = segment_mean(features, level.offsets)  # (B, C)
                found.append(mean if kind == "mean" else _deviation(features, mean, level))
        return torch.stack(found, 1) if found else features.new_empty(level.n_slides, 0, self.dim)


def _deviation(tokens: Tensor, mean: Tensor, level: Level) -> Tensor:
    """(B, C) unbiased standard deviation of each slide's tokens; 0 for one token."""
    squares = (tokens - mean[level.segments]) ** 2
    counts = (level.offsets.diff() - 1).clamp(min=1)[:, None]
    variance = segment_sum(squares, level.offsets) / counts
    spread = variance > 0  # a square root has no slope at 0
    return torch.where(spread, torch.where(spread, variance, 1).sqrt(), 0)


class Stage(nn.Module):
    """A slot, then transformer layers on the new grid."""

    def __init__(self, slot: Slot, layers: list[Layer]) -> None:
        super().__init__()
        self.slot = slot
        self.layers = nn.ModuleList(layers)


class Encoder(nn.Module):
    """From features to the tokens of every stage."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.tokens = GlobalTokens(settings)
        self.stages = nn.ModuleList()
        for i, count in enumerate(settings.encoder):
            slot = input_slot(settings) if i == 0 else down_slot(settings, i)
            layers = make_layers(settings, settings.width(i), count, settings.attention)
            self.stages.append(Stage(slot, layers))

    def forward(self, features: Tensor, pyramid: Pyramid, need_tokens: bool = True) -> list[Staged]:
        """(N, C) of the patches.

        Args:
            need_tokens: whether the tokens of the last stage count, or only its global tokens.
        """
        tokens, globals_ = self._ground(features, pyramid)
        found: list[Staged] = []
        for i, stage in enumerate(self.stages):
            if i:
                tokens, globals_ = stage.slot(tokens, globals_, pyramid.rulebooks[i - 1])
            needed = need_tokens or i < len(self.stages) - 1
            found.append(run_layers(stage.layers, tokens, globals_, pyramid.levels[i], needed))
            tokens, globals_ = found[-1].tokens, found[-1].globals_
        return found

    def _ground(self, features: Tensor, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        """Tokens and global tokens of stage 0, before its layers."""
        slot = self.stages[0].slot
        if slot.block.keeps_zeros:  # pads come late, where rows are narrow
            tokens = pyramid.tokens(slot.block(features, None))
        else:
            tokens = slot.block(pyramid.tokens(features), None)
        return tokens, slot.of_globals(self.tokens(features, pyramid))


def run_layers(
    layers: nn.ModuleList, tokens: Tensor, globals_: Tensor, level: Level, need_tokens: bool = True
) -> Staged:
    """A stage's layers on tokens (T, C) and global tokens (B, M, C)."""
    inputs = []
    for i, layer in enumerate(cast("Iterable[Layer]", layers)):
        inputs.append((layer, tokens.detach(), globals_.detach()))
        needed = need_tokens or i < len(layers) - 1
        tokens, globals_ = layer(tokens, globals_, level, needed)
    return Staged(level, tokens, globals_, inputs)


def make_layers(settings: Settings, width: int, count: int, attention: str) -> list[Layer]:
    """So many layers of this width."""
    options: dict[str, Any] = {
        "dim": width,
        "heads": settings.heads(width),
        "half_window": settings.half_window,
        "positions": settings.positions,
        "table_std": settings.table_std,
        "share_qkv": settings.share_qkv,
        "ff_ratio": settings.ff_ratio,
        "activation": settings.activation,
        "attention_dropout": settings.attention_dropout,
        "dropout": settings.dropout,
        "drop_path": settings.drop_path,
    }
    if attention == "tradswin":
        return [TwoStepLayer(**options) for _ in range(count)]
    return [SpanLayer(**options, attention=attention) for _ in range(count)]
