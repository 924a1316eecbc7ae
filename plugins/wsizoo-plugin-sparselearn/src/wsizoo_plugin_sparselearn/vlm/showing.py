"""What a language model sees of a slide, and which slides can be shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wsizoo import Bag
from wsizoo.errors import BagError


@dataclass
class Shown:
    """What the language model sees of a slide.

    Args:
        tokens: (K, H) of its dtype. kept: (K,) rows of the bag, None: all. scores: (N,) of the
            selector. losses: its own. alone: it alone learns in this step.
    """

    tokens: Tensor
    kept: Tensor | None = None
    scores: Tensor | None = None
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    alone: bool = False


def check_bag(bag: Bag, in_dim: int, uses_coords: bool) -> None:
    """Raise BagError for a slide without patches, of another width, with NaN, or lacking coords."""
    wrong = ""
    if not len(bag):
        wrong = "has no patches"
    elif bag.features.ndim != 2 or bag.dim != in_dim:
        wrong = f"has features {tuple(bag.features.shape)}, expected (N, {in_dim})"
    elif not bool(torch.isfinite(bag.features).all()):
        wrong = "has NaN or infinite features: extract it again"
    elif uses_coords and bag.coords is None:
        wrong = "has no coords; a model that says nothing of places: projector.positions=false"
    if wrong:
        raise BagError(f"slidevlm: slide '{bag.slide_id}' {wrong}")
