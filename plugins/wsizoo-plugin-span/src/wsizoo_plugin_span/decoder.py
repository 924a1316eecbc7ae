"""The decoder: from the deepest stage back to one vector a patch, over the encoder's own grids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from wsizoo.ops import transpose_rulebook
from wsizoo_plugin_span.encoder import Layer, Staged, make_layers, run_layers
from wsizoo_plugin_span.pyramid import Pyramid
from wsizoo_plugin_span.settings import UNetSettings
from wsizoo_plugin_span.slots import Slot, reducing_slot, up_slot


class UpStage(nn.Module):
    """A slot to the finer grid, layers there, and the encoder's tokens of that grid.

    Args:
        slot: up. reduce: between skip and layers where the skip comes first, else None.
        layers: on the finer grid. skip: "concat", "add", "none". late: the skip follows the layers.
    """

    def __init__(
        self, slot: Slot, reduce: Slot | None, layers: list[Layer], skip: str, late: bool
    ) -> None:
        super().__init__()
        self.slot, self.reduce = slot, reduce
        self.layers = nn.ModuleList(layers)
        self.skip, self.late = skip, late

    def join(self, own: Tensor, other: Tensor) -> Tensor:
        """The skip: own channels first."""
        if self.skip == "none":
            return own
        return torch.cat([own, other], -1) if self.skip == "concat" else own + other


class Decoder(nn.Module):
    """One stage a coarsening of the encoder, deepest first."""

    def __init__(self, settings: UNetSettings) -> None:
        super().__init__()
        late = settings.skip_after_layers
        wide = 2 if settings.skip == "concat" else 1
        attention = settings.decoder_attention or settings.attention
        self.step = (settings.kernel, settings.stride, settings.dilation)
        self.mirrors = settings.mirrors
        self.stages = nn.ModuleList()
        for count, (dim, width) in zip(settings.decoder, settings.decoder_widths, strict=True):
            reduce = None if late else reducing_slot(settings, width * wide, width)
            layers = make_layers(settings, width, count, attention)
            slot = up_slot(settings, dim, width)
            self.stages.append(UpStage(slot, reduce, layers, settings.skip, late))

    def forward(self, encoded: list[Staged], pyramid: Pyramid) -> list[Staged]:
        """What each of its stages gives, after its skip; the last has (T, I) tokens of stage 0."""
        found = []
        tokens, globals_ = encoded[-1].tokens, encoded[-1].globals_
        finer = range(len(encoded) - 2, -1, -1)
        for i, stage in zip(finer, cast("Iterable[UpStage]", self.stages), strict=True):
            other, book = encoded[i], pyramid.rulebooks[i]
            if not self.mirrors:
                book = transpose_rulebook(encoded[i + 1].level.cells, other.level.cells, *self.step)
            tokens, globals_ = stage.slot(tokens, globals_, book)
            if stage.reduce is not None:
                joined = stage.join(tokens, other.tokens), stage.join(globals_, other.globals_)
                tokens, globals_ = stage.reduce(*joined)
            done = run_layers(stage.layers, tokens, globals_, other.level)
            if stage.late:
                done.tokens = stage.join(done.tokens, other.tokens)
                done.globals_ = stage.join(done.globals_, other.globals_)
            tokens, globals_ = done.tokens, done.globals_
            found.append(done)
        return found
