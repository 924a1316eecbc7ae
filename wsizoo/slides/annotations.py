"""The tissue of a slide as GeoJSON that QuPath opens and edits, and back as a mask."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from wsizoo.errors import DataError
from wsizoo.slides.geojson import Areas, Feature, polygon_feature, read_areas, write_geojson
from wsizoo.slides.outlines import Polygon, fill, trace
from wsizoo.slides.reader import Pixels
from wsizoo.slides.tissue import TissueMask

SUFFIX = ".geojson"
CLASS, COLOUR, PEN_COLOUR = "Tissue", (0, 160, 80), (230, 0, 230)
PICTURE_EDGE = 1600  # px
DECIMALS = 3  # of a level-0 px
RASTER_MPP = 2.0  # um per px; an edge off by half a px is 0.9 % of a patch of 112 um
MOST_PIXELS = 2**25  # of a mask, with its integral 170 MB; at RASTER_MPP 134 mm2 of slide


def write_tissue(
    path: Path | str, tissue: TissueMask, slide_size: tuple[int, int], slide_id: str
) -> None:
    """Write one annotation a piece of tissue, outlined along the edges of the mask's pixels.

    Read back by `tissue_from_geojson` at the mask's own shape, it is the same mask, bit for bit.

    Args:
        slide_size: (width, height), level-0 px. The outlines are in them too.
    """
    rows, columns = tissue.mask.shape
    scale = np.divide(slide_size, (columns, rows))  # level-0 px per mask px
    area = tissue.mpp**2 * scale[1] / scale[0]  # um2 of a mask px
    features = [_annotation(polygon, scale, area) for polygon in trace(tissue.mask)]
    told = {"slide": slide_id, "slide_size": list(slide_size), "mask_size": [columns, rows]}
    write_geojson(path, {"type": "FeatureCollection", "wsizoo": told, "features": features})


def _annotation(polygon: Polygon, scale: NDArray[np.float64], pixel_area: float) -> Feature:
    closed = [np.concatenate([ring, ring[:1]]) for ring in polygon]
    area = sum(float(x[:-1] @ y[1:] - x[1:] @ y[:-1]) / 2 for x, y in (r.T for r in closed))
    properties = {
        "objectType": "annotation",
        "classification": {"name": CLASS, "color": list(COLOUR)},
        "measurements": {"Area um^2": round(area * pixel_area, 1)},
    }
    rings = [np.round(ring * scale, DECIMALS).tolist() for ring in closed]
    return polygon_feature(rings, properties)


def tissue_from_geojson(
    path: Path | str,
    slide_size: tuple[int, int],
    mpp: float,
    shape: tuple[int, int] | None = None,
) -> TissueMask:
    """The areas that a GeoJSON file outlines, as a mask of one slide.

    Polygons are joined, each with its own holes; those of a class of `CUT_OUT` are taken out of the
    others. What lies outside the slide is left out.

    Args:
        slide_size: (width, height), level-0 px. mpp: um per level-0 px.
        shape: (h, w) of the mask. None: for a file as wsizoo wrote it, whole fractions of the mask
            that it was made of; else about 2 um per px, coarser where that were over 2**25 px.

    Raises:
        DataError: no GeoJSON, no polygon, or none that lies on this slide.
    """
    areas = read_areas(path)
    _check_frame(areas, path, slide_size)
    rows, columns = shape or _shape(areas, path, slide_size, mpp)
    scale = np.divide((columns, rows), slide_size)  # mask px per level-0 px
    mask = fill(_scaled(areas.kept, scale), (rows, columns))
    if areas.cut:
        mask &= ~fill(_scaled(areas.cut, scale), (rows, columns))
    if not mask.any():
        raise DataError(
            f"{path}: its polygons leave nothing of a slide of {slide_size[0]} x {slide_size[1]} px"
        )
    nowhere = np.broadcast_to(np.False_, mask.shape)
    return TissueMask(mask, mpp / float(scale[0]), float("nan"), nowhere, brightfield=True)


def _scaled(polygons: Sequence[Polygon], scale: NDArray[np.float64]) -> list[Polygon]:
    return [[ring * scale for ring in polygon] for polygon in polygons]


def _check_frame(areas: Areas, path: Path | str, slide_size: tuple[int, int]) -> None:
    """Raise DataError unless the outlines are level-0 px of this slide."""
    width, height = slide_size
    if not areas.kept:
        classes = f" ({len(areas.cut)} are of a class that is cut out)" if areas.cut else ""
        raise DataError(
            f"{path} outlines no tissue: it holds no polygon{classes}. Draw some in QuPath"
        )
    made_for = areas.told.get("slide_size", list(slide_size))
    if made_for != list(slide_size):
        raise DataError(
            f"{path} was made for a slide of {made_for} px, this one is {width} x {height}: it "
            "belongs to another slide, or to another scan of it"
        )
    corners = np.concatenate([polygon[0] for polygon in areas.kept])
    low, high = corners.min(0), corners.max(0)
    if (low >= 0).all() and (high <= 1).all() and max(slide_size) > 2:
        raise DataError(
            f"{path}: all coordinates lie between 0 and 1; expected level-0 px. Multiply them by "
            f"the size of the slide, {width} x {height}"
        )
    if (high <= 0).any() or (low >= slide_size).any():
        raise DataError(
            f"{path}: everything lies outside the slide: x {low[0]:.0f} to {high[0]:.0f}, y "
            f"{low[1]:.0f} to {high[1]:.0f}, and the slide is {width} x {height} level-0 px. It "
            "belongs to another slide, or its coordinates are not level-0 px"
        )


def _shape(
    areas: Areas, path: Path | str, slide_size: tuple[int, int], mpp: float
) -> tuple[int, int]:
    """(h, w) of the mask: fine enough for shares of patches, and bounded."""
    width, height = slide_size
    finest = max(1.0, RASTER_MPP / mpp, math.sqrt(width * height / MOST_PIXELS))  # level-0 px
    own = areas.told.get("mask_size")
    if own is None:
        return math.ceil(height / finest), math.ceil(width / finest)
    columns, rows = _mask_size(own, path, slide_size)
    parts = max(1, int(width / columns / finest))
    return rows * parts, columns * parts


def _mask_size(own: object, path: Path | str, slide_size: tuple[int, int]) -> tuple[int, int]:
    numbers = own if isinstance(own, list) and len(own) == 2 else [0, 0]
    fits = [type(n) is int and 1 <= n <= most for n, most in zip(numbers, slide_size, strict=True)]
    if not all(fits) or numbers[0] * numbers[1] > MOST_PIXELS:
        raise DataError(
            f"{path}: its mask_size is {own!r:.40}, expected [columns, rows] as wsizoo wrote it. "
            "Delete the member 'wsizoo' of the file"
        )
    return numbers[0], numbers[1]


def draw_tissue(image: Pixels, tissue: TissueMask) -> Image.Image:
    """The slide, at most 1600 px, with tissue outlined in green and pen that was left out in pink.

    Args:
        image: (h, w, 3) of the whole slide, at any scale.
    """
    picture = Image.fromarray(image)
    picture.thumbnail((PICTURE_EDGE, PICTURE_EDGE), Image.Resampling.BOX)
    draw = ImageDraw.Draw(picture)
    scale = np.divide(picture.size, tissue.mask.shape[::-1])
    for mask, colour in ((tissue.pen, PEN_COLOUR), (tissue.mask, COLOUR)):
        for ring in (ring * scale for polygon in trace(mask) for ring in polygon):
            draw.line([*ring.ravel(), *ring[:2].ravel()], fill=colour, width=2, joint="curve")
    return picture


def mask_for(slide_id: str, masks: Path | str) -> Path:
    """The file of a slide: `masks` itself, or `<slide_id>.geojson` in that folder.

    Raises:
        DataError: it is not there.
    """
    masks = Path(masks)
    if not masks.is_dir():
        if not masks.is_file():
            raise DataError(f"No file or folder of masks at '{masks}'")
        return masks
    file = masks / f"{slide_id}{SUFFIX}"
    if not file.is_file():
        there = sorted(other.stem for other in masks.glob(f"*{SUFFIX}"))
        near = difflib.get_close_matches(slide_id, there, n=1)
        hint = f" Did you mean '{near[0]}{SUFFIX}'?" if near else ""
        raise DataError(
            f"'{masks}' holds no mask of slide '{slide_id}': expected {file.name} among its "
            f"{len(there)} {SUFFIX} files.{hint} Make it: wsizoo tissue SLIDE -o {masks}"
        )
    return file
