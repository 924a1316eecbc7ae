"""Region Fusion: regions that look alike become one, a few in every layer.

Source: Pixel-Mamba, arXiv 2412.16711, section 3.3 and appendix A.3. What it leaves open is named C7
to C11, see docs/pixelmamba.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wsizoo_plugin_pixelmamba.serialise import cls_of

LEAST_NORM = 1e-12
AT_ONCE = 1 << 24  # similarities; those of 8,192 regions, so only more are compared in parts


@dataclass(frozen=True, eq=False)
class Fused:
    """Regions after a fusion.

    Args:
        tokens: (m, T, C). survivor: (m,) old place of each new region, ascending (C9).
        merged_into: (n,) new place of each old region.
    """

    tokens: Tensor
    survivor: Tensor
    merged_into: Tensor


def merges(alpha: float, regions: int, layers: int) -> int:
    """k = ceil(alpha n / L), how many regions one layer fuses away (at most; see `fuse`). (C11)"""
    return math.ceil(alpha * regions / layers)


def galleries(n: int, split: str) -> Tensor:
    """Places (ceil(n / 2),) of the gallery; the others are probes.

    Args:
        split: "alternate": every second one from the first, so that neighbours along the scan
            meet; "halves": the first half. With odd n the gallery has one more. (C7, C10)
    """
    return torch.arange(0, n, 2) if split == "alternate" else torch.arange(-(-n // 2))


def fuse(tokens: Tensor, k: int, split: str = "alternate", shared: str = "mean") -> Fused:
    """Merge the k probes that are most like a gallery region into that region.

    Each probe has one partner, the gallery region with the nearest CLS token by cosine; a gallery
    region may be the partner of several. Similarities choose only: no gradient goes through them.
    Of equal ones the lowest place wins.

    Args:
        tokens: (n, T, C) of one slide.
        k: probes to merge, at most n // 2; of one region, or for k = 0, nothing changes. (C10)
        split: see `galleries`. (C7)
        shared: a gallery region and its probes become their plain "mean", or are averaged
            "pairwise", with one probe after the other, the most similar first. (C8)
    """
    n, device = len(tokens), tokens.device
    places = torch.arange(n, device=device)
    k = min(k, n // 2)
    if k == 0:
        return Fused(tokens, places, places)
    probe, partner = _pairs(cls_of(tokens), k, split)  # (k,), (k,)
    stays = torch.ones(n, dtype=torch.bool, device=device).index_fill(0, probe, False)
    survivor = places[stays]  # (n - k,)
    place = torch.cumsum(stays, 0) - 1  # (n,) of those that stay
    merged_into = place.index_copy(0, probe, place[partner])
    own, weight = _weights(partner, n, shared)
    fused = tokens[survivor] * own[survivor, None, None].to(tokens)  # (n - k, T, C)
    joining = tokens[probe] * weight[:, None, None].to(tokens)  # (k, T, C)
    return Fused(fused.index_add_(0, merged_into[probe], joining), survivor, merged_into)


@torch.no_grad()
def _pairs(cls: Tensor, k: int, split: str) -> tuple[Tensor, Tensor]:
    """Places of the k probes to merge, the most similar first, and of their partners."""
    n, device = len(cls), cls.device
    gallery = galleries(n, split).to(device)
    is_probe = torch.ones(n, dtype=torch.bool, device=device).index_fill(0, gallery, False)
    probes = is_probe.nonzero()[:, 0]
    wide = torch.promote_types(cls.dtype, torch.float32)
    unit = F.normalize(cls.to(wide), dim=-1, eps=LEAST_NORM)
    found = []
    for some in unit[probes].split(max(1, AT_ONCE // len(gallery))):
        with torch.autocast(device.type, enabled=False):  # near ties flip in half precision
            similarity = some @ unit[gallery].T  # (some probes, galleries)
        highest = similarity.amax(1)
        found.append((highest, (similarity == highest[:, None]).int().argmax(1)))  # the first
    best, at = (torch.cat(parts) for parts in zip(*found, strict=True))  # (probes,), (probes,)
    chosen = torch.argsort(best, descending=True, stable=True)[:k]
    return probes[chosen], gallery[at[chosen]]


def _weights(partner: Tensor, n: int, shared: str) -> tuple[Tensor, Tensor]:
    """Weight (n,) float32 of each region in itself, and of each probe (k,) in its partner.

    Args:
        partner: (k,) of the probes, in the order in which they join.
    """
    joined = torch.bincount(partner, minlength=n)  # (n,)
    if shared == "mean":
        own = 1 / (joined + 1)
        return own, own[partner]
    weight, later = [], [0] * n  # each probe is halved when it joins, and with every later one
    for place in reversed(partner.tolist()):
        later[place] += 1
        weight.append(0.5 ** later[place])
    return 0.5**joined, torch.tensor(weight[::-1], device=partner.device)
