"""slideflow bags: `<slide>.pt` with `<slide>.index.npz` (centres of tiles), `bags_config.json`.

Source: slideflow's `generate_feature_bags` and `tfrecord2idx.save_index`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsizoo.bag import Bag
from wsizoo.errors import DataError
from wsizoo.files import write_json
from wsizoo.fingerprint import Fingerprint
from wsizoo.formats.contents import (
    DETAILS,
    INSTANCES,
    LABEL,
    MPP,
    Contents,
    Format,
    Look,
    Written,
    check_one_step,
)
from wsizoo.formats.encoders import fingerprint_of, name_in
from wsizoo.formats.regrid import estimate_step
from wsizoo.formats.tensors import load_array, save_array, save_tensor, tensor_contents

CONFIG = "bags_config.json"


def _recognises(look: Look) -> bool:
    return look.kind == "torch" and _index(look.path).exists()


def _index(path: Path) -> Path:
    return path.with_name(f"{path.stem}.index.npz")


def _read(path: Path, table: str | None) -> Contents:
    """Contents; see `Format`. The edge of a tile in px is what its neighbours are apart."""
    config = _config(path.parent)
    found = tensor_contents(path, encoder=_made(config), attributes=config)
    if not _index(path).exists():
        return found
    centres = load_array(_index(path))
    if centres.ndim != 2 or centres.dtype.kind not in "iuf":
        raise DataError(
            f"'{_index(path)}' holds {centres.shape} {centres.dtype}, expected the centre (x, y) "
            "of each tile"
        )
    edge = estimate_step(centres.astype(np.float64)) if len(centres) else None
    if len(centres) and edge is None:
        raise DataError(
            f"'{path}' has one tile, whose edge in px is not known, so its corner is not either"
        )
    coords = centres - int((edge or 0) / 2)
    files = (path, _index(path))
    return dataclasses.replace(found, files=files, coords=coords, step=edge, footprint=edge)


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        return {}
    try:
        told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"'{folder / CONFIG}' is no JSON: {error}") from error
    if not isinstance(told, dict):
        raise DataError(f"'{folder / CONFIG}' holds a {type(told).__name__}, expected a mapping")
    return told


def _made(config: dict[str, Any]) -> Fingerprint:
    known: dict[str, Any] = {}
    size, microns = config.get("tile_px"), config.get("tile_um")
    if isinstance(size, int) and size > 0:
        known["patch_size"] = size
        known["mpp"] = microns / size if isinstance(microns, int | float) else None
    if config.get("normalizer"):
        known["preprocessing"] = f"stain normalizer {config['normalizer']} (slideflow)"
    extractor = config.get("extractor")
    theirs = extractor.get("class") if isinstance(extractor, dict) else extractor
    if not isinstance(theirs, str):
        return Fingerprint(**known)
    return fingerprint_of("slideflow", theirs, **known)


def _targets(folder: Path, slide: str) -> list[Path]:
    return [folder / f"{slide}.index.npz", folder / f"{slide}.pt"]


def _write(bag: Bag, told: Written, folder: Path) -> Sequence[str]:
    """The files of one slide; the folder's configuration must be that of all of them.

    Raises:
        DataError: patches overlap, or bags of another encoder lie in the folder.
    """
    check_one_step(bag, "slideflow's files have centres of patches, and no width")
    index, tensor = _targets(folder, bag.slide_id)
    config = told.attributes if "extractor" in told.attributes else _described(bag)
    there = _config(folder)
    if there and there != config:
        raise DataError(f"'{folder / CONFIG}' describes other bags; choose another folder")
    if not there:
        write_json(folder / CONFIG, dict(config))
    if bag.coords is not None and bag.footprint is not None:
        centres: NDArray[np.int64] = bag.coords.cpu().numpy() + int(bag.footprint / 2)
        save_array(index, centres, packed=True)
    save_tensor(tensor, bag.features)
    return (MPP, DETAILS, LABEL, INSTANCES)


def _described(bag: Bag) -> dict[str, Any]:
    made = bag.encoder or Fingerprint()
    named = name_in("slideflow", made) if made.encoder else None
    size, mpp = made.patch_size, made.mpp
    return {
        "extractor": {"class": named, "kwargs": {}},
        "normalizer": None,
        "num_features": bag.dim,
        "tile_px": size,
        "tile_um": size * mpp if size and mpp else None,
    }


FORMAT = Format(
    "slideflow",
    "slideflow: .pt with .index.npz beside it",
    _recognises,
    _read,
    _targets,
    _write,
)
