"""SPAN: .h5 with `feats` and `cords`, both as its `extract_pretrain_feats.py` writes them.

Its loader divides `cords` by 224 and truncates, so they must be whole multiples of 224, whatever
the level; in which px they are the file does not say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.errors import DataError
from wsizoo.files import replacing
from wsizoo.formats.contents import (
    DETAILS,
    ENCODER,
    FRAMES,
    LABEL,
    OWN,
    SCALE,
    Contents,
    Format,
    Look,
    Written,
    check_one_step,
)
from wsizoo.formats.hdf5 import coordinates, dataset, opened, rows
from wsizoo.formats.trident import vectors

STEP = 224


def published_cells(coords: Tensor) -> Tensor:
    """Cells (N, 2) int64 from 0 as SPAN's loader makes them: coords / 224, less the least, cut.

    Equal to `Bag.grid()` up to its origin for whole multiples of 224. Of others it may put several
    patches into one cell, which `wsizoo.read_bag` refuses, and SPAN's attention then mixes up.

    Args:
        coords: (N, 2), N >= 1, the `cords` of a file.

    Source: `normalize_coords`, https://github.com/wwyi1828/SPAN at 08e4ba0; float32 as there.
    """
    steps = coords.float() / STEP
    return (steps - steps.amin(0)).long()


def _recognises(look: Look) -> bool:
    return look.kind == "hdf5" and {"feats", "cords"} <= set(look.shapes)


def _read(path: Path, table: str | None) -> Contents:
    """Contents; see `Format`. `ratios` are the target `instances`, a one-hot `label` its index."""
    with opened(path) as file:
        features, coords = dataset(file, "feats", path), coordinates(file, "cords", path)
        shape = vectors(features.shape, coords, path)
        target, attributes = _target(file, shape[0], path)
        return Contents(
            (path,),
            shape,
            str(features.dtype),
            rows(path, "feats", shape),
            coords,
            frame=OWN,
            step=float(STEP),
            footprint=float(STEP),
            target=target or None,
            attributes=attributes,
        )


def _target(file: Any, n: int, path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    target: dict[str, Any] = {}
    attributes: dict[str, Any] = {}
    if "ratios" in file:
        ratios = dataset(file, "ratios", path)[()].reshape(-1)
        if len(ratios) != n:
            raise DataError(f"'{path}' has {len(ratios)} ratios for {n} patches, expected one each")
        target["instances"] = torch.from_numpy(ratios)
    if "label" in file:
        classes = dataset(file, "label", path)[()].reshape(-1)
        target["label"] = int(classes.argmax())
        attributes["classes"] = len(classes)
    return target, attributes


def _targets(folder: Path, slide: str) -> list[Path]:
    return [folder / f"{slide}.h5"]


def _write(bag: Bag, told: Written, folder: Path) -> Sequence[str]:
    """One file; coordinates are cells times 224.

    Raises:
        BagError: patches that share a cell. DataError: patches overlap.
    """
    import h5py

    (path,) = _targets(folder, bag.slide_id)
    check_one_step(bag, f"SPAN's files have one step, {STEP}, for both")
    cells = bag.require_unique_cells().cpu().numpy()
    target, classes = bag.target or {}, told.attributes.get("classes")
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("feats", data=bag.features.cpu().numpy())
        file.create_dataset("cords", data=cells.astype(np.int64) * STEP)
        if "instances" in target:
            file.create_dataset("ratios", data=np.asarray(target["instances"]))
        if "label" in target and classes:
            file.create_dataset(
                "label", data=np.eye(int(classes), dtype=np.float32)[[int(target["label"])]]
            )
    return (SCALE, ENCODER, DETAILS, *(() if classes else (LABEL,)))


FORMAT = Format(
    "span",
    "SPAN: .h5 with feats and cords",
    _recognises,
    _read,
    _targets,
    _write,
    frames=FRAMES,
)
