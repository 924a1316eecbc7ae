"""STAMP: .h5 with `feats` and `coords`, in um since version 2, before that in px of its own.

Source: `modeling/data.get_coords` and `preprocessing/__init__.py` of STAMP. Its early files have
coordinates in px of an image that it made of the slide; STAMP takes 224 of them for 256 um. Files
of that time exist in which they are 448 um (2 um/px), and nothing in them tells, so the width is
not assumed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsizoo.bag import Bag
from wsizoo.errors import DataError
from wsizoo.files import replacing
from wsizoo.fingerprint import Fingerprint
from wsizoo.formats.contents import (
    DETAILS,
    INSTANCES,
    LABEL,
    LEVEL0,
    MICRONS,
    MPP,
    OWN,
    Contents,
    Format,
    Look,
    Written,
)
from wsizoo.formats.encoders import fingerprint_of, name_in
from wsizoo.formats.hdf5 import coordinates, dataset, number, opened, plain, rows
from wsizoo.formats.trident import vectors

KNOWN = 2  # its newest major version whose layout is known here
WRITTEN = "2.1.0"
EARLY = 224  # px of its own, the edge of a tile before version 2
FEATURES = ("feats", "patch_embeddings")


def _recognises(look: Look) -> bool:
    named = any(look.shapes.get(name) is not None for name in FEATURES)
    return (
        look.kind == "hdf5"
        and named
        and ("coords" in look.shapes or ({"stamp_version", "feat_type"} & look.attributes != set()))
    )


def _read(path: Path, table: str | None) -> Contents:
    """Contents; see `Format`. Raises DataError, also for files of a newer STAMP."""
    with opened(path) as file:
        told = plain(file.attrs)
        _check_kind(told, path)
        name = next((name for name in FEATURES if name in file), FEATURES[0])
        features, coords = dataset(file, name, path), coordinates(file, "coords", path)
        shape = vectors(features.shape, coords, path)
        edge, microns = _edge(told, path)
        size = number(told, "tile_size_px", path)
        early = not microns and edge is None and _is_early(coords)
        edge = float(EARLY) if early else edge
        return Contents(
            (path,),
            shape,
            str(features.dtype),
            rows(path, name, shape),
            coords,
            frame=MICRONS if microns else OWN,
            unit=1.0 if microns else None,
            step=edge,
            footprint=edge,
            encoder=_made(told, edge if microns else None, size),
            own_image=early,
            attributes=told,
        )


def _is_early(coords: NDArray[Any] | None) -> bool:
    """Whether tiles lie where its early versions cut them."""
    return coords is not None and coords.dtype.kind in "iuf" and not (coords % EARLY).any()


def _check_kind(told: dict[str, Any], path: Path) -> None:
    if told.get("feat_type", "tile") != "tile":
        raise DataError(
            f"'{path}' holds the embedding of a {told['feat_type']}, expected features of patches"
        )
    version = str(told.get("stamp_version", "0")).partition(".")[0]
    if not version.isdigit() or int(version) > KNOWN:
        raise DataError(
            f"'{path}' was written by STAMP {told['stamp_version']}; its layouts up to {KNOWN}.x "
            "are known here: pip install --upgrade wsizoo"
        )


def _edge(told: dict[str, Any], path: Path) -> tuple[float | None, bool]:
    """Edge of a tile in units of the coordinates, and whether those are um."""
    own = number(told, "tile_size", path)
    if own and told.get("unit") == "um":
        return own, True
    microns = number(told, "tile_size_um", path)
    return (microns, True) if microns else (own, False)


def _made(told: dict[str, Any], microns: float | None, size: float | None) -> Fingerprint:
    known: dict[str, Any] = {}
    if size:
        known = {"patch_size": int(size), "mpp": microns / size if microns else None}
    extractor = told.get("extractor")
    if not isinstance(extractor, str):
        return Fingerprint(**known)
    return fingerprint_of("stamp", extractor, **known)


def _targets(folder: Path, slide: str) -> list[Path]:
    return [folder / f"{slide}.h5"]


def _write(bag: Bag, told: Written, folder: Path) -> Sequence[str]:
    """One file of STAMP's layout since 2.1. Raises DataError: um per px are not known.

    Coordinates in um are written where rounding them in the bag has cost nothing.
    """
    import h5py

    (path,) = _targets(folder, bag.slide_id)
    if bag.coords is None or bag.mpp is None or bag.footprint is None:
        raise DataError(
            f"slide '{bag.slide_id}': STAMP's coordinates are in um, and of this slide "
            f"{'there are none' if bag.coords is None else 'um per px are not known: --mpp 0.25'}"
        )
    if told.frame == MICRONS and told.rounded:
        raise DataError(
            f"slide '{bag.slide_id}': its coordinates are fractions of a um, and were rounded to "
            "whole ones. State the slide's um per px, and they are not: --mpp 0.25"
        )
    made = bag.encoder or Fingerprint()
    own: dict[str, Any] = {
        "stamp_version": WRITTEN,
        "extractor": name_in("stamp", made) if made.encoder else "unknown",
        "unit": "um",
        "tile_size_um": bag.footprint * bag.mpp,
        "feat_type": "tile",
        **({"tile_size_px": made.patch_size} if made.patch_size else {}),
    }
    if "tile_size_um" in told.attributes:
        own = dict(told.attributes)
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        microns = bag.coords.cpu().numpy() * bag.mpp
        file.create_dataset("coords", data=microns.astype(np.float32))
        file.create_dataset("feats", data=bag.features.cpu().numpy())
        file.attrs.update(own)
    return (MPP, DETAILS, LABEL, INSTANCES)


FORMAT = Format(
    "stamp",
    "STAMP: .h5 with feats (or patch_embeddings) and coords",
    _recognises,
    _read,
    _targets,
    _write,
    frames=(LEVEL0, MICRONS),
)
