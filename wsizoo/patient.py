"""Joining the slides of a patient into one bag: `Bag.concat`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wsizoo.bag import Bag, check_alike
from wsizoo.errors import BagError

PATCH_MPP_TOLERANCE = 0.02  # relative difference of patch widths in microns that counts as another


def join(bags: Sequence[Bag], gap: int) -> Bag:
    """One bag of all slides, their grids `gap` empty cells apart. Raises as `Bag.concat`."""
    check_alike(bags, "Bag.concat")
    _check_fit(bags)
    first = bags[0]
    if len(bags) == 1:
        return first.replace(parts=torch.tensor([0, len(first)]))
    return first.replace(
        features=torch.cat([bag.features for bag in bags]),
        coords=None if first.coords is None else _side_by_side(bags, gap),
        encoder=next((bag.encoder for bag in bags if bag.encoder is not None), None),
        slide_id="+".join(bag.slide_id for bag in bags),
        target=_joined_target(bags),
        parts=torch.tensor([0, *map(len, bags)]).cumsum(0),
    )


def _check_fit(bags: Sequence[Bag]) -> None:
    first = bags[0]
    known = next((bag for bag in bags if bag.encoder is not None), first)
    for bag in bags[1:]:
        pair = f"{first.slide_id} and {bag.slide_id}"
        if (bag.coords is None) != (first.coords is None):
            raise BagError(f"{pair}: only one of them has coords")
        if known.encoder and bag.encoder:
            known.encoder.check_same(bag.encoder, known.slide_id, bag.slide_id)
        if first.mpp and bag.mpp and first.footprint and bag.footprint:
            mine, theirs = first.footprint * first.mpp, bag.footprint * bag.mpp
            if abs(mine - theirs) > PATCH_MPP_TOLERANCE * mine:
                raise BagError(
                    f"patches of {first.slide_id} are {mine:.1f} um wide, those of {bag.slide_id} "
                    f"{theirs:.1f} um: extract both at one scale"
                )


def _side_by_side(bags: Sequence[Bag], gap: int) -> Tensor:
    """Coords (N_total, 2) on the first bag's spacing, the grid of each bag right of the last."""
    moved, start = [], 0
    for bag in bags:
        cells = bag.grid()
        if len(cells):
            cells = cells - cells.amin(0) + torch.tensor([start, 0]).to(cells)
            start = int(cells[:, 0].max()) + 1 + gap
        moved.append(cells)
    assert bags[0].spacing is not None  # grid() has seen to it
    return torch.round(torch.cat(moved).double() * bags[0].spacing).long()


def _joined_target(bags: Sequence[Bag]) -> Mapping[str, Any] | None:
    """What the slides state, which must agree; per-patch targets where every slide has them."""
    joined: dict[str, Any] = {}
    for bag in bags:
        for key, value in (bag.target or {}).items():
            known = joined.setdefault(key, value)
            if key != "instances" and bool(torch.as_tensor(known != value).any()):
                raise BagError(
                    f"{bag.slide_id}: {key} is {value}, another slide of this patient has {known}"
                )
    joined.pop("instances", None)
    if all("instances" in (bag.target or {}) for bag in bags):
        labels = [torch.as_tensor(bag.target["instances"]) for bag in bags if bag.target]
        joined["instances"] = torch.cat(labels)
    return joined or None
