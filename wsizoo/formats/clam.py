"""CLAM: `h5_files/<slide>.h5`, `pt_files/<slide>.pt`, and `patches/<slide>.h5` with the scale.

Source: `save_hdf5`, `process_contours` and `extract_features_fp.py` of CLAM. Each contour has its
own origin, so the coordinates of a slide are not on one grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsizoo.bag import Bag
from wsizoo.errors import DataError
from wsizoo.files import replacing
from wsizoo.formats.contents import (
    DETAILS,
    ENCODER,
    INSTANCES,
    LABEL,
    MPP,
    Contents,
    Format,
    Look,
    Written,
)
from wsizoo.formats.hdf5 import coordinates, dataset, is_hdf5, number, opened, plain, rows
from wsizoo.formats.tensors import save_tensor, tensor_contents
from wsizoo.formats.trident import MARKS, vectors
from wsizoo.slides.facts import SlideFacts

CHUNK = 32  # rows, as CLAM's


def _recognises(look: Look) -> bool:
    if look.kind == "torch":
        return not _index(look.path).exists() and bool(_beside(look.path))
    marks = {"wsizoo", "wsizoo_slide"} & look.attributes or MARKS & look.coords_attributes
    named = bool({"features", "coords"} & set(look.shapes)) and "encoder" not in (
        look.features_attributes
    )
    own = look.shapes.get("features", ()) is not None and not {"feats", "cords"} & set(look.shapes)
    return look.kind == "hdf5" and named and own and not marks


def _index(path: Path) -> Path:
    """slideflow's file of coordinates beside a .pt file."""
    return path.with_name(f"{path.stem}.index.npz")


def _beside(path: Path) -> list[Path]:
    """Files of the same slide in CLAM's other folders, those with the coordinates first."""
    folders = ("h5_files", "patches")
    places = [path.parent.parent / folder / f"{path.stem}.h5" for folder in folders]
    return [place for place in places if place != path and place.is_file()]


def _read(path: Path, table: str | None) -> Contents:
    """Contents; see `Format`. Raises DataError."""
    found = _of_h5(path) if is_hdf5(path) else _of_tensor(path)
    scale = next((place for place in _beside(path) if place.parent.name == "patches"), None)
    return found if scale is None else _scaled(found, scale)


def _of_h5(path: Path) -> Contents:
    with opened(path) as file:
        if "features" not in file:
            raise DataError(
                f"'{path}' holds CLAM's coordinates and no features. Give the file of the same "
                "name in h5_files/ or pt_files/"
            )
        features, coords = dataset(file, "features", path), coordinates(file, "coords", path)
        shape = vectors(features.shape, coords, path)
        load = rows(path, "features", shape)
        return Contents((path,), shape, str(features.dtype), load, coords)


def _of_tensor(path: Path) -> Contents:
    """Features of a .pt file, coordinates of the .h5 of the same slide where there is one."""
    found = tensor_contents(path)
    for place in _beside(path):
        with opened(place) as file:
            coords = coordinates(file, "coords", place)
        if coords is not None:
            return dataclasses.replace(found, files=(path, place), coords=coords)
    return found


def _scaled(found: Contents, scale: Path) -> Contents:
    """With the edge of a patch, which only the file of patches states."""
    with opened(scale) as file:
        told = plain(file["coords"].attrs) if "coords" in file else {}
    size, level = number(told, "patch_size", scale), told.get("downsample", [1.0])
    by = float(np.max(level)) * float(told.get("custom_downsample") or 1)
    width, height = (told.get("level_dim") or [None, None])[:2] if by == 1 else (None, None)
    return dataclasses.replace(
        found,
        files=tuple(dict.fromkeys((*found.files, scale))),
        step=size * by if size else None,
        footprint=size * by if size else None,
        facts=SlideFacts(found.path.stem, width, height),
        attributes=told,
    )


def _targets(folder: Path, slide: str) -> list[Path]:
    places = ("patches/{}.h5", "h5_files/{}.h5", "pt_files/{}.pt")
    return [folder / place.format(slide) for place in places]


def _write(bag: Bag, told: Written, folder: Path) -> Sequence[str]:
    """The three files of a slide; without coordinates the .pt only."""
    import h5py

    patches, features, tensor = _targets(folder, bag.slide_id)
    if bag.coords is not None:
        coords = bag.coords.cpu().numpy()
        chunk = min(CHUNK, max(1, len(bag)))
        if bag.footprint is not None:
            with replacing(patches) as temporary, h5py.File(temporary, "w") as file:
                placed = file.create_dataset(
                    "coords", data=coords, chunks=(chunk, 2), maxshape=(None, 2)
                )
                placed.attrs.update(_attributes(bag, told, folder))
        with replacing(features) as temporary, h5py.File(temporary, "w") as file:
            file.create_dataset(
                "features",
                data=bag.features.cpu().numpy(),
                chunks=(chunk, bag.dim),
                maxshape=(None, bag.dim),
            )
            file.create_dataset(
                "coords", data=coords.astype(np.int32), chunks=(chunk, 2), maxshape=(None, 2)
            )
    save_tensor(tensor, bag.features)
    return (MPP, ENCODER, DETAILS, LABEL, INSTANCES)


def _attributes(bag: Bag, told: Written, folder: Path) -> dict[str, Any]:
    assert bag.footprint is not None
    size = {"level_dim": [told.facts.width, told.facts.height]} if told.facts.width else {}
    own: dict[str, Any] = {
        "patch_size": round(bag.footprint),
        "patch_level": 0,
        "downsample": [1.0, 1.0],
        **size,
        **({"downsampled_level_dim": size["level_dim"]} if size else {}),
    }
    if told.attributes.get("patch_size"):
        own = dict(told.attributes)
    return {**own, "name": bag.slide_id, "save_path": str(folder / "patches")}


FORMAT = Format(
    "clam",
    "CLAM: h5_files/*.h5 with features and coords, or pt_files/*.pt",
    _recognises,
    _read,
    _targets,
    _write,
)
