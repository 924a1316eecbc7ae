"""What decodes a slide: OpenSlide, else tifffile, else Pillow; behind one small surface.

OpenSlide takes every TIFF whose first directory is tiled for a slide. Of some it shows a thumbnail
that comes first, the high byte of 16 bits or one of three channels, and it misses pyramids in
SubIFDs. So a TIFF of no vendor is believed to be what `tiff_backend` finds in its directories, and
OpenSlide decodes it where it sees the same levels.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from wsizoo.errors import SlideError
from wsizoo.names import describe
from wsizoo.slides.tiff_backend import Pixels, is_tiff, open_tiff

IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
IMAGE_MODES = ("RGB", "RGBA", "L", "P")
QUICKHASH_BYTES = 2**20  # of the beginning and of the end of a file
DECODED_ROWS = 768  # of level 0 that OpenSlide keeps decoded, so that the patches of the next row
DECODED_BYTES = (2**25, 2**27)  # find their tiles; at least its own default and at most this
LARGEST_EDGE = 2_000_000  # px: 100 mm of glass at 0.05 um/px


class Backend(Protocol):
    """An open file, seen as OpenSlide shows it.

    Attributes:
        reader: "openslide", "tifffile" or "pillow". format: the vendor or the kind of file.
        whole_pixels: a region consists of whole px of its level; OpenSlide shifts the image by the
            fraction of a px that a level-0 px is off.
    """

    reader: str
    format: str
    whole_pixels: bool
    properties: Mapping[str, str]
    dimensions: tuple[int, int]
    level_dimensions: tuple[tuple[int, int], ...]
    level_downsamples: tuple[float, ...]

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Pixels:
        """(h, w, 3) uint8, white where there is nothing; threads may call it at once.

        Args:
            location: level-0 px. size: px of the level.

        Raises:
            OSError: it cannot be decoded; other regions can still be read.
        """
        ...

    def close(self) -> None: ...


def open_backend(path: Path) -> Backend:
    """The first that reads this file.

    Raises:
        SlideError: none does, or what it holds is no 8-bit colour image of one slide.
    """
    known = _with_openslide(path)
    if known is not None and known.format != "generic-tiff":
        return known
    if not is_tiff(path):
        return ImageBackend(path)
    tiff = open_tiff(path)
    if known is None or known.level_dimensions != tiff.level_dimensions:
        tiff.check_decodable()
        return tiff
    tiff.close()
    known.properties = {**tiff.properties, **known.properties}
    return known


def quickhash(path: Path, backend: Backend) -> str:
    """64 hex digits by which a slide is recognised: OpenSlide's where it makes one.

    Else sha256 of the file's size and of the MiB that it begins and ends with.
    """
    stated = backend.properties.get("openslide.quickhash-1")
    if stated:
        return stated
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        digest.update(file.read(QUICKHASH_BYTES))
        file.seek(max(0, size - QUICKHASH_BYTES))
        digest.update(file.read(QUICKHASH_BYTES))
    return digest.hexdigest()


def check_size(path: Path, backend: Backend) -> None:
    """Raise SlideError for an edge that no glass slide has: the header is damaged."""
    if not 0 < min(backend.dimensions) <= max(backend.dimensions) <= LARGEST_EDGE:
        width, height = backend.dimensions
        raise SlideError(
            f"{path} says that it is {width} x {height} px, expected edges of 1 to {LARGEST_EDGE} "
            "px. The file is damaged; copy it again from its source"
        )


def _with_openslide(path: Path) -> OpenSlideBackend | None:
    """None where OpenSlide knows no such format, or it is a TIFF of no vendor it fails on.

    Raises:
        SlideError: the file is of a format it knows, but broken.
    """
    import openslide

    try:
        return OpenSlideBackend(path)
    except openslide.OpenSlideUnsupportedFormatError:
        return None
    except openslide.OpenSlideError as error:
        vendor = openslide.OpenSlide.detect_format(path)
        if vendor == "generic-tiff":
            return None
        raise SlideError(
            f"{path} ({vendor}) cannot be opened: {error}. If other viewers fail too, copy it "
            "again from its source; else convert it to a pyramidal tiff"
        ) from error


class OpenSlideBackend:
    """Whatever OpenSlide reads. After an error it answers every call with that error, so reopen."""

    reader = "openslide"
    whole_pixels = False

    def __init__(self, path: Path) -> None:
        self.path = path
        handle = self._opened()
        self.properties: Mapping[str, str] = dict(handle.properties)
        self.format = self.properties["openslide.vendor"]
        self.dimensions: tuple[int, int] = handle.dimensions
        self.level_dimensions: tuple[tuple[int, int], ...] = handle.level_dimensions
        self.level_downsamples: tuple[float, ...] = handle.level_downsamples
        self._handle = handle
        self._lock = threading.Lock()

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Pixels:
        """As `Backend.read_region`."""
        import openslide

        handle = self._handle  # held while it is read: it closes with its last reference
        if handle is None:
            raise OSError("the slide was closed")
        try:
            return on_white(handle.read_region(location, level, size))
        except openslide.OpenSlideError:
            pass  # of this region, or left by that of another thread
        try:
            fresh = self._opened()
            pixels = on_white(fresh.read_region(location, level, size))
        except openslide.OpenSlideError as error:
            raise OSError(str(error)) from error
        with self._lock:
            if self._handle is handle:
                self._handle = fresh
        return pixels

    def _opened(self) -> Any:
        import openslide

        handle = openslide.OpenSlide(self.path)
        low, high = DECODED_BYTES
        wanted = DECODED_ROWS * handle.dimensions[0] * 4
        handle.set_cache(openslide.OpenSlideCache(min(max(low, wanted), high)))
        return handle

    def close(self) -> None:
        with self._lock:
            self._handle = None


def on_white(image: Image.Image) -> Pixels:
    """(h, w, 3) uint8 of an RGBA image; what is transparent is white."""
    # raw bytes: several times faster than getextrema and convert
    if np.frombuffer(image.tobytes("raw", "A"), np.uint8).min() < 255:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    rgb = np.frombuffer(image.tobytes("raw", "RGB"), np.uint8)
    return rgb.reshape(image.height, image.width, 3)


class ImageBackend:
    """A plain image, decoded as a whole when first read."""

    reader = "pillow"
    whole_pixels = True

    def __init__(self, path: Path) -> None:
        """Raises SlideError: no image that Pillow reads, or not of 8-bit colour."""
        self.path = path
        with self._opened() as image:
            self.format = str(image.format)
            _check_mode(path, image)
            self.dimensions: tuple[int, int] = image.size
        self.level_dimensions: tuple[tuple[int, int], ...] = (self.dimensions,)
        self.level_downsamples: tuple[float, ...] = (1.0,)
        self.properties: Mapping[str, str] = {}
        self._pixels: Pixels | None = None
        self._failed = ""
        self._lock = threading.Lock()

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Pixels:
        """As `Backend.read_region`; but one damaged byte damages all of it."""
        with self._lock:
            if self._failed:
                raise OSError(self._failed)
            if self._pixels is None:
                try:
                    with self._opened() as image:
                        self._pixels = on_white(image.convert("RGBA"))
                except Exception as error:  # Pillow's decoders raise of many kinds
                    self._failed = describe(error)
                    raise OSError(self._failed) from error
            (x, y), (width, height) = location, size
            return self._pixels[y : y + height, x : x + width]

    def close(self) -> None:
        self._pixels = None

    def _opened(self) -> Image.Image:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            try:
                return Image.open(self.path, formats=IMAGE_FORMATS)
            except Image.DecompressionBombError as error:
                raise SlideError(
                    f"{self.path} is too large for a plain image ({error}): convert it to a "
                    "pyramidal tiff, such as with: vips tiffsave IN OUT.tif --tile --pyramid"
                ) from error
            except Exception as error:  # Pillow's plugins raise of many kinds
                raise SlideError(
                    f"{self.path} is in no format OpenSlide reads (svs, ndpi, mrxs, dcm, ...), and "
                    "no tiff, png, jpg, bmp or webp. It is not a slide, or only a part of one"
                ) from error


def _check_mode(path: Path, image: Image.Image) -> None:
    """Raise SlideError unless every pixel is 8-bit grey or colour."""
    deep = "16" in str(
        getattr(image, "tile", "")
    )  # Pillow keeps the high byte of 16-bit RGB without a word
    if deep or image.mode not in IMAGE_MODES:
        raise SlideError(
            f"{path} is a {image.format} of {'16-bit ' if deep else ''}{image.mode} pixels, "
            "expected 8-bit RGB or grey. Convert it with a program that knows its colours"
        )
