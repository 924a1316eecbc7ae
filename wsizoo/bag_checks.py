"""What parts ask of a bag's patches before they compute: each raises a BagError that says whose.

For aggregators, of the core and of plugins. What every bag must hold, `Bag` checks itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.errors import BagError

SLACK = 0.25  # of a cell that patches may lie apart from one grid
ROUNDING = 1.0  # level-0 px, of coordinates that were rounded to whole pixels
FARTHEST = 1 << 28  # cells along an axis of a slide, so that those of a batch can be numbered
SHOWN = 3  # offenders that a message names


def check_any(bag: Bag, consequence: str) -> None:
    """Raise BagError for a bag without patches. consequence: such as "nothing to attend to"."""
    if len(bag) == 0:
        raise BagError(f"{bag.slide_id} has no patches: {consequence}")


def check_width(bag: Bag, width: int, whose: str) -> None:
    """Raise BagError unless a bag's features are (N, width)."""
    if bag.features.ndim != 2 or bag.dim != width:
        raise BagError(
            f"{bag.slide_id}: features are {tuple(bag.features.shape)}, {whose} reads (N, {width})"
        )


def check_features(bag: Bag) -> None:
    """Raise BagError where a bag's features are not finite."""
    features = bag.features
    if features.is_floating_point() and not torch.isfinite(features.sum(dtype=torch.float32)):
        _refuse_not_finite(bag)  # a sum is quick; it overflows, but seldom in float32


def _refuse_not_finite(bag: Bag) -> None:
    bad = torch.nonzero(~torch.isfinite(bag.features).all(1))[:, 0]
    if len(bad):
        raise BagError(
            f"slide '{bag.slide_id}': {len(bad)} of {len(bag)} patches have NaN or infinite "
            f"features, first patch {int(bad[0])}. Extract it again"
        )


def check_finite(found: Tensor, bags: Sequence[Bag], whose: str) -> None:
    """Raise BagError where what a network gives for these bags is not finite: whose fault it is."""
    if bool(torch.isfinite(found.detach()).all()):
        return
    for bag in bags:
        check_features(bag)
    largest = max(float(bag.features.detach().abs().max()) for bag in bags)
    raise BagError(
        f"{bags[0].slide_id}: {whose}'s result is not finite although its features are, up to "
        f"{largest:.3g}: they overflow, or the weights are not finite"
    )


def check_extent(bag: Bag, unit: float) -> None:
    """Raise BagError unless all patches are within `FARTHEST` units (px) of each other."""
    assert bag.coords is not None
    width, height = ((bag.coords.amax(0) - bag.coords.amin(0)) / unit).tolist()
    if max(width, height) < FARTHEST:
        return
    far = int((bag.coords - bag.coords.median(0).values).abs().amax(1).argmax())
    raise BagError(
        f"{bag.slide_id}: patches span {width:.3g} cells of {unit:g} px in x, {height:.3g} in y; "
        f"at most {FARTHEST} along an axis fit on a grid; patch {far} lies at "
        f"{tuple(bag.coords[far].tolist())}. wsizoo inspect FILE shows whether the file is whole"
    )


def check_on_grid(bag: Bag, off: Tensor) -> None:
    """Raise BagError unless all patches lie on one grid, wherever it begins, within `SLACK`.

    Args:
        off: (N, 2) level-0 px, of each patch from its cell.
    """
    assert bag.coords is not None and bag.spacing is not None
    allowed = SLACK * bag.spacing + ROUNDING
    if float((off.amax(0) - off.amin(0)).max()) <= allowed:
        return
    apart = (off - off.median(0).values).abs().amax(1)
    worst = (apart > allowed / 2).nonzero()[:, 0]
    first = ", ".join(
        f"patch {i} at {tuple(bag.coords[i].tolist())}" for i in worst[:SHOWN].tolist()
    )
    raise BagError(
        f"{bag.slide_id}: {len(worst)} of {len(bag)} patches lie off the grid of spacing "
        f"{bag.spacing} by more than {SLACK:g} of a cell, first {first}; spacing is the step "
        "between neighbours, also where they overlap. wsizoo convert FILE FOLDER puts them onto one"
    )
