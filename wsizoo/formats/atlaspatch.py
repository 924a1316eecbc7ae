"""AtlasPatch: .h5 with `coords` (x, y, width, height, level) and a group of features by encoder."""

from __future__ import annotations

from pathlib import Path

from wsizoo.errors import DataError
from wsizoo.fingerprint import Fingerprint
from wsizoo.formats.contents import Contents, Format, Look
from wsizoo.formats.hdf5 import dataset, number, opened, plain, rows
from wsizoo.formats.trident import vectors

COLUMNS = 5


def _recognises(look: Look) -> bool:
    group = look.shapes.get("features", ()) is None
    return look.kind == "hdf5" and group and "coords" in look.shapes


def _read(path: Path, table: str | None) -> Contents:
    """Contents of one encoder's features; see `Format`."""
    with opened(path) as file:
        name = chosen(list(file["features"]), table, path)
        features, places = dataset(file, f"features/{name}", path), dataset(file, "coords", path)
        if places.ndim != 2 or places.shape[1] != COLUMNS:
            raise DataError(f"'{path}': coords are {places.shape}, expected (N, {COLUMNS})")
        coords, told = places[()], plain(file.attrs)
        shape = vectors(features.shape, coords, path)
        size = number(told, "patch_size", path)
        edge = number(told, "patch_size_level0", path)
        return Contents(
            (path,),
            shape,
            str(features.dtype),
            rows(path, f"features/{name}", shape),
            coords[:, :2],
            footprint=edge,
            step=edge,
            encoder=Fingerprint(name, patch_size=int(size) if size else None),
            attributes=told,
        )


def chosen(names: list[str], wanted: str | None, path: Path) -> str:
    """The one set of features that is meant. Raises DataError."""
    if wanted in names:
        return str(wanted)
    if wanted is None and len(names) == 1:
        return names[0]
    raise DataError(
        f"'{path}' holds {len(names)} sets of features ({', '.join(names) or 'none'}); "
        + (f"'{wanted}' is none of them" if wanted else "name one: --table NAME (table=...)")
    )


FORMAT = Format(
    "atlaspatch",
    "AtlasPatch: .h5 with a group features and coords (N, 5)",
    _recognises,
    _read,
)
