"""Patients, or whole sites of them, dealt to parts so that each stratum is shared as asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
STARTS = 5  # random orders of sites that the search begins with
ALMOST = 1e-9


def draw(key: str, name: str) -> bytes:
    """A random place in the order, of the key and the name alone."""
    return hashlib.sha256(f"{key}\n{name}".encode()).digest()


def deal(names: Sequence[str], strata: Sequence[str], shares: Sequence[float], key: str) -> Ints:
    """The part (n,) of each patient; of every stratum, a part has its share within one patient.

    What rounding takes from a part in one stratum, it is the first to get in the next, so that the
    parts as a whole have their shares too.

    Args:
        names, strata: (n,), each name once. shares: (P,), 1 together. key: of the draw.
    """
    parts = np.zeros(len(names), np.int64)
    behind = np.zeros(len(shares))
    for stratum in sorted(set(strata)):
        members = [i for i, other in enumerate(strata) if other == stratum]
        members.sort(key=lambda i: draw(key, names[i]))
        wanted = len(members) * np.asarray(shares, dtype=np.float64)
        counts = np.floor(wanted + ALMOST).astype(np.int64)
        behind += wanted - counts
        may_have_more = np.where(wanted - counts > ALMOST, behind, -np.inf)
        first = np.argsort(-may_have_more.round(9), kind="stable")[: len(members) - counts.sum()]
        counts[first] += 1
        behind[first] -= 1
        parts[members] = np.repeat(np.arange(len(shares)), counts)
    return parts


def deal_sites(
    sites: Sequence[str], strata: Sequence[str], shares: Sequence[float], key: str
) -> Ints:
    """The part (n,) of each patient, all of a site in one: as near to the shares as a search finds.

    Sites are placed one by one, the largest first, then moved and swapped while the squared error
    of the shares falls: that of each stratum, and that of all patients. The best of five starts.

    Args:
        shares: (P,), no more of them above 0 than there are sites.
    """
    names, site_of = np.unique(list(sites), return_inverse=True)
    kinds, stratum_of = np.unique(list(strata), return_inverse=True)
    counts = np.zeros((len(names), len(kinds)))
    np.add.at(counts, (site_of, stratum_of), 1)
    have = np.column_stack([counts / counts.sum(0), counts.sum(1) / counts.sum()])  # (S, K + 1)
    open_parts = np.flatnonzero(np.asarray(shares) > 0)
    wanted = np.asarray(shares, dtype=np.float64)[open_parts]
    found = []
    for start in range(STARTS):
        drawn = [draw(f"{key}/{start}", name) for name in names.tolist()]
        order = sorted(range(len(names)), key=lambda i: (-have[i, -1].round(2), drawn[i]))
        found.append(_improved(have, _placed(have, wanted, order), wanted))
    best = min(found, key=lambda parts: round(float((_over(have, parts, wanted) ** 2).sum()), 9))
    return np.asarray(open_parts[best[site_of]], dtype=np.int64)


def _over(have: Floats, parts: Ints, wanted: Floats) -> Floats:
    """What each part has too much (P, K), of sites that have a part (not -1)."""
    over = np.repeat(-wanted[:, None], have.shape[1], 1)
    np.add.at(over, parts[parts >= 0], have[parts >= 0])
    return over


def _placed(have: Floats, wanted: Floats, order: Sequence[int]) -> Ints:
    """Each site to the part that lacks most of what it has; none is left empty."""
    parts = np.full(len(have), -1, np.int64)
    for place, site in enumerate(order):
        fit = _over(have, parts, wanted) @ have[site]
        empty = ~np.isin(np.arange(len(wanted)), parts)
        if empty.sum() >= len(order) - place:
            fit[~empty] = np.inf
        parts[site] = fit.round(12).argmin()
    return parts


def _improved(have: Floats, parts: Ints, wanted: Floats) -> Ints:
    """Move or swap the sites that lower the squared error most, until none does.

    A site with shares c that goes from part a to b changes the error by 2 c.c - 2 c.o_a + 2 c.o_b,
    o being what a part has too much; a swap of two is the move of their difference.
    """
    parts, rows = parts.copy(), np.arange(len(parts))
    gram = have @ have.T  # (S, S)
    square = np.diag(gram)
    while True:
        fit = have @ _over(have, parts, wanted).T  # (S, P)
        own = fit[rows, parts]
        move = 2 * (square[:, None] - own[:, None] + fit)  # (S, P)
        move[rows, parts] = 0
        move[np.bincount(parts, minlength=len(wanted))[parts] == 1] = 0  # leaves no part empty
        theirs = fit[:, parts]  # (S, S): fit of site i to the part of site j
        swap = 2 * (square[:, None] + square - 2 * gram - own[:, None] + theirs.T + theirs - own)
        swap[parts[:, None] == parts] = 0
        move, swap = move.round(12), swap.round(12)
        if min(move.min(), swap.min()) >= -ALMOST:
            return parts
        if move.min() <= swap.min():
            site, part = np.unravel_index(move.argmin(), move.shape)
            parts[site] = part
        else:
            one, other = np.unravel_index(swap.argmin(), swap.shape)
            parts[[one, other]] = parts[[other, one]]
