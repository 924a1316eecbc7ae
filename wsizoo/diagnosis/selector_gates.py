"""How hard soft gates are already: what of their budget lies on the patches that are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.selection import SoftSelector, kept_count

Index = NDArray[np.int64]
TEMPERATURES = np.geomspace(0.2, 20.0, 11)  # of the end temperature
DRAWN = 3  # times k: gates of a slide that are drawn


@dataclass(frozen=True, eq=False)
class SlideGates:
    """Of one slide.

    Args:
        n: patches. k: that are kept. kept: (k,) rows of them, ascending.
        overlap: share of the soft budget that lies on the kept patches, 0 to 1.
        entropy: bits a kept patch, 0 where gates are hard. effective: number of gates, at least k.
        largest: gates, descending, the first 3 k.
        warmer: (overlap, entropy) at `TEMPERATURES` times the end temperature.
    """

    slide: str
    n: int
    k: int
    kept: Index
    overlap: float
    entropy: float
    effective: float
    largest: tuple[float, ...]
    warmer: tuple[tuple[float, float], ...]


def slide_gates(selector: SoftSelector, bag: Bag) -> SlideGates:
    """The gates of a slide at the end temperature. Raises as the selector, on this bag."""
    n = len(bag)
    k = kept_count(selector.k, n)
    kept = kept_rows(selector, bag)
    scores = selector.score(bag)
    end = selector.end_temperature
    gates, rest = _gates(selector, scores, end)
    warmer = []
    for times in TEMPERATURES:
        warm, cold = _gates(selector, scores, float(end * times))
        warmer.append((overlap(warm, kept, k), entropy(warm, cold, k)))
    return SlideGates(
        slide=bag.slide_id,
        n=n,
        k=k,
        kept=kept.cpu().numpy(),
        overlap=overlap(gates, kept, k),
        entropy=entropy(gates, rest, k),
        effective=effective_number(gates),
        largest=tuple(gates.sort(descending=True).values[: DRAWN * k].tolist()),
        warmer=tuple(warmer),
    )


def kept_rows(selector: SoftSelector, bag: Bag) -> Tensor:
    """(K,) int64, rows that the hard path keeps, ascending."""
    index = selector.hard(bag).index
    return torch.arange(len(bag), device=bag.device) if index is None else index


def _gates(selector: SoftSelector, scores: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Gates and 1 - gates, (N,) float64."""
    found = selector.gates(scores, temperature=temperature)
    return found.gates.double(), found.rest.double()


def overlap(gates: Tensor, kept: Tensor, k: float) -> float:
    """Share of the soft budget on the kept patches; the k largest gates are always those."""
    return float(gates[kept].sum()) / k


def entropy(gates: Tensor, rest: Tensor, k: float) -> float:
    """-sum(g log2 g + (1 - g) log2(1 - g)) / k, bits a kept patch; n H(k/n) / k at most."""
    nats = torch.special.entr(gates).sum() + torch.special.entr(rest).sum()
    return float(nats) / math.log(2) / k


def most_entropy(n: int, k: int) -> float:
    """Of equal gates k / n."""
    share = torch.tensor(k / n, dtype=torch.float64)
    return entropy(share.expand(n), 1 - share.expand(n), k)


def effective_number(gates: Tensor) -> float:
    """(sum g)^2 / sum g^2: as many gates as equal ones would be, k where gates are hard."""
    return float(gates.sum() ** 2 / (gates**2).sum())


@dataclass(frozen=True)
class Alike:
    """How alike the patches are that several runs keep of the same slides.

    Args:
        jaccard: mean over slides and pairs of runs. chance: of sets drawn at random.
    """

    jaccard: float
    chance: float
    runs: int
    slides: int


def alike(runs: Sequence[Sequence[SlideGates]]) -> Alike | None:
    """Jaccard of the hard sets, over the slides that two runs share; None where none do."""
    found, chances, slides = [], [], set()
    for first, second in combinations(runs, 2):
        others = {one.slide: one for one in second}
        for mine in first:
            other = others.get(mine.slide)
            if other is None or other.n != mine.n:
                continue
            together = len(np.intersect1d(mine.kept, other.kept))
            found.append(together / (mine.k + other.k - together))
            drawn = mine.k * other.k / mine.n
            chances.append(drawn / (mine.k + other.k - drawn))
            slides.add(mine.slide)
    return Alike(fmean(found), fmean(chances), len(runs), len(slides)) if found else None
