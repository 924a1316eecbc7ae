"""LazySlide (wsidata): `<slide>.zarr` with tiles as boxes and a table of features a model.

Read with zarr and pyarrow alone (extra `[lazyslide]`); neither spatialdata nor geopandas is needed.
Each piece of tissue has its own origin, and tiles are a whole number of px wide.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.formats.atlaspatch import chosen
from wsizoo.formats.contents import Contents, Format, Look
from wsizoo.formats.encoders import fingerprint_of
from wsizoo.slides.facts import SlideFacts

POLYGON = 3  # WKB's number of its kind
BOX = np.dtype(  # WKB of a rectangle: one closed ring of five points, little-endian
    [("order", "u1"), ("kind", "<u4"), ("rings", "<u4"), ("n", "<u4"), ("xy", "<f8", (5, 2))]
)


def _recognises(look: Look) -> bool:
    return look.kind == "zarr" and (look.path / "shapes").is_dir()


def _read(path: Path, table: str | None) -> Contents:
    """Contents of one table; see `Format`. Raises DataError, also where the extra is missing."""
    try:
        import zarr
    except ImportError as error:
        raise DataError(
            f"'{path}' is a zarr store, which needs zarr and pyarrow: pip install wsizoo[lazyslide]"
        ) from error
    root = zarr.open_group(path, mode="r")
    told: dict[str, Any] = root.attrs.asdict()
    return _contents(path, root, chosen(_tables(root), table, path), told)


def _tables(root: Any) -> list[str]:
    """Tables of features: those with a matrix `X`."""
    tables = root.get("tables", {})
    return sorted(name for name in tables if "X" in tables[name])


def _contents(path: Path, root: Any, name: str, told: dict[str, Any]) -> Contents:
    table = root["tables"][name]
    specs, slide = told.get("tile_spec") or {}, told.get("slide_properties") or {}
    key = _region(table, name, sorted(specs))
    spec = specs.get(key) or {}
    boxes = _boxes(path / "shapes" / key / "shapes.parquet", np.asarray(table["obs/tile_id"][:]))
    matrix = table["X"]
    edge = float(boxes[0, 2] - boxes[0, 0]) if len(boxes) else None
    stride = spec.get("stride_width")
    by = spec.get("base_downsample")
    height, width = (slide.get("shape") or [None, None])[:2]
    model = name.removesuffix(f"_{key}")
    made = fingerprint_of("lazyslide", model, mpp=spec.get("mpp"), patch_size=spec.get("width"))

    def load() -> Tensor:
        return torch.from_numpy(np.asarray(matrix[:]))

    return Contents(
        (path,),
        tuple(matrix.shape),
        str(matrix.dtype),
        load,
        boxes[:, :2],
        step=stride * by if stride and by else edge,
        footprint=edge,
        mpp=slide.get("mpp"),
        encoder=made,
        facts=SlideFacts(path.stem, width, height, mpp_source="file"),
        attributes={"table": name, "tile_spec": spec},
    )


def _region(table: Any, name: str, keys: Sequence[str]) -> str:
    """The tiles that the rows of a table are features of."""
    place = "uns/spatialdata_attrs/region"
    if place in table:
        return str(np.asarray(table[place][()]).reshape(-1)[0])
    return next(key for key in keys or ["tiles"] if name.endswith(f"_{key}"))


def _boxes(file: Path, ids: NDArray[Any]) -> NDArray[np.float64]:
    """(N, 4) of x0, y0, x1, y1 of the tiles with these ids, in that order."""
    import pyarrow.parquet

    read = pyarrow.parquet.read_table(file)
    boxes = corners(read.column("geometry").to_pylist())
    own = np.asarray(read.column("tile_id").to_pylist())
    order = np.argsort(own, kind="stable")
    found = order[np.searchsorted(own, ids, sorter=order).clip(max=len(own) - 1)]
    if (own[found] != ids).any():
        raise DataError(f"'{file}' lacks tiles that features are given of: {len(own)} tiles")
    chosen_boxes: NDArray[np.float64] = boxes[found]
    return chosen_boxes


def corners(shapes: Sequence[bytes]) -> NDArray[np.float64]:
    """(N, 4) of x0, y0, x1, y1 around polygons in WKB. Raises ValueError: other geometries."""
    joined = b"".join(shapes)
    if len(joined) == BOX.itemsize * len(shapes):
        boxes = np.frombuffer(joined, BOX)
        if (boxes["order"] == 1).all() and (boxes["kind"] == POLYGON).all():
            return np.concatenate([boxes["xy"].min(1), boxes["xy"].max(1)], 1)
    rings = [_ring(shape) for shape in shapes]
    return np.array([[*ring.min(0), *ring.max(0)] for ring in rings]).reshape(-1, 4)


def _ring(shape: bytes) -> NDArray[np.float64]:
    """(n, 2) of the outer ring of a polygon."""
    order = "<" if shape[:1] == b"\x01" else ">"
    try:
        kind, rings, n = struct.unpack(f"{order}III", shape[1:13])
    except struct.error as error:
        raise ValueError(f"a geometry of {len(shape)} bytes is no polygon") from error
    if kind != POLYGON or rings < 1:
        raise ValueError(f"geometries of kind {kind}, expected polygons")
    ring = np.frombuffer(shape, f"{order}f8", count=2 * n, offset=13)
    return ring.reshape(n, 2).astype(np.float64)


FORMAT = Format(
    "lazyslide",
    "LazySlide: a .zarr store with shapes/tiles and tables",
    _recognises,
    _read,
)
