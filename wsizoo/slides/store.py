"""One HDF5 file a slide: features, coordinates, and everything needed to trust them.

`/features` (N, D) and `/coords` (N, 2) as TRIDENT, torchmil and Patho-Bench read them, the exact
grid beside; in the root attribute `wsizoo` (JSON) the encoder fingerprint, and checksums of all
that wsizoo reads back. Files are written under a temporary name, flushed, synced and renamed. One
slide, encoder and request give one file, byte for byte.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.errors import DataError
from wsizoo.files import replacing
from wsizoo.fingerprint import Fingerprint
from wsizoo.slides._rows import SEAL_BYTES, Checksums, PatientFile, Rows, is_sealed, read_rows, seal
from wsizoo.slides.facts import STATUS, UNREADABLE, Asked, FileHeader, SlideFacts
from wsizoo.slides.reader import Pixels

SCHEMA = 2
THUMBNAIL_QUALITY = 85
EMBEDDING = "wsizoo_slide"  # root attribute of a file that holds one vector a slide


def write_bag(
    bag: Bag,
    path: Path | str,
    *,
    facts: SlideFacts | None = None,
    thumbnail: tuple[Pixels, float] | None = None,
) -> Path:
    """Write one slide's features; the file appears complete or not at all.

    Args:
        bag: its target, which is for training, is not written.
        path: ends in .h5. thumbnail: image (h, w, 3) uint8 and its downsample, for heatmaps.

    Raises:
        DataError: another suffix, a bag of several slides, or the file cannot be written.
    """
    with writing(path, bag, facts=facts, thumbnail=thumbnail) as write:
        write(bag.features)
    return Path(path)


@contextmanager
def writing(
    path: Path | str,
    bag: Bag,
    *,
    facts: SlideFacts | None = None,
    thumbnail: tuple[Pixels, float] | None = None,
    asked: Asked | None = None,
    made: Mapping[str, Any] | None = None,
) -> Iterator[Callable[[Tensor], None]]:
    """As `write_bag`, but for features that come in parts, which are written at once.

    Args:
        bag: everything but its features, which may be (N, 0).
        asked: where some patches could not be read. made: what else made the features (versions,
            precision), for people; no checksum of the content covers it.

    Returns:
        What to call with rows of features, (n, D) float or (n, 3, H, W) uint8, in order, N in all.

    Raises:
        DataError: as `write_bag`; rows of another kind than the first, too many, or too few.
    """
    import h5py

    path = Path(path)
    if path.suffix != ".h5":
        raise DataError(f"'{path}': expected a feature file's name to end in .h5")
    if bag.parts is not None:
        raise DataError(
            f"'{path}': bag '{bag.slide_id}' joins {len(bag.parts) - 1} slides, expected one a "
            "file. Write each before Bag.concat"
        )
    facts = facts or SlideFacts(bag.slide_id)
    try:
        with replacing(path) as temporary:
            with (
                PatientFile(temporary, "wb+") as disk,
                h5py.File(disk, "w", userblock_size=SEAL_BYTES) as file,
            ):
                told = _told(bag, facts, thumbnail, asked)
                rows = Rows(file, len(bag), Checksums(told))
                yield rows.append
                disk.check()
                rows.finish(bag.slide_id)
                _write_rest(file, bag, facts, thumbnail, asked, rows.sums)
                file.attrs["made"] = json.dumps(dict(made or {}), sort_keys=True)
                file.attrs["wsizoo"] = json.dumps({**told, **rows.sums.seals()})
                file.flush()
                file.attrs["complete"] = 1
            disk.check()
            seal(temporary)
    except OSError as error:
        raise DataError(f"'{path}' cannot be written: {error}") from error


def read_bag(path: Path | str) -> Bag:
    """Read a feature file that wsizoo wrote, its content checked against its checksum.

    Raises:
        DataError: missing, damaged, incomplete, or written by something else.
    """
    path = Path(path)
    with _opened(path) as file:
        header = _header(path, file)
        content = {name: file[name][()] for name in _READ_BACK if name in file}
        _check_sums(path, file, content, quick=True)
        features, coords = content["features"], content.get("coords")
    return Bag(
        read_rows(features),
        None if coords is None else torch.from_numpy(coords),
        spacing=header.spacing,
        footprint=header.footprint,
        mpp=header.mpp,
        encoder=header.fingerprint,
        slide_id=header.facts.slide_id,
    )


def check_content(path: Path | str) -> FileHeader:
    """The header of a feature file in which no byte has changed, read block by block.

    Raises:
        DataError: as `read_bag`.
    """
    path = Path(path)
    with _opened(path) as file:
        header = _header(path, file)
        _check_sums(path, file, {name: file[name] for name in _READ_BACK if name in file})
        if not is_sealed(path):
            raise DataError(
                f"'{path}' is damaged: its bytes do not match its checksum, though features and "
                f"coordinates do. {_AGAIN}"
            )
        return header


def read_header(path: Path | str) -> FileHeader:
    """Everything of a feature file but features, coordinates and thumbnail. Raises DataError."""
    path = Path(path)
    with _opened(path) as file:
        return _header(path, file)


def read_thumbnail(path: Path | str) -> tuple[Pixels, float] | None:
    """The thumbnail (h, w, 3) uint8 and its downsample, or None. Raises DataError."""
    with _opened(Path(path)) as file:
        _header(Path(path), file)
        if "thumbnail" not in file:
            return None
        image = Image.open(io.BytesIO(file["thumbnail"][()].tobytes())).convert("RGB")
        downsample = json.loads(file.attrs["wsizoo"])["thumbnail_downsample"]
        return np.asarray(image), float(downsample)


_AGAIN = "Delete it and extract the slide again, or extract with --overwrite"
_READ_BACK = ("features", "coords", "asked/coords", "asked/status", "thumbnail")


def read_asked(path: Path | str) -> Asked | None:
    """Every patch that was to be encoded; None where the file does not say. Raises DataError."""
    with _opened(Path(path)) as file:
        _header(Path(path), file)
        if "asked" not in file:
            return None
        return Asked(file["asked/coords"][()], file["asked/status"][()])


def read_made(path: Path | str) -> dict[str, Any]:
    """Versions, device and precision that made a file, for people. Raises DataError."""
    with _opened(Path(path)) as file:
        _header(Path(path), file)
        return dict(json.loads(file.attrs.get("made", "{}")))


def _told(
    bag: Bag, facts: SlideFacts, thumbnail: tuple[Pixels, float] | None, asked: Asked | None
) -> dict[str, Any]:
    """The header, but for the checksums."""
    return {
        "schema": SCHEMA,
        "fingerprint": (bag.encoder or Fingerprint()).to_json(),
        "slide": asdict(facts),
        "spacing": _number(bag.spacing),
        "footprint": _number(bag.footprint),
        "mpp": _number(bag.mpp),
        "thumbnail_downsample": None if thumbnail is None else float(thumbnail[1]),
        "unreadable": 0 if asked is None else int((asked.status == UNREADABLE).sum()),
    }


def _write_rest(
    file: Any,
    bag: Bag,
    facts: SlideFacts,
    thumbnail: tuple[Pixels, float] | None,
    asked: Asked | None,
    sums: Checksums,
) -> None:
    """The arrays after the features, in the order of `_READ_BACK`."""
    arrays: dict[str, NDArray[Any]] = {}
    if bag.coords is not None:
        arrays["coords"] = np.ascontiguousarray(bag.coords.cpu().numpy())
    if asked is not None:
        arrays |= {"asked/coords": asked.coords, "asked/status": asked.status}
    if thumbnail is not None:
        buffer = io.BytesIO()
        Image.fromarray(thumbnail[0]).save(buffer, "JPEG", quality=THUMBNAIL_QUALITY)
        arrays["thumbnail"] = np.frombuffer(buffer.getvalue(), np.uint8)
    for name, array in arrays.items():
        file.create_dataset(name, data=array)
        sums.add(name, array)
    if "coords" in arrays:
        file["coords"].attrs.update(_trident_attributes(bag, facts))
    if asked is not None:
        file["asked/status"].attrs.update(STATUS)
    if bag.coords is not None and bag.spacing is not None:
        file.create_dataset("grid", data=bag.grid().cpu().numpy().astype(np.int32))


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def _trident_attributes(bag: Bag, facts: SlideFacts) -> dict[str, Any]:
    """Attributes of `coords` that TRIDENT's and torchmil's readers look for (whole numbers)."""
    made = bag.encoder or Fingerprint()
    known: dict[str, Any] = {
        "name": facts.slide_id,
        "level0_width": facts.width,
        "level0_height": facts.height,
        "patch_size": made.patch_size,
        "overlap": round(facts.overlap * made.patch_size) if made.patch_size else None,
        "patch_size_level0": round(bag.footprint) if bag.footprint else None,
        "level0_magnification": round(10 / bag.mpp) if bag.mpp else None,
        "target_magnification": round(10 / made.mpp) if made.mpp else None,
        "mpp_level0": bag.mpp,
        "mpp_target": made.mpp,
        "footprint_level0_float": bag.footprint,
        "spacing_level0_float": bag.spacing,
    }
    return {name: value for name, value in known.items() if value is not None}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open for reading; whatever h5py says of a damaged file becomes a DataError."""
    import h5py

    if not path.is_file():
        raise DataError(f"No feature file at '{path}'")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise DataError(
            f"'{path}' cannot be read: {error}. It is damaged, or no HDF5 file. {_AGAIN}"
        ) from error


def _header(path: Path, file: Any) -> FileHeader:
    if EMBEDDING in file.attrs:
        raise DataError(
            f"'{path}' holds the embedding of a slide, expected features of its patches"
        )
    if "wsizoo" not in file.attrs:
        raise DataError(
            f"'{path}' was not written by wsizoo (it holds {sorted(file)}). In Python, make a "
            "wsizoo.Bag of its arrays and wsizoo.write_bag it"
        )
    if file.attrs.get("complete") != 1:
        raise DataError(f"'{path}' is not complete. {_AGAIN}")
    try:
        told = json.loads(file.attrs["wsizoo"])
        if told["schema"] != SCHEMA:
            raise DataError(
                f"'{path}' has schema {told['schema']}, this wsizoo reads {SCHEMA}: pip install "
                "--upgrade wsizoo"
            )
        shape = file["features"].shape
        return FileHeader(
            n=shape[0],
            dim=shape[1] if len(shape) == 2 else None,
            fingerprint=Fingerprint.from_json(told["fingerprint"]),
            facts=SlideFacts(**told["slide"]),
            spacing=told["spacing"],
            footprint=told["footprint"],
            mpp=told["mpp"],
            digest=told["digest"],
            unreadable=told["unreadable"],
        )
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise DataError(f"'{path}' has a damaged header: {error}. {_AGAIN}") from error


def _check_sums(path: Path, file: Any, content: Mapping[str, Any], quick: bool = False) -> None:
    """Raise DataError unless arrays (or datasets) are those that were written."""
    told = json.loads(file.attrs["wsizoo"])
    sums = Checksums(told, quick)
    for name in _READ_BACK:
        if name in content:
            sums.add(name, content[name])
    if not sums.matches(told):
        raise DataError(f"'{path}' is damaged: its content does not match its digest. {_AGAIN}")
