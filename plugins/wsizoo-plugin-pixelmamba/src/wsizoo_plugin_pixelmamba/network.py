"""The Pixel-Mamba network: layers of a bidirectional Mamba block, Region Fusion, Token Expansion.

Source: Pixel-Mamba, arXiv 2412.16711, sections 3.2 to 3.4 and Tables 7 and 8. What it leaves open
is named C1 to C15, see docs/pixelmamba.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wsizoo.errors import BagError
from wsizoo.mamba import VimBlock
from wsizoo_plugin_pixelmamba.expansion import doubled, expand
from wsizoo_plugin_pixelmamba.fusion import Fused, fuse, merges
from wsizoo_plugin_pixelmamba.memory import piece_of
from wsizoo_plugin_pixelmamba.pieces import in_groups, swept
from wsizoo_plugin_pixelmamba.serialise import cls_of, region_tokens
from wsizoo_plugin_pixelmamba.settings import Settings

STD = 0.02  # of the CLS token's initialisation


class Layer(nn.Module):
    """x + mixer(norm(x)) over all regions of a slide as one sequence, then what follows it.

    Args:
        width: C. kind: the Token Expansion after it, "" none.
    """

    def __init__(self, settings: Settings, width: int, kind: str) -> None:
        super().__init__()
        self.kind, self.width, self.settings = kind, width, settings
        self.norm = make_norm(settings, width)
        self.mixer = VimBlock(
            width,
            settings.d_state,
            settings.d_conv,
            settings.expand,
            settings.dt_rank(width),
            divide_out=settings.divide_out,
            share_conv=settings.share_conv,
            vim_init=settings.vim_init,
        )
        learned = settings.cls_mode == "linear" and kind.endswith("cat")
        weight = torch.cat([torch.eye(width), torch.eye(width)]) if learned else None
        self.cls_weight = None if weight is None else nn.Parameter(weight)  # starts as "repeat"

    def mix(self, tokens: Tensor) -> Tensor:
        """The block and its residual, (B, n, T, C): B sequences of n regions."""
        sequences = tokens.flatten(1, 2)  # (B, n T, C)
        piece = piece_of(self.settings, self.width, tokens.device.type)
        together = piece // sequences.shape[1]
        training = torch.is_grad_enabled()
        if not self.settings.recompute and training:
            mixed = self._at_once(sequences)
        elif together:
            groups = sequences.split(together)
            mixed = torch.cat([checkpoint(self._at_once, g, use_reentrant=False) for g in groups])
        else:
            mixed = torch.stack([swept(x, self.norm, self.mixer, piece) for x in sequences])
        return mixed.view_as(tokens)

    def _at_once(self, sequences: Tensor) -> Tensor:
        """Sequences (B, L, C) -> (B, L, C)."""
        count, length, _ = sequences.shape
        offsets = torch.arange(count + 1, device=sequences.device) * length
        x = sequences.flatten(0, 1)
        return (x + self.mixer(self.norm(x), offsets)).view_as(sequences)

    def fuse(self, tokens: Tensor, k: int) -> tuple[Tensor, list[Fused]]:
        """Region Fusion of each slide, (B, n, T, C) -> (B, m, T, C)."""
        found = [fuse(slide, k, self.settings.split, self.settings.shared) for slide in tokens]
        if len(found) == 1:
            return found[0].tokens[None], found
        return torch.stack([each.tokens for each in found]), found

    def expand(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Token Expansion, if the layer has one, some regions at a time.

        Args:
            grid: (h, w), that of its tokens.
        """
        of, weight = self.settings, self.cls_weight
        if not self.kind:
            return tokens

        def grown(part: Tensor, mode: str, weight: Tensor | None) -> Tensor:
            return expand(part, grid, self.kind, of.shift_padding, mode, weight, of.inner)

        together = max(1, piece_of(of, self.width, tokens.device.type) // tokens.shape[2])
        if together >= tokens.shape[1]:
            return grown(tokens, of.cls_mode, weight)
        mode = of.cls_mode if weight is None else "zero"
        found = in_groups(lambda part: grown(part, mode, None), tokens, together)
        if weight is not None:  # its gradient needs the CLS tokens, and a group keeps nothing
            cls_of(found).copy_(doubled(cls_of(tokens), of.cls_mode, weight))
        return found


@dataclass(frozen=True, eq=False)
class Step:
    """What a layer gave.

    Args:
        tokens: (B, m, T, C), after fusion and expansion.
        fused: of each slide, what was merged into what.
    """

    tokens: Tensor
    fused: list[Fused]


@dataclass(frozen=True, eq=False)
class Found:
    """What a network gives for B slides of n regions each.

    Args:
        slide: (B, E), the mean of the final regions, each counted once.
        regions: (B, m, E), the final regions: their CLS tokens, normed.
        region_of: (B, n) int64, which final region each original one is part of.
    """

    slide: Tensor
    regions: Tensor
    region_of: Tensor


class Network(nn.Module):
    """From regions to one vector a slide. Keys of its tensors: section 6 of the specification.

    Args:
        settings: see `Settings`.

    Cost: see `wsizoo_plugin_pixelmamba.counting`; memory: `wsizoo_plugin_pixelmamba.memory`.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.cls_token = nn.Parameter(torch.empty(1, 1, 3))
        nn.init.trunc_normal_(self.cls_token, std=STD)
        pairs = zip(settings.widths, settings.layers, strict=True)
        self.layers = nn.ModuleList(Layer(settings, width, kind) for width, kind in pairs)
        self.norm_f = make_norm(settings, settings.out_dim) if settings.final_norm else None
        with torch.no_grad():
            for layer in self.layers:
                layer.mixer.out_proj.weight /= len(self.layers) ** 0.5  # as in Vim

    def forward(self, regions: Tensor) -> Found:
        """Regions (B, n, 3, h, w), normalised, of each slide in the order they are visited.

        Raises:
            BagError: a height or width that the expansions do not divide.
        """
        tokens = region_tokens(regions, self.cls_token, self.settings.inner)
        h, w = regions.shape[-2:]
        region_of = torch.arange(tokens.shape[1], device=tokens.device).repeat(len(tokens), 1)
        for step in self.steps(tokens, (h, w)):
            tokens = step.tokens
            merged = torch.stack([each.merged_into for each in step.fused])  # (B, before)
            region_of = merged.gather(1, region_of)
        found = self.read(tokens)
        return Found(found.mean(1), found, region_of)

    def read(self, tokens: Tensor) -> Tensor:
        """Vectors (B, m, E) of the final regions: their CLS tokens, normed (C13)."""
        cls = cls_of(tokens)
        return cls if self.norm_f is None else self.norm_f(cls)

    def steps(self, tokens: Tensor, grid: tuple[int, int]) -> Iterator[Step]:
        """What each layer gives, one after the other.

        Args:
            tokens: (B, n, h * w + 1, 3), see `serialise`. grid: (h, w).
        """
        self.check_region(grid)
        n, settings = tokens.shape[1], self.settings
        for layer, own in zip(self.layers, settings.grids(grid), strict=False):
            assert isinstance(layer, Layer)
            n = n if settings.count == "input" else tokens.shape[1]
            k = merges(settings.alpha, n, len(self.layers))
            tokens, fused = layer.fuse(layer.mix(tokens), k)
            tokens = layer.expand(tokens, own)
            yield Step(tokens, fused)

    def check_region(self, region: tuple[int, int]) -> None:
        """Raise BagError unless the expansions divide this height and width."""
        (h, w), (down, across) = region, self.settings.step
        if h % down or w % across or not h or not w:
            raise BagError(
                f"regions are {h} x {w} px (height x width), and this network halves them to "
                f"tokens of {down} x {across}: both must be multiples of that, such as 224 x 224 "
                "(wsizoo extract --patch-size 224)"
            )


def make_norm(settings: Settings, width: int) -> nn.Module:
    """RMSNorm without a bias, or LayerNorm (C13)."""
    make = nn.RMSNorm if settings.norm == "rms" else nn.LayerNorm
    return make(width, eps=settings.norm_eps)
