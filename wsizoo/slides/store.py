"""One HDF5 file a slide: features, coordinates, and everything needed to trust them.

`/features` (N, D) and `/coords` (N, 2) as TRIDENT, torchmil and Patho-Bench read them, the exact
grid beside, the encoder fingerprint and a digest of the content in the root attribute `wsizoo` (JSON).
Files are written under a temporary name, flushed, synced and renamed.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from wsizoo.bag import Bag
from wsizoo.errors import DataError
from wsizoo.files import replacing
from wsizoo.fingerprint import Fingerprint
from wsizoo.slides.reader import Pixels

SCHEMA = 1
THUMBNAIL_QUALITY = 85


@dataclass(frozen=True)
class SlideFacts:
    """What a feature file says of its slide and of how patches were chosen.

    Args:
        width, height: level-0 px. quickhash: OpenSlide's, "" where unknown.
        mpp_source: "file" or "user". overlap: share of a patch's edge.
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
    """The part of a feature file that is read without its features."""

    n: int
    dim: int
    fingerprint: Fingerprint
    facts: SlideFacts
    spacing: float | None
    footprint: float | None
    mpp: float | None
    digest: str
    extra: dict[str, Any] = field(default_factory=dict)


def write_bag(
    bag: Bag,
    path: Path | str,
    *,
    facts: SlideFacts | None = None,
    thumbnail: tuple[Pixels, float] | None = None,
) -> Path:
    """Write one slide's features; the file appears complete or not at all.

    Args:
        path: ends in .h5. thumbnail: image (h, w, 3) uint8 and its downsample, for heatmaps.

    Raises:
        DataError: another suffix, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".h5":
        raise DataError(f"'{path}': a feature file ends in .h5")
    facts = facts or SlideFacts(bag.slide_id)
    try:
        with replacing(path) as temporary:
            _write(temporary, bag, facts, thumbnail)
    except OSError as error:
        raise DataError(f"'{path}' cannot be written: {error}") from error
    return path


def read_bag(path: Path | str) -> Bag:
    """Read a feature file that wsizoo wrote, its content checked against its digest.

    Raises:
        DataError: missing, damaged, incomplete, or written by something else.
    """
    path = Path(path)
    with _opened(path) as file:
        header = _header(path, file)
        features, coords = _content(file)
        if _digest(features, coords) != header.digest:
            raise DataError(f"'{path}' is damaged: its content does not match its digest. {_AGAIN}")
    return Bag(
        torch.from_numpy(features),
        None if coords is None else torch.from_numpy(coords),
        spacing=header.spacing,
        footprint=header.footprint,
        mpp=header.mpp,
        encoder=header.fingerprint,
        slide_id=header.facts.slide_id,
    )


def read_header(path: Path | str) -> FileHeader:
    """Everything of a feature file but features, coordinates and thumbnail. Raises DataError."""
    path = Path(path)
    with _opened(path) as file:
        return _header(path, file)


def read_thumbnail(path: Path | str) -> tuple[Pixels, float] | None:
    """The thumbnail (h, w, 3) uint8 and its downsample, or None. Raises DataError."""
    with _opened(Path(path)) as file:
        if "thumbnail" not in file:
            return None
        data = file["thumbnail"]
        image = Image.open(io.BytesIO(data[()].tobytes())).convert("RGB")
        return np.asarray(image), float(data.attrs["downsample"])


_AGAIN = "Extract the slide again: wsizoo extract SLIDE -e ENCODER -o DIR"


def _write(path: Path, bag: Bag, facts: SlideFacts, thumbnail: tuple[Pixels, float] | None) -> None:
    import h5py

    features = bag.features.detach().cpu().numpy()
    coords = None if bag.coords is None else bag.coords.cpu().numpy()
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features)
        if coords is not None:
            dataset = file.create_dataset("coords", data=coords)
            dataset.attrs.update(_trident_attributes(bag, facts))
            if bag.spacing is not None:
                file.create_dataset("grid", data=bag.grid().cpu().numpy().astype(np.int32))
        if thumbnail is not None:
            image, downsample = thumbnail
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "JPEG", quality=THUMBNAIL_QUALITY)
            stored = file.create_dataset(
                "thumbnail", data=np.frombuffer(buffer.getvalue(), np.uint8)
            )
            stored.attrs["downsample"] = downsample
        told = {
            "schema": SCHEMA,
            "fingerprint": (bag.encoder or Fingerprint()).to_json(),
            "slide": asdict(facts),
            "spacing": bag.spacing,
            "footprint": bag.footprint,
            "mpp": bag.mpp,
            "digest": _digest(features, coords),
        }
        file.attrs["wsizoo"] = json.dumps(told)
        file.flush()
        file.attrs["complete"] = 1


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
    except (OSError, KeyError, RuntimeError) as error:
        raise DataError(
            f"'{path}' cannot be read as HDF5: {error}. It is damaged. {_AGAIN}"
        ) from error


def _header(path: Path, file: Any) -> FileHeader:
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


def _content(file: Any) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    return file["features"][()], file["coords"][()] if "coords" in file else None


def _digest(features: NDArray[Any], coords: NDArray[Any] | None) -> str:
    digest = hashlib.sha256(str((features.dtype, features.shape)).encode())
    digest.update(np.ascontiguousarray(features).data)
    if coords is not None:
        digest.update(np.ascontiguousarray(coords).data)
    return digest.hexdigest()
