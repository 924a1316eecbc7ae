"""HDF5 files that others wrote: opened, looked at and read without trust."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.formats.contents import Look, guarded

SIGNATURE = b"\x89HDF\r\n\x1a\n"
PLACES = (0, 512, 1024, 2048)  # bytes at which a file may begin: before that is a user block


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5 does, be it whole or not."""
    with open(path, "rb") as file:
        begin = file.read(PLACES[-1] + len(SIGNATURE))
    return any(begin[at : at + len(SIGNATURE)] == SIGNATURE for at in PLACES)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open for reading; whatever h5py says of a damaged file becomes a DataError."""
    import h5py

    with guarded(path), h5py.File(path, "r") as file:
        yield file


def look(path: Path) -> Look:
    """Names, shapes and attributes. Raises DataError: damaged."""
    import h5py

    with opened(path) as file:
        shapes = {
            name: item.shape if isinstance(item, h5py.Dataset) else None
            for name, item in ((name, file[name]) for name in file)
        }
        told = {
            name: frozenset(file[name].attrs) if name in file else frozenset()
            for name in ("coords", "features")
        }
        return Look(path, "hdf5", shapes, frozenset(file.attrs), told["coords"], told["features"])


def dataset(file: Any, name: str, path: Path) -> Any:
    """A dataset of numbers. Raises DataError: not there, a group, or of other things."""
    import h5py

    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        kind = "is a group" if isinstance(found, h5py.Group) else "is not there"
        raise DataError(f"'{path}': '{name}' {kind}, expected a dataset; it holds {sorted(file)}")
    if found.dtype.kind not in "iufb":
        raise DataError(f"'{path}': '{name}' is of type {found.dtype}, expected numbers")
    return found


def rows(path: Path, name: str, shape: tuple[int, ...]) -> Callable[[], Tensor]:
    """What reads a dataset of features, as an array of this shape."""

    def load() -> Tensor:
        with opened(path) as file:
            return torch.from_numpy(file[name][()].reshape(shape))

    return load


def coordinates(file: Any, name: str, path: Path) -> NDArray[Any] | None:
    """(N, 2), or None where the file has none. Raises DataError."""
    if name not in file:
        return None
    found: NDArray[Any] = dataset(file, name, path)[()]
    return found


def plain(attributes: Any) -> dict[str, Any]:
    """Attributes as text, numbers and lists; what is neither is left out."""
    told = {}
    for name, stored in attributes.items():
        value = stored.tolist() if isinstance(stored, np.ndarray | np.generic) else stored
        text = value.decode(errors="replace") if isinstance(value, bytes) else value
        if isinstance(text, str | int | float | bool | list):
            told[name] = text
    return told


def number(attributes: dict[str, Any], name: str, path: Path) -> float | None:
    """A positive number among attributes, None where it is not stated. Raises DataError."""
    value = attributes.get(name)
    if value is None or value == "None":
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = float("nan")
    if not 0 < found < float("inf"):
        raise DataError(f"'{path}': {name} is {value!r}, expected a positive number")
    return found
