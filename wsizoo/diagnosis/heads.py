"""Numbers of one head: its rank, what bounds it from below, and how far it sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsizoo.diagnosis.bounds import Bound, band_bound, plane_bound
from wsizoo.diagnosis.layers import Layer
from wsizoo.diagnosis.rank import (
    THRESHOLDS,
    effective_rank,
    rank_above,
    singular_values,
    sparsity,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HeadFacts:
    """One head of one layer on one slide.

    Args:
        layer, head: from 0, in the order they are computed. module: of the layer.
        tokens: n. unit: edge of a token's cell in patches.
        rank: up to rounding. ranks: singular values above each of THRESHOLDS times the largest.
        band, plane: lower bounds of the rank.
        distance: mean attended distance in patches, Euclidean. within: share of the attention that
            goes no farther than the radius.
        spectrum: (n,) singular values over the largest, descending.
        reached: (R,) share of the attention at distances of [r, r + 1) `unit`.
    """

    layer: int
    module: str
    head: int
    tokens: int
    unit: int
    rank: int
    ranks: dict[float, int]
    effective_rank: float
    sparsity: float
    band: Bound
    plane: Bound
    distance: float
    within: float
    spectrum: Floats
    reached: Floats

    def row(self, um: float | None = None) -> dict[str, Any]:
        """As columns of a table. um: edge of a patch in microns, where it is known."""
        told: dict[str, Any] = {
            name: getattr(self, name) for name in ("layer", "module", "head", "tokens", "unit")
        }
        told |= {"rank": self.rank}
        told |= {f"rank_{threshold:g}": rank for threshold, rank in self.ranks.items()}
        told |= {"effective_rank": round(self.effective_rank, 2)}
        told |= {"sparsity": round(self.sparsity, 6)}
        for name, bound in (("bound_1d", self.band), ("bound_2d", self.plane)):
            told |= {name: bound.rank, f"{name}_holds": bound.holds}
        told |= {"distance": round(self.distance, 4)}
        told |= {"distance_um": None if um is None else round(self.distance * um, 2)}
        return told | {"within_radius": round(self.within, 6)}


def head_facts(layer: Layer, at: int, radius: float) -> Iterator[HeadFacts]:
    """Of each head of a layer.

    Args:
        at: which layer it is. radius: in patches.

    Cost: a singular value decomposition a head.
    """
    apart = np.hypot(*np.moveaxis(layer.cells[:, None] - layer.cells[None], -1, 0))  # (n, n)
    ring = np.floor(apart).astype(np.int64).ravel()
    for head, weights in enumerate(layer.weights):
        values = singular_values(weights)
        total = max(float(weights.sum()), np.finfo(np.float64).tiny)
        near = weights[apart * layer.unit <= radius].sum()
        yield HeadFacts(
            layer=at,
            module=layer.name,
            head=head,
            tokens=len(weights),
            unit=layer.unit,
            rank=rank_above(values),
            ranks={threshold: rank_above(values, threshold) for threshold in THRESHOLDS},
            effective_rank=effective_rank(values),
            sparsity=sparsity(weights),
            band=band_bound(weights, layer.allowed[head]),
            plane=plane_bound(weights, layer.cells, layer.allowed[head]),
            distance=layer.unit * float((weights * apart).sum()) / total,
            within=float(near) / total,
            spectrum=values / max(float(values[0]), np.finfo(np.float64).tiny),
            reached=np.bincount(ring, weights.ravel()) / total,
        )
