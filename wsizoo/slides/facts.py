"""What a feature file tells beside its features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsizoo.fingerprint import Fingerprint

READ, UNREADABLE = 0, 1
STATUS = {"READ": READ, "UNREADABLE": UNREADABLE}


@dataclass(frozen=True)
class SlideFacts:
    """What a feature file says of its slide and of how patches were chosen.

    Args:
        width, height: level-0 px. quickhash: the reader's, "" where unknown.
        mpp_source: where the slide's um/px come from. overlap: share of a patch's edge.
        padded: patches that reach beyond the right and bottom edge were taken, white there.
        min_tissue: as asked for, or the encoder's own; None: the default rule.
        mask: digest of the outlines that were given for tissue; None: found by wsizoo.
        tissue: share of the slide that is tissue. beyond_grid: share of that tissue at the right
            and bottom edge, where no patch fits. patient: as its manifest names it.
        certificate: what um/px its patches have, see `wsizoo.slides.patches.certify`.
    """

    slide_id: str
    width: int | None = None
    height: int | None = None
    quickhash: str = ""
    mpp_source: str | None = None
    overlap: float = 0.0
    padded: bool = False
    min_tissue: float | None = None
    mask: str | None = None
    tissue: float | None = None
    beyond_grid: float | None = None
    patient: str | None = None
    certificate: dict[str, Any] | None = None


@dataclass(frozen=True)
class Asked:
    """Every patch that was to be encoded, in the order of the grid, and what became of it.

    Args:
        coords: (M, 2) int64, level-0 px. status: (M,) uint8, READ or UNREADABLE: the slide could
            not be decoded there. The N rows of `/features` are those that were read.
    """

    coords: NDArray[np.int64]
    status: NDArray[np.uint8]


@dataclass(frozen=True)
class FileHeader:
    """The part of a feature file that is read without its features; not checked.

    Args:
        n: patches that were read. unreadable: those that could not be.
        dim: width of a feature vector; None for pixels.
    """

    n: int
    dim: int | None
    fingerprint: Fingerprint
    facts: SlideFacts
    spacing: float | None
    footprint: float | None
    mpp: float | None
    digest: str
    unreadable: int = 0
