"""Which tool wrote a file: told by its content, by its name only where that says something."""

from __future__ import annotations

from pathlib import Path

from wsizoo.errors import DataError, NotFoundError
from wsizoo.formats import (
    atlaspatch,
    clam,
    hdf5,
    lazyslide,
    mil_baseline,
    own,
    slidechat,
    slideflow,
    span,
    stamp,
    tensors,
    torchmil,
    trident,
)
from wsizoo.formats.contents import Contents, Format, Look, checked, guarded

FORMATS: dict[str, Format] = {
    found.name: found
    for found in (
        own.FORMAT,
        trident.FORMAT,
        clam.FORMAT,
        span.FORMAT,
        stamp.FORMAT,
        slideflow.FORMAT,
        lazyslide.FORMAT,
        atlaspatch.FORMAT,
        mil_baseline.FORMAT,
        torchmil.FORMAT,
        slidechat.FORMAT,
        tensors.PT,
        tensors.NPY,
        own.EMBEDDED,
    )
}
ZIP, NPY = b"PK\x03\x04", b"\x93NUMPY"
TENSORS = (".pt", ".pth")


def is_zarr(path: Path) -> bool:
    """Whether a folder is a zarr store."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup"))


def look(path: Path) -> Look:
    """A glance at a file. Raises DataError: not there, not to be read, or damaged."""
    if path.is_dir():
        return Look(path, "zarr" if is_zarr(path) else "folder")
    with guarded(path), open(path, "rb") as file:
        begin = file.read(8)
    if not begin:
        raise DataError(f"'{path}' is empty (0 bytes): copy it, or extract its slide, again")
    if hdf5.is_hdf5(path):
        return hdf5.look(path)
    if begin.startswith(NPY):
        return Look(path, "npy")
    if path.suffix in TENSORS or (begin.startswith(ZIP) and path.suffix != ".npz"):
        return Look(path, "torch")
    return Look(path, "csv" if path.suffix == ".csv" else "")


def detect(path: Path) -> Format:
    """The format of a file.

    Raises:
        DataError: of none that is known, or of several.
    """
    with guarded(path):
        seen = look(path)
        found = [each for each in FORMATS.values() if each.recognises(seen)]
    if len(found) == 1:
        return found[0]
    if found:
        names = " or ".join(each.name for each in found)
        raise DataError(
            f"'{path}' could be of {names} ({_shown(seen)}). Say which: --format NAME, in a "
            "run data.format=NAME"
        )
    bare = {"torch": "pt", "npy": "npy"}.get(seen.kind)
    if bare:
        raise DataError(
            f"'{path}' is a bare {'tensor' if bare == 'pt' else 'array'}, without coordinates "
            f"beside it. If it holds features (N, D), say so: --format {bare}, in a run "
            f"data.format={bare}"
        )
    layouts = "; ".join(each.layout for each in FORMATS.values())
    raise DataError(f"'{path}' is of no known format: {_shown(seen)}. Known: {layouts}")


def _shown(seen: Look) -> str:
    if seen.kind != "hdf5":
        return {"": "no HDF5, tensor, array or table"}.get(seen.kind, f"a {seen.kind}")
    return f"it holds {sorted(seen.shapes)}" if seen.shapes else "HDF5, but empty"


def named(name: str) -> Format:
    """A format by its name. Raises NotFoundError."""
    if name not in FORMATS:
        raise NotFoundError(f"No format '{name}'. There are: {', '.join(FORMATS)}")
    return FORMATS[name]


def contents_of(
    path: Path | str, format: str | None = None, table: str | None = None
) -> tuple[Format, Contents]:
    """The format of a file, and what it says; its features are not read.

    Args:
        format: its name, where the content does not tell. table: one of several sets of features.

    Raises:
        DataError: as `detect`, and whatever is wrong with the file. NotFoundError: no such format.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"No feature file at '{path}'")
    found = detect(path) if format is None else named(format)
    with guarded(path):
        return found, checked(found.read(path, table))
