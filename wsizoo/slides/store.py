"""One HDF5 file a slide: features, coordinates, and everything needed to trust them.

`/features` (N, D) and `/coords` (N, 2) as TRIDENT, torchmil and Patho-Bench read them, the exact
grid beside; in the root attribute `wsizoo` (JSON) the encoder fingerprint, and a digest of all that
wsizoo reads back. Files are written under a temporary name, flushed, synced and renamed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.errors import DataError
from wsizoo.files import replacing
from wsizoo.fingerprint import Fingerprint
from wsizoo.slides._rows import Rows, add_array, begin_digest
from wsizoo.slides.reader import Pixels

SCHEMA = 1
THUMBNAIL_QUALITY = 85
EMBEDDING = "wsizoo_slide"  # root attribute of a file that holds one vector a slide


@dataclass(frozen=True)
class SlideFacts:
    """What a feature file says of its slide and of how patches were chosen.

    Args:
        width, height: level-0 px. quickhash: "" where unknown.
        mpp_source: what states the slide's mpp, or "user". overlap: share of a patch's edge.
        min_tissue: as asked for, None: the default rule.
    """

    slide_id: str
    width: int | None = None
    height: int | None = None
    quickhash: str = ""
    mpp_source: str | None = None
    overlap: float = 0.0
    min_tissue: float | None = None


@dataclass(frozen=True)
class FileHeader:
    """The part of a feature file that is read without its features; not checked by the digest."""

    n: int
    dim: int
    fingerprint: Fingerprint
    facts: SlideFacts
    spacing: float | None
    footprint: float | None
    mpp: float | None
    digest: str


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
) -> Iterator[Callable[[Tensor], None]]:
    """As `write_bag`, but for features that come in parts, which are written at once.

    Args:
        bag: everything but its features, which may be (N, 0).

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
        with replacing(path) as temporary, h5py.File(temporary, "w") as file:
            told = _told(bag, facts, thumbnail)
            rows = Rows(file, len(bag), begin_digest(told))
            yield rows.append
            rows.finish(bag.slide_id)
            _write_rest(file, bag, facts, thumbnail, told, rows.digest)
    except OSError as error:
        raise DataError(f"'{path}' cannot be written: {error}") from error


def read_bag(path: Path | str) -> Bag:
    """Read a feature file that wsizoo wrote, its content checked against its digest.

    Raises:
        DataError: missing, damaged, incomplete, or written by something else.
    """
    path = Path(path)
    with _opened(path) as file:
        header = _header(path, file)
        content = {name: file[name][()] for name in _READ_BACK if name in file}
        _check_digest(path, file, content)
        features, coords = content["features"], content.get("coords")
    return Bag(
        torch.from_numpy(features),
        None if coords is None else torch.from_numpy(coords),
        spacing=header.spacing,
        footprint=header.footprint,
        mpp=header.mpp,
        encoder=header.fingerprint,
        slide_id=header.facts.slide_id,
    )


def check_content(path: Path | str) -> FileHeader:
    """The header of a feature file whose content matches its digest, read block by block.

    Raises:
        DataError: as `read_bag`.
    """
    path = Path(path)
    with _opened(path) as file:
        header = _header(path, file)
        _check_digest(path, file, {name: file[name] for name in _READ_BACK if name in file})
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
_READ_BACK = ("features", "coords", "thumbnail")


def _told(bag: Bag, facts: SlideFacts, thumbnail: tuple[Pixels, float] | None) -> dict[str, Any]:
    """The header, but for the digest."""
    return {
        "schema": SCHEMA,
        "fingerprint": (bag.encoder or Fingerprint()).to_json(),
        "slide": asdict(facts),
        "spacing": _number(bag.spacing),
        "footprint": _number(bag.footprint),
        "mpp": _number(bag.mpp),
        "thumbnail_downsample": None if thumbnail is None else float(thumbnail[1]),
    }


def _write_rest(
    file: Any,
    bag: Bag,
    facts: SlideFacts,
    thumbnail: tuple[Pixels, float] | None,
    told: dict[str, Any],
    digest: Any,
) -> None:
    """Everything after the features."""
    if bag.coords is not None:
        coords = np.ascontiguousarray(bag.coords.cpu().numpy())
        file.create_dataset("coords", data=coords).attrs.update(_trident_attributes(bag, facts))
        add_array(digest, "coords", coords)
        if bag.spacing is not None:
            file.create_dataset("grid", data=bag.grid().cpu().numpy().astype(np.int32))
    if thumbnail is not None:
        buffer = io.BytesIO()
        Image.fromarray(thumbnail[0]).save(buffer, "JPEG", quality=THUMBNAIL_QUALITY)
        jpeg = np.frombuffer(buffer.getvalue(), np.uint8)
        file.create_dataset("thumbnail", data=jpeg)
        add_array(digest, "thumbnail", jpeg)
    file.attrs["wsizoo"] = json.dumps({**told, "digest": digest.hexdigest()})
    file.flush()
    file.attrs["complete"] = 1


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
        n, dim = file["features"].shape[:2]
        return FileHeader(
            n=n,
            dim=dim,
            fingerprint=Fingerprint.from_json(told["fingerprint"]),
            facts=SlideFacts(**told["slide"]),
            spacing=told["spacing"],
            footprint=told["footprint"],
            mpp=told["mpp"],
            digest=told["digest"],
        )
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"'{path}' has a damaged header: {error}. {_AGAIN}") from error


def _check_digest(path: Path, file: Any, content: Mapping[str, Any]) -> None:
    """Raise DataError unless arrays (or datasets) are those that were written."""
    told = json.loads(file.attrs["wsizoo"])
    digest = begin_digest(told)
    for name in _READ_BACK:
        if name in content:
            add_array(digest, name, content[name])
    if digest.hexdigest() != told["digest"]:
        raise DataError(f"'{path}' is damaged: its content does not match its digest. {_AGAIN}")
