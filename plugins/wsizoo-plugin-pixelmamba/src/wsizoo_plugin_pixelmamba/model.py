"""Pixel-Mamba as an aggregator: from the pixels of a slide's regions to one vector."""

from __future__ import annotations

import functools
import logging
from typing import Any, ClassVar

import torch
from torch import Tensor

from wsizoo import Aggregated, Aggregator, Bag
from wsizoo.errors import BagError, SpecError
from wsizoo.mamba import param_groups
from wsizoo_plugin_pixelmamba.memory import process_bytes
from wsizoo_plugin_pixelmamba.network import Found, Network
from wsizoo_plugin_pixelmamba.serialise import bag_order
from wsizoo_plugin_pixelmamba.settings import Settings

log = logging.getLogger(__name__)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, the paper states none


class PixelMamba(Aggregator):
    """A slide read pixel by pixel, end to end: no patch encoder.

    Every pixel of every region is a token; bidirectional Mamba blocks run over all regions of a
    slide as one sequence, neighbouring tokens join from layer to layer, and regions that look alike
    are fused.

    Args:
        in_dim: channels, 3.
        options: see `Settings`; each names the choice of the paper that it settles.

    Input: a bag of regions (N, 3, h, w) uint8 RGB on one grid, h and w multiples of
    `settings.step` (32 for all sizes), at 4 um/px as published. What is no tissue need not be among
    them: regions that are missing are left out of the sequence (the paper keeps all).

    Returns (forward): `slide` (E,), the mean over the final regions, each counted once.
    `scores` (N,): by how much the slide vector would move without the final region that the region
    is part of, relative to its length: |f - slide| / ((m - 1) |slide|), f the vector of the final
    region, m how many there are; 1 if there is one. Regions that were fused have one score.
    `groups` (N,): which final region each is part of.

    Cost: see `counting.multiply_adds`; memory: `memory.peak_bytes`. No backward of a backward.
    Source: "From Pixels to Gigapixels: Bridging Local Inductive Bias and Long-Range Dependencies
    with Pixel-Mamba", 2024, https://arxiv.org/abs/2412.16711; there is no published code.
    Differs: no background; rows of regions count from the uppermost region.
    """

    reads = "pixels"
    uses_coords = True
    options_type: ClassVar[type] = Settings
    conformance_params: ClassVar[dict[str, Any]] = {
        "layers": ["h-cat", "v-avg"],
        "pixels": 2,
        "d_state": 4,
    }

    def __init__(self, in_dim: int = 3, **options: Any) -> None:
        settings = Settings.of(options)
        if in_dim != 3:
            raise SpecError(f"pixel-mamba reads RGB pixels, in_dim is {in_dim}, expected 3")
        super().__init__(in_dim, settings.out_dim)
        self.settings = settings
        self.network = Network(settings)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, bag: Bag) -> Aggregated:
        found = self.look(bag)
        slide = found.slide[0]
        scores = functools.partial(_scores, slide, found)
        return Aggregated(slide, scores, groups=found.region_of[0])

    def look(self, bag: Bag) -> Found:
        """All that the network finds in one slide, `region_of` in the order of the bag.

        Raises:
            BagError: as `forward`: no coords or spacing, two regions in one cell, regions of a size
                that the network cannot halve often enough.
        """
        order = bag_order(bag, self.settings.outer)
        try:
            self.network.check_region(bag.features.shape[-2:])
        except BagError as error:
            raise BagError(f"slide '{bag.slide_id}': {error}") from error
        found = self.network(self.normalised(bag.features[order])[None])
        if len(bag) > 1 and found.regions.shape[1] == 1 and not self.training:
            log.debug(
                "slide '%s': its %d regions were all fused into one, so their scores are equal; "
                "aggregator.alpha=0 fuses none",
                bag.slide_id,
                len(bag),
            )
        region_of = torch.empty_like(found.region_of).index_copy(1, order, found.region_of)
        return Found(found.slide, found.regions, region_of)

    def param_groups(self, base_lr: float) -> list[dict[str, Any]]:
        """Two groups: A, D, biases, norms and the CLS token are not decayed."""
        others = [p for n, p in self.named_parameters() if p.ndim < 2 or n.endswith("cls_token")]
        return param_groups(self, base_lr, undecayed=others)

    def peak_bytes(self, patches: int, patch_size: int, training: bool) -> int:
        """For `wsizoo doctor --plan`; see `memory.process_bytes`.

        Raises BagError: regions of a size that the network cannot halve often enough.
        """
        region = (patch_size, patch_size)
        self.network.check_region(region)
        return process_bytes(self.settings, patches, region, training)

    def normalised(self, regions: Tensor) -> Tensor:
        """Regions (..., 3, h, w) uint8 as the network sees them."""
        return (regions.to(self.mean.dtype) / 255 - self.mean) / self.std


def _scores(slide: Tensor, found: Found) -> Tensor:
    """Scores (N,) of the regions of a slide (E,); see `PixelMamba`."""
    regions = found.regions[0]  # (m, E)
    if len(regions) == 1:
        return torch.ones_like(found.region_of[0], dtype=slide.dtype)
    length = slide.norm().clamp(min=1e-15) * (len(regions) - 1)
    return ((regions - slide).norm(dim=-1) / length)[found.region_of[0]]
