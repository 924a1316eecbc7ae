"""Write a tiled pyramidal TIFF that OpenSlide, tifffile and viewers read, with its mpp.

Tiles are ordinary JPEG streams made by Pillow, and the TIFF around them is a header and one
directory of tags per level, so no compression package is needed. The tiles come first and the
directories last: by then the size is known, and the header, for which 16 bytes were kept free, says
classic TIFF or BigTIFF.
"""

import io
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsizoo.errors import DataError, ScaleError
from wsizoo.files import replacing

Pixels = NDArray[np.uint8]
Region = Callable[[int, int, int, int], Pixels]
"""(x, y, width, height), level-0 px -> (height, width, 3) uint8."""

_HEADER_BYTES = 16
_CLASSIC_LIMIT = 2**32
_SHORT, _LONG, _RATIONAL, _ASCII, _LONG8 = 3, 4, 5, 2, 16
_FORMATS = {_SHORT: "H", _LONG: "I", _RATIONAL: "I", _LONG8: "Q"}


@dataclass(frozen=True)
class _Level:
    width: int
    height: int
    read: Region


@dataclass(frozen=True)
class _Tag:
    code: int
    kind: int
    values: tuple[int, ...] | bytes

    def payload(self) -> tuple[int, bytes]:
        """Number of values, and their little-endian bytes."""
        if isinstance(self.values, bytes):
            return len(self.values), self.values
        count = len(self.values) // (2 if self.kind == _RATIONAL else 1)
        return count, struct.pack(f"<{len(self.values)}{_FORMATS[self.kind]}", *self.values)


def write_pyramid(
    path: str | Path,
    image: Pixels | Region,
    mpp: float,
    levels: Sequence[int | Pixels] = (1, 4, 16),
    *,
    size: tuple[int, int] | None = None,
    quality: int = 80,
    tile: int = 256,
    description: bool = True,
    resolution: bool = True,
    properties: Mapping[str, str] | None = None,
    big: bool | None = None,
) -> Path:
    """Write one slide; the file appears under its name only when it is complete.

    Args:
        path: the file; `.svs` tells people what it is, readers do not mind the ending.
        image: (H, W, 3) uint8 RGB, or a function of (x, y, width, height) in level-0 px that
            returns such a region, for images that do not fit in memory; it needs `size`.
        mpp: um per level-0 px.
        levels: the first is 1; each other is an integer factor of downsampling (box means; a
            remainder at the right and bottom is dropped) or the level's own image, of any size.
        size: (width, height) of level 0, px; only with a function.
        quality: of the JPEG tiles, which are 4:2:0; 1 to 95.
        tile: edge of a tile in px, a multiple of 16.
        description: write the Aperio-style description, from which OpenSlide takes mpp and
            objective.
        resolution: write the resolution tags, from which generic readers take mpp.
        properties: further `key = value` pairs of the description.
        big: BigTIFF or classic TIFF; None: BigTIFF from 4 GB on.

    Returns:
        The path.

    Raises:
        ScaleError: mpp is not a number from 0.01 to 10000.
        DataError: an image is not (H, W, 3) uint8, or levels, size or tile are impossible.

    Cost: about 0.35 s for 5376 x 5376 px on one core. Of a function's image, never more than the
    footprint of one tile is in memory; every level reads the whole of it once.
    """
    if not 0.01 <= mpp <= 10_000:
        raise ScaleError(f"mpp is {mpp} for {path}; expected 0.01 to 10000 um per px, such as 0.5.")
    if tile < 16 or tile % 16:
        raise DataError(f"tile is {tile} px; JPEG in TIFF needs a multiple of 16, such as 256.")
    pyramid = _build_levels(image, size, levels, tile)
    with replacing(path) as unfinished, open(unfinished, "wb") as file:
        file.write(bytes(_HEADER_BYTES))
        directories: list[list[_Tag]] = []
        for level in pyramid:
            tags = _layout_tags(level, tile, reduced=bool(directories))
            if description:
                tags.append(_describe(level, tile, quality, mpp, properties or {}))
            if resolution:
                tags += _resolution_tags(mpp * pyramid[0].width / level.width)
            tags += _write_tiles(file, _encode_tiles(level, tile, quality))
            directories.append(tags)
        _finish(file, directories, big)
    return Path(path)


def _build_levels(
    image: Pixels | Region,
    size: tuple[int, int] | None,
    levels: Sequence[int | Pixels],
    tile: int,
) -> list[_Level]:
    if not levels or not isinstance(levels[0], int) or levels[0] != 1:
        raise DataError("The first level must be the factor 1, the image itself.")
    base = _base_level(image, size)
    by_factor = {1: base}
    pyramid = [base]
    for level in levels[1:]:
        if isinstance(level, np.ndarray):
            pyramid.append(_array_level(level))
            continue
        if not 1 < level <= min(base.width, base.height):
            raise DataError(
                f"Level factor {level} does not fit an image of {base.width} x {base.height} px; "
                f"expected 2 to {min(base.width, base.height)}."
            )
        nearest = max(factor for factor in by_factor if level % factor == 0)
        in_memory = isinstance(image, np.ndarray)
        by_factor[level] = _shrink(by_factor[nearest], level // nearest, tile, in_memory)
        pyramid.append(by_factor[level])
    return pyramid


def _base_level(image: Pixels | Region, size: tuple[int, int] | None) -> _Level:
    if isinstance(image, np.ndarray):
        if size is not None:
            raise DataError(
                f"size {size} was given with an array, which has its own; leave it out."
            )
        return _array_level(image)
    if size is None or min(size) < 1:
        raise DataError(f"size is {size}; an image given as a function needs size=(width, height).")
    return _Level(*size, image)


def _array_level(image: Pixels) -> _Level:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise DataError(f"A level is {image.dtype} {image.shape}; expected uint8 (H, W, 3).")

    def read(x: int, y: int, width: int, height: int) -> Pixels:
        return image[y : y + height, x : x + width]

    return _Level(image.shape[1], image.shape[0], read)


def _shrink(level: _Level, ratio: int, tile: int, in_memory: bool) -> _Level:
    """The level of means over ratio x ratio px, computed now or, for huge images, on reading."""

    def read(x: int, y: int, width: int, height: int) -> Pixels:
        region = level.read(x * ratio, y * ratio, width * ratio, height * ratio)
        return np.asarray(Image.fromarray(region).reduce(ratio))

    width, height = level.width // ratio, level.height // ratio
    if not in_memory:
        return _Level(width, height, read)
    bands = [read(0, y, width, min(tile, height - y)) for y in range(0, height, tile)]
    return _array_level(np.concatenate(bands))


def _encode_tiles(level: _Level, tile: int, quality: int) -> Iterator[bytes]:
    """JPEG streams, row by row; what lies beyond the image repeats its edge."""
    for y in range(0, level.height, tile):
        for x in range(0, level.width, tile):
            width, height = min(tile, level.width - x), min(tile, level.height - y)
            region = level.read(x, y, width, height)
            if region.shape != (height, width, 3) or region.dtype != np.uint8:
                raise DataError(
                    f"The image function returned {region.dtype} {region.shape} for the region at "
                    f"({x}, {y}); expected uint8 {(height, width, 3)}."
                )
            if (width, height) != (tile, tile):
                region = np.pad(
                    region, ((0, tile - height), (0, tile - width), (0, 0)), mode="edge"
                )
            stream = io.BytesIO()
            Image.fromarray(region).save(stream, "JPEG", quality=quality, subsampling="4:2:0")
            yield stream.getvalue()


def _write_tiles(file: BinaryIO, streams: Iterator[bytes]) -> list[_Tag]:
    offsets, sizes = [], []
    for stream in streams:
        offsets.append(file.tell())
        sizes.append(file.write(stream))
    return [_Tag(324, _LONG8, tuple(offsets)), _Tag(325, _LONG, tuple(sizes))]


def _layout_tags(level: _Level, tile: int, reduced: bool) -> list[_Tag]:
    return [
        _Tag(254, _LONG, (int(reduced),)),  # NewSubfileType: 1 makes it a level, not a second image
        _Tag(256, _LONG, (level.width,)),
        _Tag(257, _LONG, (level.height,)),
        _Tag(258, _SHORT, (8, 8, 8)),  # BitsPerSample
        _Tag(259, _SHORT, (7,)),  # Compression: JPEG
        _Tag(262, _SHORT, (6,)),  # PhotometricInterpretation: YCbCr
        _Tag(277, _SHORT, (3,)),  # SamplesPerPixel
        _Tag(284, _SHORT, (1,)),  # PlanarConfiguration: contiguous
        _Tag(322, _LONG, (tile,)),  # TileWidth
        _Tag(323, _LONG, (tile,)),  # TileLength
        _Tag(530, _SHORT, (2, 2)),  # YCbCrSubSampling
    ]


def _resolution_tags(mpp: float) -> list[_Tag]:
    """Pixels per centimetre; the unit matters, as readers take a missing one for inches."""
    pixels = Fraction(10_000 / mpp).limit_denominator(1000)
    ratio = (pixels.numerator, pixels.denominator)
    return [
        _Tag(282, _RATIONAL, ratio),
        _Tag(283, _RATIONAL, ratio),
        _Tag(296, _SHORT, (3,)),
    ]


def _describe(
    level: _Level, tile: int, quality: int, mpp: float, properties: Mapping[str, str]
) -> _Tag:
    """ImageDescription; OpenSlide recognises the vendor by its first word."""
    pairs = {"AppMag": f"{10 / mpp:g}", "MPP": repr(float(mpp)), **properties}
    text = (
        f"Aperio layout, written by wsizoo\r\n{level.width}x{level.height} ({tile}x{tile}) "
        f"JPEG/RGB Q={quality}|" + "|".join(f"{key} = {value}" for key, value in pairs.items())
    )
    return _Tag(270, _ASCII, text.encode("ascii", "replace") + b"\0")


def _finish(file: BinaryIO, directories: Sequence[Sequence[_Tag]], big: bool | None) -> None:
    """Append the directories and fill in the header, which then makes the file a TIFF."""
    if big is None:
        needed = sum(len(tag.payload()[1]) + 32 for tags in directories for tag in tags)
        big = file.tell() + needed >= _CLASSIC_LIMIT
    file.write(bytes(-file.tell() % 8))
    first = file.tell()
    for number, tags in enumerate(directories):
        last = number == len(directories) - 1
        file.write(_pack_directory(tags, file.tell(), big, last))
    file.seek(0)
    file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, first) if big else
               struct.pack("<2sHI", b"II", 42, first))  # fmt: skip


def _pack_directory(tags: Sequence[_Tag], offset: int, big: bool, last: bool) -> bytes:
    """One directory, the values that do not fit into its entries, and the offset of the next.

    Args:
        offset: where in the file it will stand.
    """
    word, count_format = ("Q", "Q") if big else ("I", "H")
    room = struct.calcsize(word)
    entry_bytes = 4 + 2 * room
    table_bytes = struct.calcsize(f"<{count_format}{word}") + entry_bytes * len(tags)
    entries, values = b"", b""
    for tag in sorted(tags, key=lambda tag: tag.code):
        kind = _LONG if tag.kind == _LONG8 and not big else tag.kind
        count, payload = _Tag(tag.code, kind, tag.values).payload()
        if len(payload) > room:
            payload += bytes(-len(payload) % 8)
            where = offset + table_bytes + len(values)
            values += payload
            payload = struct.pack(f"<{word}", where)
        entries += struct.pack(f"<HH{word}", tag.code, kind, count) + payload.ljust(room, b"\0")
    following = 0 if last else offset + table_bytes + len(values)
    table = (
        struct.pack(f"<{count_format}", len(tags)) + entries + struct.pack(f"<{word}", following)
    )
    return table + values
