"""torchmil folders: features/, coords/, labels/, inst_labels/, an .npy file a bag in each.

Source: `ProcessedMILDataset` and `WSIDataset` of torchmil. The latter divides coords by its
argument `patch_size` and truncates; so a step that is no whole number of px is rounded on writing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsizoo.bag import Bag
from wsizoo.formats.contents import (
    DETAILS,
    ENCODER,
    FRACTIONS,
    MPP,
    OVERLAP,
    Contents,
    Format,
    Look,
    Written,
)
from wsizoo.formats.tensors import array_contents, load_array, save_array

FEATURES, COORDS, LABELS, INSTANCES = "features", "coords", "labels", "inst_labels"


def _recognises(look: Look) -> bool:
    if look.kind == "folder":
        return _is_dataset(look.path)
    return (
        look.kind == "npy"
        and look.path.parent.name == FEATURES
        and (_is_dataset(look.path.parent.parent))
    )


def _is_dataset(folder: Path) -> bool:
    others = any((folder / name).is_dir() for name in (COORDS, LABELS, INSTANCES))
    return others and any((folder / FEATURES).glob("*.npy"))


def _read(path: Path, table: str | None) -> Contents:
    """Contents of one of features/*.npy; see `Format`."""
    found = array_contents(path)
    places = {name: path.parent.parent / name / path.name for name in (COORDS, LABELS, INSTANCES)}
    there = {name: place for name, place in places.items() if place.is_file()}
    arrays = {name: load_array(place) for name, place in there.items()}
    target: dict[str, Any] = {}
    if LABELS in arrays and arrays[LABELS].size == 1:
        target["label"] = arrays[LABELS].reshape(()).item()
    if INSTANCES in arrays:
        target["instances"] = torch.from_numpy(arrays[INSTANCES])
    return dataclasses.replace(
        found,
        files=(path, *there.values()),
        coords=arrays.get(COORDS),
        target=target or None,
        attributes={"label_shape": list(arrays[LABELS].shape)} if LABELS in arrays else {},
    )


def _bags(folder: Path) -> list[tuple[Path, Mapping[str, Any] | None]]:
    return [(file, None) for file in sorted((folder / FEATURES).glob("*.npy"))]


def _targets(folder: Path, slide: str) -> list[Path]:
    names = (COORDS, LABELS, INSTANCES, FEATURES)
    return [folder / name / f"{slide}.npy" for name in names]


def _write(bag: Bag, told: Written, folder: Path) -> Sequence[str]:
    """The arrays of one slide, as far as there are any."""
    coords, label, instances, features = _targets(folder, bag.slide_id)
    target = bag.target or {}
    if bag.coords is not None:
        places = bag.coords.cpu().numpy()
        if bag.spacing is not None and bag.spacing != round(bag.spacing):
            places = bag.grid().cpu().numpy() * round(bag.spacing)
        save_array(coords, places)
    if "label" in target:
        shape = told.attributes.get("label_shape", [1])
        save_array(label, np.asarray(target["label"]).reshape(shape))
    if "instances" in target:
        save_array(instances, np.asarray(target["instances"]))
    save_array(features, bag.features.cpu().numpy())
    return (MPP, OVERLAP, FRACTIONS, ENCODER, DETAILS)


FORMAT = Format(
    "torchmil",
    "torchmil: a folder with features/*.npy and coords/ or labels/",
    _recognises,
    _read,
    _targets,
    _write,
    _bags,
)
