"""TIFF by tifffile: which of its images is the slide, and regions of it, decoded piece by piece."""

from __future__ import annotations

import functools
import logging
import math
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsizoo.errors import SlideError
from wsizoo.names import describe

Pixels = NDArray[np.uint8]
CACHE_BYTES = 2**26  # of decoded pieces, a slide
LARGEST_PIECE = 2**29  # bytes; one strip may hold a whole image
STRIP_BYTES = 2**20  # read at once where pixels lie in the file as they are
LIKE = 1 / 3  # share of the slide's px from which another image may as well be the slide
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
GREY, COLOUR = ("MINISBLACK", "MINISWHITE"), ("RGB", "YCBCR")
EXPECTED = "expected 8-bit RGB or grey"
CONVERT = "Convert it with a program that knows its colours"
JPEG, YCBCR = (6, 7), 6  # of the tags compression and photometric
RATIONAL_TAGS = ("XResolution", "YResolution")
RESOLUTION_UNITS = {2: "inch", 3: "centimeter"}
QUIET = logging.NullHandler()  # what tifffile finds wrong ends in one error, not on the terminal


def is_tiff(path: Path) -> bool:
    """Whether a file begins as TIFF or BigTIFF do."""
    with open(path, "rb") as file:
        return file.read(4) in MAGIC


def open_tiff(path: Path) -> TiffBackend:
    """Find the slide in a TIFF.

    The slide is the largest image; labels and macros beside it are left out. Its pyramid is what
    OME says it is, or its SubIFDs and the images marked as reduced that have its shape.

    Raises:
        SlideError: damaged, several images that may be the slide, or no 8-bit RGB or grey ones.
    """
    import tifffile

    logging.getLogger("tifffile").addHandler(QUIET)
    file = None
    try:
        file = tifffile.TiffFile(path)
        levels = _ome_levels(path, file) if file.is_ome else _plain_levels(path, file)
        for level in levels:
            _check_kind(path, level)
        return TiffBackend(path, file, levels)
    except Exception as error:  # damaged directories make tifffile raise of many kinds
        if file is not None:
            file.close()
        if isinstance(error, SlideError):
            raise
        raise SlideError(
            f"{path} is a TIFF whose directories cannot be read ({describe(error)}): damaged, or "
            "only a part of one. Copy it again from its source"
        ) from error


def _plain_levels(path: Path, file: Any) -> list[Any]:
    images = [page for page in file.pages if page.imagewidth and page.imagelength]
    whole = [page for page in images if not page.subfiletype & 5] or images  # 1: reduced, 4: mask
    base = _the_slide(path, whole)
    smaller = [page for page in images if page.subfiletype & 1 and not page.subfiletype & 4]
    return _pyramid(base, [*smaller, *(base.pages or ())])


def _ome_levels(path: Path, file: Any) -> list[Any]:
    series = {id(s.keyframe): s for s in file.series}
    base = _the_slide(path, [s.keyframe for s in file.series])
    chosen = series[id(base)]
    if chosen.axes not in ("YXS", "SYX", "YX"):
        raise SlideError(
            f"{path} holds an image of axes {chosen.axes} {chosen.shape}: channels, depths or "
            f"times one by one, {EXPECTED} in one image. Of three channels that are the colours of "
            "a brightfield scan, make RGB: raw2ometiff --rgb"
        )
    return _pyramid(base, [level.keyframe for level in chosen.levels])


def _the_slide(path: Path, images: Sequence[Any]) -> Any:
    """The largest one. Raises SlideError where another is nearly as large."""
    ordered = sorted(images, key=_area, reverse=True)
    if not ordered:
        raise SlideError(f"{path} is a TIFF that holds no image, expected a slide")
    rivals = [page for page in ordered if _area(page) > LIKE * _area(ordered[0])]
    if len(rivals) > 1:
        sizes = ", ".join(f"{p.imagewidth} x {p.imagelength}" for p in rivals[:4])
        raise SlideError(
            f"{path} holds {len(rivals)} images of like size ({sizes}{', ...' * (len(rivals) > 4)} "
            "px), expected one slide a file, and its pyramid marked as such: write each into its "
            "own file"
        )
    return ordered[0]


def _area(page: Any) -> int:
    return int(page.imagewidth) * int(page.imagelength)


def _pyramid(base: Any, others: Iterable[Any]) -> list[Any]:
    """The base and those images that show all of it at a smaller size, the largest first."""
    width, height = base.imagewidth, base.imagelength
    kind = (base.samplesperpixel, base.bitspersample)
    levels = {_area(base): base}
    for page in sorted(others, key=_area, reverse=True):
        off = abs(page.imagewidth * height - page.imagelength * width)
        alike = off <= 2 * max(width, height)  # 2 px, of rounding
        alike = alike and (page.samplesperpixel, page.bitspersample) == kind
        if alike and 0 < _area(page) < min(levels):
            levels[_area(page)] = page
    return list(levels.values())


def _check_kind(path: Path, page: Any) -> None:
    """Raise SlideError unless pixels are 8-bit grey or colours, as brightfield scans have them."""
    kind = getattr(page.photometric, "name", str(page.photometric))
    samples, bits = page.samplesperpixel, page.bitspersample
    transparency = samples == 4 and tuple(page.extrasamples) in ((1,), (2,))  # else who knows
    right = samples == 1 if kind in GREY else kind in COLOUR and (samples == 3 or transparency)
    if not right or bits != 8 or page.sampleformat != 1 or page.imagedepth != 1:
        form = {1: "integer", 2: "signed", 3: "float"}.get(page.sampleformat, "unknown")
        raise SlideError(
            f"{path} has pixels of {samples} x {bits}-bit {form} {kind}, {EXPECTED}. {CONVERT}"
        )


def _properties(file: Any, base: Any) -> dict[str, str]:
    """What the file states of its scale, named as OpenSlide does; OME's under `ome`."""
    found = {}
    for name in RATIONAL_TAGS:
        above, below = base.tags.valueof(name, (0, 0))
        if below:
            found[f"tiff.{name}"] = repr(above / below)
    unit = RESOLUTION_UNITS.get(int(base.tags.valueof("ResolutionUnit", 2)))
    if unit:
        found["tiff.ResolutionUnit"] = unit
    if file.is_ome:
        size = {"SizeX": str(base.imagewidth), "SizeY": str(base.imagelength)}
        for pixels in ET.fromstring(file.ome_metadata).iterfind(".//{*}Pixels"):
            if size.items() <= pixels.attrib.items():
                scale = {k: v for k, v in pixels.attrib.items() if k.startswith("PhysicalSize")}
                return found | {f"ome.{key}": value for key, value in scale.items()}
    return found


class TiffBackend:
    """The levels of one slide in a TIFF; see `wsizoo.slides.backends.Backend`."""

    reader = "tifffile"
    whole_pixels = True

    def __init__(self, path: Path, file: Any, pages: Sequence[Any]) -> None:
        self.path, self._file = path, file
        self.format = "ome-tiff" if file.is_ome else "tiff"
        self.properties: Mapping[str, str] = _properties(file, pages[0])
        self._levels = [_Level.of(page) for page in pages]
        self.level_dimensions = tuple((level.width, level.height) for level in self._levels)
        self.dimensions: tuple[int, int] = self.level_dimensions[0]
        (width, height), sizes = self.dimensions, self.level_dimensions
        self.level_downsamples = tuple((width / w + height / h) / 2 for w, h in sizes)
        largest = max(level.piece_bytes for level in self._levels)
        self._piece = functools.lru_cache(max(1, CACHE_BYTES // largest))(self._decode)
        self._lock = threading.Lock()

    def check_decodable(self) -> None:
        """Close it and raise SlideError where tifffile can decode no piece of some level."""
        for level in self._levels:
            if reason := level.why_not():
                self.close()
                raise SlideError(f"{self.path} {reason}")

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Pixels:
        """As `Backend.read_region`."""
        at, scale = self._levels[level], self.level_downsamples[level]
        left, top = (round(edge / scale) for edge in location)
        right, bottom = left + size[0], top + size[1]
        region = np.full((size[1], size[0], 3), 255, np.uint8)
        for row in range(top // at.piece_height, -(-bottom // at.piece_height)):
            for column in range(left // at.piece_width, -(-right // at.piece_width)):
                piece = self._piece(level, row, column)
                if piece is None:
                    continue
                x, y = column * at.piece_width - left, row * at.piece_height - top
                inside = piece[max(0, -y) : bottom - top - y, max(0, -x) : right - left - x]
                x, y = max(0, x), max(0, y)
                region[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
        return region

    def close(self) -> None:
        with self._lock:
            self._file.close()
        self._piece.cache_clear()

    def _decode(self, level: int, row: int, column: int) -> Pixels | None:
        """One tile or strip as RGB, None where the file left it out. Raises OSError."""
        try:
            return self._levels[level].decode(row, column, self._lock)
        except Exception as error:  # codecs raise of many kinds
            raise OSError(describe(error)) from error


@dataclass(frozen=True)
class _Level:
    """One image of the pyramid as a grid of pieces: its tiles, or its strips.

    Args:
        raw: pixels lie in the file as they are, so that strips of any height can be read.
    """

    page: Any
    width: int
    height: int
    piece_width: int
    piece_height: int
    raw: bool

    @classmethod
    def of(cls, page: Any) -> _Level:
        width, height = int(page.imagewidth), int(page.imagelength)
        _ = page.decode, page.jpegtables, page.jpegheader  # read now, before threads are about
        plain = (page.planarconfig, page.predictor, page.fillorder) == (1, 1, 1)
        whole = sum(page.databytecounts) == width * height * page.samplesperpixel
        if page.is_contiguous and plain and whole:
            rows = max(1, STRIP_BYTES // (width * page.samplesperpixel))
            return cls(page, width, height, width, min(rows, height), raw=True)
        if page.is_tiled:
            return cls(page, width, height, page.tilewidth, page.tilelength, raw=False)
        return cls(page, width, height, width, min(page.rowsperstrip, height), raw=False)

    @property
    def piece_bytes(self) -> int:
        return self.piece_width * self.piece_height * max(3, int(self.page.samplesperpixel))

    def why_not(self) -> str | None:
        """Why no piece of it can be decoded; None: nothing against it."""
        from tifffile import TIFF

        page = self.page
        compression = getattr(page.compression, "name", page.compression)
        if page.compression not in TIFF.DECOMPRESSORS:
            if find_spec("imagecodecs") is None:
                return f"needs a package to be read ({compression}): pip install 'wsizoo[tiff]'"
            return f"is compressed in an unknown way ({compression}): write it anew as JPEG or LZW"
        if page.photometric == YCBCR and page.compression not in JPEG:
            return f"has YCbCr pixels that are no JPEG ({compression}), {EXPECTED}. {CONVERT}"
        if self.piece_bytes > LARGEST_PIECE:
            return (
                f"is compressed in pieces of {self.piece_bytes / 2**30:.1f} GiB, each region would "
                "need a whole one. Write it in tiles: vips tiffsave IN OUT.tif --tile --pyramid"
            )
        return None

    def decode(self, row: int, column: int, lock: threading.Lock) -> Pixels | None:
        """One piece as (h, w, 3) uint8, None where the file leaves it out; raises of any kind."""
        page = self.page
        if self.raw:
            rows = min(self.piece_height, self.height - row * self.piece_height)
            stride = self.width * page.samplesperpixel
            start = page.dataoffsets[0] + row * self.piece_height * stride
            data = self._bytes(start, rows * stride, lock)
            flat = np.frombuffer(data, np.uint8)
            return self._as_rgb(flat.reshape(rows, self.width, page.samplesperpixel))
        across = math.ceil(self.width / self.piece_width)
        down = math.ceil(self.height / self.piece_height)
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        parts = []
        for plane in range(planes):
            index = (plane * down + row) * across + column
            if not page.databytecounts[index]:
                return None
            data = self._bytes(page.dataoffsets[index], page.databytecounts[index], lock)
            parts.append(self._decompress(data, index))
        return self._as_rgb(np.concatenate(parts, axis=-1))

    def _bytes(self, offset: int, count: int, lock: threading.Lock) -> bytes:
        file = self.page.parent.filehandle
        if offset + count > file.size:
            raise OSError("the file ends before it: it is cut short")
        with lock:
            file.seek(offset)
            return bytes(file.read(count))

    def _decompress(self, data: bytes, index: int) -> Pixels:
        page, tables = self.page, {}
        if page.compression in JPEG:
            if not data.rstrip(b"\0").endswith(b"\xff\xd9"):  # the decoder would make up the rest
                raise OSError("its JPEG data has no end")
            tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        return np.asarray(page.decode(data, index, **tables)[0][0])  # the first of depth 1

    def _as_rgb(self, pixels: Pixels) -> Pixels:
        """(h, w, 1, 3 or 4) -> (h, w, 3)."""
        page = self.page
        if pixels.shape[-1] == 1:
            grey = 255 - pixels if page.photometric == 0 else pixels  # 0: white is zero
            return np.repeat(grey, 3, axis=-1)
        if pixels.shape[-1] == 3:
            return pixels
        colour, alpha = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
        if page.extrasamples[0] == 2:  # colour is not multiplied by alpha yet
            colour = (colour * alpha + 127) // 255
        return np.asarray(np.minimum(255, colour + (255 - alpha)), np.uint8)
