"""Selectors that learn nothing, to compare with: random patches, a regular sample, large norms."""

from __future__ import annotations

import hashlib
from typing import ClassVar

import torch
from torch import Tensor

from wsizoo import Bag, ScoredSelector, Selected
from wsizoo.selection import kept_count


class Random(ScoredSelector):
    """k patches without replacement: in eval always the same ones of a slide, by its name.

    In training another set in each step, which depends on the slide and the step alone.

    Args:
        in_dim, k: as of every selector. seed: of what is drawn.
    """

    order_matters = True
    conformance_params: ClassVar = {"k": 0.25}
    step: Tensor

    def __init__(self, in_dim: int, k: int | float = 32, *, seed: int = 0) -> None:
        super().__init__(in_dim, k)
        self.seed = seed
        self.register_buffer("step", torch.tensor(0))

    def score(self, bag: Bag) -> Tensor:
        time = 1 + int(self.step) if self.training else 0
        told = hashlib.sha256(f"{self.seed} {time} {bag.slide_id}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(told[:7], "big"))
        return torch.randperm(len(bag), generator=generator).to(bag.device, torch.float32)

    def after_step(self, step: int, total_steps: int) -> None:
        self.step.fill_(step)

    def inference_state(self) -> dict[str, Tensor]:
        return {}


class UniformGrid(ScoredSelector):
    """Every (N / k)-th patch in raster order: by rows of the grid, in a row by columns.

    Patches without coords are taken in the order of the bag.
    """

    conformance_params: ClassVar = {"k": 0.25}

    def hard(self, bag: Bag) -> Selected:
        self.tell_if_all(bag)
        kept = kept_count(self.k, len(bag))
        places = torch.arange(kept, device=bag.device) * len(bag) // kept  # (K,)
        index = raster_order(bag)[places].sort().values
        return Selected(bag if kept == len(bag) else bag.subset(index), index)


def raster_order(bag: Bag) -> Tensor:
    """(N,) int64: rows of the bag by (y, x)."""
    if bag.coords is None:
        return torch.arange(len(bag), device=bag.device)
    cells = bag.coords if bag.spacing is None else bag.grid()
    by_x = torch.argsort(cells[:, 0], stable=True)
    return by_x[torch.argsort(cells[by_x, 1], stable=True)]


class Norm(ScoredSelector):
    """The k patches whose features have the largest Euclidean norm."""

    conformance_params: ClassVar = {"k": 0.25}

    def score(self, bag: Bag) -> Tensor:
        found: Tensor = torch.linalg.vector_norm(bag.features.float(), dim=1)
        return found
