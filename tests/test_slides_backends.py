"""wsizoo.slides.backends and tiff_backend: the right image of any file, or one clear error."""

import io
import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsizoo.errors import SlideError
from wsizoo.slides import backends, tiff_backend
from wsizoo.slides.backends import OpenSlideBackend, open_backend
from wsizoo.slides.reader import Pixels, Slide, open_slide
from wsizoo.slides.tiff import write_pyramid
from wsizoo.slides.tiff_backend import TiffBackend, open_tiff

DATA = Path(os.environ.get("WSIZOO_DATA", Path(__file__).parents[2] / "shared" / "data"))
SLIDES = DATA / "slides"
needs_slides = pytest.mark.skipif(
    not (SLIDES / "expected.json").is_file(), reason="no real slides: set WSIZOO_DATA"
)
pytest.importorskip("imagecodecs", reason="needs the extra [tiff]")

WIDTH, HEIGHT = 610, 430
TILED: dict[str, Any] = {"tile": (128, 128), "photometric": "rgb"}
STRIPED: dict[str, Any] = {"rowsperstrip": 48, "photometric": "rgb"}
JPEG = 8
"""Levels that JPEG may cost on average; a sharp grid of single px costs it much."""


def textured(width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    """Smooth, with a sharp grid, so that an image shifted by a px is far off."""
    y, x = np.mgrid[:height, :width]
    planes = [x * 200 / width, y * 200 / height, 128 + 90 * np.sin(x / 60) * np.cos(y / 45)]
    image = np.rint(np.stack(planes, axis=-1)).astype(np.uint8)
    image[::37, :, 1] = 255
    image[:, ::41, 0] = 255
    return image


IMAGE = textured()


def write_pages(path: Path, pages: Sequence[tuple[Pixels, dict[str, Any]]], **kwargs: Any) -> None:
    with tifffile.TiffWriter(path, **kwargs) as tiff:
        for image, how in pages:
            tiff.write(image, **how)


def ome(*steps: int, scale: float = 0.5, **how: Any) -> list[tuple[Pixels, dict[str, Any]]]:
    """One OME image: its base, then its pyramid as SubIFDs."""
    told: dict[str, Any] = {"axes": "YXS"}
    for axis in "XY":
        told |= {f"PhysicalSize{axis}": scale, f"PhysicalSize{axis}Unit": "µm"}
    smaller = [(IMAGE[::step, ::step], {**TILED, **how, "subfiletype": 1}) for step in steps]
    return [(IMAGE, {**TILED, **how, "subifds": len(steps), "metadata": told}), *smaller]


def pyramid(*steps: int, flag: int = 1, **how: Any) -> list[tuple[Pixels, dict[str, Any]]]:
    smaller = [(IMAGE[::step, ::step], {**how, "subfiletype": flag}) for step in steps]
    return [(IMAGE, how), *smaller]


SMALL = (IMAGE[::10, ::10], TILED)
MACRO = (IMAGE[:200, :150], {"photometric": "rgb"})
# name: pages, what decodes them, levels, and how far off pixels may be
RIGHT: dict[str, tuple[list[tuple[Pixels, dict[str, Any]]], str, int, int]] = {
    "tiled": ([(IMAGE, TILED)], "openslide", 1, 0),
    "tiled, jpeg": ([(IMAGE, TILED | {"compression": "jpeg"})], "openslide", 1, JPEG),
    "tiled, planar": (
        [(np.moveaxis(IMAGE, -1, 0), TILED | {"planarconfig": "separate"})], "openslide", 1, 0,
    ),
    "tiled, jpeg2000": ([(IMAGE, TILED | {"compression": "jpeg2000"})], "tifffile", 1, 0),
    "tiled, webp": ([(IMAGE, TILED | {"compression": "webp"})], "tifffile", 1, 0),
    "one strip": ([(IMAGE, {"photometric": "rgb"})], "tifffile", 1, 0),
    "strips": ([(IMAGE, STRIPED)], "tifffile", 1, 0),
    "strips, lzw": ([(IMAGE, STRIPED | {"compression": "lzw"})], "tifffile", 1, 0),
    "strips, deflate, predictor": (
        [(IMAGE, STRIPED | {"compression": "zlib", "predictor": True})], "tifffile", 1, 0,
    ),
    "strips, planar": (
        [(np.moveaxis(IMAGE, -1, 0), STRIPED | {"planarconfig": "separate"})], "tifffile", 1, 0,
    ),
    "strips, jpeg": ([(IMAGE, STRIPED | {"compression": "jpeg"})], "tifffile", 1, JPEG),
    "pyramid": (pyramid(2, 8, **TILED), "openslide", 3, 0),
    "pyramid of strips": (pyramid(2, 8, **STRIPED), "tifffile", 3, 0),
    "pyramid not marked as one": (pyramid(2, 8, flag=0, **TILED), "openslide", 1, 0),
    "pyramid and macro": ([*pyramid(2, **TILED), MACRO], "openslide", 2, 0),
    "macro marked as a level": (
        [(IMAGE, TILED), (IMAGE[:200, :150], TILED | {"subfiletype": 1})], "tifffile", 1, 0,
    ),
    "mask marked as a level": (
        [(IMAGE, TILED), (IMAGE[::2, ::2, 0], {**TILED, "photometric": 1, "subfiletype": 1})],
        "tifffile", 1, 0,
    ),
    "thumbnail first": ([SMALL, (IMAGE, TILED)], "tifffile", 1, 0),
    "macro first": ([MACRO, *pyramid(2, **STRIPED)], "tifffile", 2, 0),
    "three pages": ([(IMAGE, TILED), SMALL, MACRO], "openslide", 1, 0),
    "three pages of strips": ([(IMAGE, STRIPED), SMALL, MACRO], "tifffile", 1, 0),
    "subifds without ome": (
        [(IMAGE, {**TILED, "subifds": 1}), (IMAGE[::2, ::2], {**TILED, "subfiletype": 1})],
        "tifffile", 2, 0,
    ),
}  # fmt: skip


def read_all(slide: Slide, level: int = 0) -> Pixels:
    return slide.read(0, 0, *slide.size, level)[0]


@pytest.mark.parametrize("name", sorted(RIGHT))
def test_the_slide_of_a_tiff_is_read_with_its_pyramid(tmp_path: Path, name: str) -> None:
    pages, reader, n_levels, tolerance = RIGHT[name]
    write_pages(tmp_path / "a.tif", pages)
    with open_slide(tmp_path / "a.tif", 0.5) as slide:
        assert (slide.reader, len(slide.downsamples)) == (reader, n_levels)
        assert slide.size == (WIDTH, HEIGHT)
        assert len(slide.quickhash) == 64
        whole = read_all(slide).astype(int)
        levels = [read_all(slide, level) for level in range(n_levels)]
    assert np.abs(whole - IMAGE).mean() <= tolerance
    for pixels, (columns, rows) in zip(levels, slide.level_sizes, strict=True):
        step = round(WIDTH / columns)
        assert (pixels[:rows, :columns] == IMAGE[::step, ::step]).all() or tolerance


@pytest.mark.parametrize("how", [{}, {"compression": "jpeg", "compressionargs": {"level": 95}}])
def test_an_ome_pyramid_is_read_with_its_scale(tmp_path: Path, how: dict[str, Any]) -> None:
    write_pages(tmp_path / "a.ome.tif", ome(2, 8, scale=0.26, **how), ome=True, bigtiff=True)
    with open_slide(tmp_path / "a.ome.tif") as slide:
        assert (slide.reader, slide.format) == ("tifffile", "ome-tiff")
        assert (slide.mpp, slide.mpp_source) == (0.26, "ome.PhysicalSizeX")
        assert slide.level_sizes == ((610, 430), (305, 215), (77, 54))
        for level, step in enumerate((1, 2, 8)):
            columns, rows = slide.level_sizes[level]
            pixels = read_all(slide, level)[:rows, :columns].astype(int)
            off = np.abs(pixels - IMAGE[::step, ::step])
            assert off.mean() <= (JPEG if how else 0)


def test_threads_read_an_ome_pyramid_as_one_thread_does(tmp_path: Path) -> None:
    write_pages(tmp_path / "a.ome.tif", ome(2, compression="jpeg"), ome=True)
    rng = np.random.default_rng(2)
    places = [(int(x), int(y), i % 2) for i, (x, y) in enumerate(rng.integers(0, 350, (200, 2)))]

    def read(slide: Slide, place: tuple[int, int, int]) -> bytes:
        x, y, level = place
        return slide.read(x, y, 80, 80, level)[0].tobytes()

    with open_slide(tmp_path / "a.ome.tif") as slide, ThreadPoolExecutor(4) as pool:
        together = list(pool.map(partial(read, slide), places))
    with open_slide(tmp_path / "a.ome.tif") as slide:
        assert together == [read(slide, place) for place in places]


def test_of_several_ome_images_the_largest_is_the_slide(tmp_path: Path) -> None:
    macro = (IMAGE[:150, :200], {**TILED, "metadata": {"axes": "YXS", "PhysicalSizeX": 9.0}})
    write_pages(tmp_path / "a.ome.tif", [macro, *ome(2, scale=0.25)], ome=True)
    with open_slide(tmp_path / "a.ome.tif") as slide:
        assert (slide.size, slide.mpp, len(slide.downsamples)) == ((WIDTH, HEIGHT), 0.25, 2)
        assert (read_all(slide) == IMAGE).all()


def test_an_ome_image_of_one_level_is_decoded_by_openslide_at_omes_scale(tmp_path: Path) -> None:
    write_pages(tmp_path / "a.ome.tif", ome(), ome=True)
    with open_slide(tmp_path / "a.ome.tif") as slide:
        assert (slide.reader, slide.mpp_source) == ("openslide", "ome.PhysicalSizeX")


GREY = IMAGE[..., 0]
ALPHA = np.where(np.arange(WIDTH) < 200, 0, np.where(np.arange(WIDTH) < 400, 120, 255))
RGBA = np.dstack([IMAGE, np.broadcast_to(ALPHA, (HEIGHT, WIDTH)).astype(np.uint8)])
KINDS: dict[str, tuple[Pixels, dict[str, Any]]] = {
    "grey": (GREY, {"photometric": "minisblack"}),
    "grey, white is zero": (GREY, {"photometric": "miniswhite"}),
    "alpha": (RGBA, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "premultiplied": (
        np.dstack([(RGBA[..., :3] * (RGBA[..., 3:] / 255)).astype(np.uint8), RGBA[..., 3:]]),
        {"photometric": "rgb", "extrasamples": ["assocalpha"]},
    ),
}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_grey_and_transparent_pixels_are_the_same_whoever_decodes_them(
    tmp_path: Path, name: str
) -> None:
    image, how = KINDS[name]
    tifffile.imwrite(tmp_path / "tiles.tif", image, tile=(128, 128), **how)
    tifffile.imwrite(tmp_path / "strips.tif", image, **how)
    with (
        open_slide(tmp_path / "tiles.tif", 0.5) as one,
        open_slide(tmp_path / "strips.tif", 0.5) as b,
    ):
        assert (one.reader, b.reader) == ("openslide", "tifffile")
        first, second = read_all(one).astype(int), read_all(b).astype(int)
    assert np.abs(first - second).max() <= (2 if how["photometric"] == "rgb" else 0)
    if name == "grey":
        assert (second == GREY[..., None]).all()
    if name == "alpha":
        assert (second[:, :200] == 255).all()
        assert (second[:, 400:] == IMAGE[:, 400:]).all()


TILE = {"tile": (128, 128)}
WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "16 bit": (IMAGE.astype(np.uint16) * 257, TILED, "3 x 16-bit integer RGB, expected 8-bit"),
    "16 bit, strips": (IMAGE.astype(np.uint16) * 257, STRIPED, "3 x 16-bit integer RGB"),
    "16 bit grey": (
        GREY.astype(np.uint16), {"photometric": "minisblack", "tile": (128, 128)}, "1 x 16-bit",
    ),
    "float": (IMAGE.astype(np.float32), TILED, "3 x 32-bit float RGB, expected 8-bit RGB or grey"),
    "bilevel": (GREY > 100, {"photometric": "minisblack"}, "1 x 1-bit integer MINISBLACK"),
    "palette": (
        GREY,
        {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16), "tile": (128, 128)},
        "8-bit integer PALETTE",
    ),
    "cmyk": (RGBA, {"photometric": "separated"} | TILE, "4 x 8-bit integer SEPARATED"),
    "fourth channel": (
        RGBA, {"photometric": "rgb", "extrasamples": ["unspecified"]} | TILE, "4 x 8-bit integer",
    ),
    "cielab": (IMAGE, {"photometric": "cielab", "tile": (128, 128)}, "8-bit integer CIELAB"),
    "ycbcr, no jpeg": (IMAGE, {"photometric": "ycbcr"}, "has YCbCr pixels that are no JPEG"),
    "stack": (np.stack([IMAGE] * 3), TILED, r"3 images of like size \(610 x 430, 610 x 430"),
    "stack, strips": (np.stack([IMAGE] * 5), STRIPED, "5 images of like size .*, ... px"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(WRONG))
def test_a_tiff_that_is_no_brightfield_slide_is_refused(tmp_path: Path, name: str) -> None:
    image, how, match = WRONG[name]
    tifffile.imwrite(tmp_path / "a.tif", image, **how)
    with pytest.raises(SlideError, match=match):
        open_slide(tmp_path / "a.tif", 0.5)


def test_channels_of_ome_are_not_taken_for_a_grey_slide(tmp_path: Path) -> None:
    how = {"tile": (128, 128), "photometric": "minisblack", "metadata": {"axes": "CYX"}}
    write_pages(tmp_path / "a.ome.tif", [(np.moveaxis(IMAGE, -1, 0), how)], ome=True)
    with pytest.raises(SlideError, match=r"image of axes CYX \(3, 430, 610\): .*raw2ometiff --rgb"):
        open_slide(tmp_path / "a.ome.tif", 0.5)


def test_two_regions_of_like_size_in_one_file_are_not_guessed_between(tmp_path: Path) -> None:
    write_pages(tmp_path / "a.tif", [(IMAGE, TILED), (IMAGE[:400, :500], TILED)])
    with pytest.raises(SlideError, match=r"2 images of like size \(610 x 430, 500 x 400 px\)"):
        open_slide(tmp_path / "a.tif", 0.5)


def test_a_compression_that_needs_a_package_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, **STRIPED, compression="jpeg")
    monkeypatch.setattr(tifffile.TIFF, "DECOMPRESSORS", {1: None})
    monkeypatch.setattr(tiff_backend, "find_spec", lambda _: None)
    with pytest.raises(SlideError, match=r"needs a package .*JPEG.*pip install 'wsizoo\[tiff\]'"):
        open_slide(tmp_path / "a.tif", 0.5)


def test_one_huge_compressed_strip_is_refused_and_a_raw_one_is_read_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff_backend, "LARGEST_PIECE", 100_000)
    monkeypatch.setattr(tiff_backend, "STRIP_BYTES", 20_000)
    tifffile.imwrite(tmp_path / "raw.tif", IMAGE, photometric="rgb", rowsperstrip=HEIGHT)
    with open_slide(tmp_path / "raw.tif", 0.5) as slide:
        assert (read_all(slide) == IMAGE).all()
    packed = {"photometric": "rgb", "rowsperstrip": HEIGHT, "compression": "zlib"}
    tifffile.imwrite(tmp_path / "packed.tif", IMAGE, **packed)
    with pytest.raises(SlideError, match=r"pieces of 0.0 GiB.*vips tiffsave IN OUT.tif --tile"):
        open_slide(tmp_path / "packed.tif", 0.5)


def test_only_the_pieces_of_a_region_are_decoded_and_kept_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff_backend, "CACHE_BYTES", 4 * 128 * 128 * 3)
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, **TILED, compression="zlib")
    tiff = open_tiff(tmp_path / "a.tif")
    decoded: list[int] = []
    whole = type(tiff._levels[0])._decompress
    monkeypatch.setattr(
        type(tiff._levels[0]),
        "_decompress",
        lambda self, data, index: decoded.append(index) or whole(self, data, index),
    )
    for _ in range(3):
        region = tiff.read_region((130, 140), 0, (200, 100))
        assert (region == IMAGE[140:240, 130:330]).all()
    assert decoded == [6, 7]
    for x in range(0, WIDTH - 10, 10):
        tiff.read_region((x, 0), 0, (10, 10))
    assert tiff._piece.cache_info().currsize <= 4
    tiff.close()


def test_a_tile_that_was_left_out_is_white(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", IMAGE // 2, **TILED, compression="jpeg2000")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tiff:
        counts = tiff.pages[0].tags["TileByteCounts"]
        counts.overwrite([0, *counts.value[1:]])
    with open_slide(tmp_path / "a.tif", 0.5) as slide:
        pixels = read_all(slide)
    assert (pixels[:128, :128] == 255).all()
    assert (pixels[:128, 128:] == IMAGE[:128, 128:] // 2).all()


def both(path: Path) -> tuple[OpenSlideBackend, TiffBackend]:
    known = open_backend(path)
    assert isinstance(known, OpenSlideBackend)
    return known, open_tiff(path)


@pytest.mark.parametrize("compression", [None, "jpeg"])
def test_tifffile_and_openslide_give_equal_pixels(tmp_path: Path, compression: str | None) -> None:
    base = textured(1024, 640)
    how = TILED | {"compression": compression}
    pages = [(base[::s, ::s], how | {"subfiletype": int(s > 1)}) for s in (1, 2, 8)]
    write_pages(tmp_path / "a.tif", pages)
    one, other = both(tmp_path / "a.tif")
    assert one.level_dimensions == other.level_dimensions
    assert one.level_downsamples == other.level_downsamples == (1, 2, 8)
    rng = random.Random(3)
    for level, (width, height) in enumerate(one.level_dimensions):
        regions = [(0, 0, width, height), (width - 7, height - 5, 7, 5), (0, height - 40, 50, 40)]
        for _ in range(12):
            w, h = rng.randint(1, width // 2), rng.randint(1, height // 2)
            regions.append((rng.randint(0, width - w), rng.randint(0, height - h), w, h))
        for x, y, w, h in regions:
            at = (x * 2 ** (0, 1, 3)[level], y * 2 ** (0, 1, 3)[level])
            pixels = one.read_region(at, level, (w, h))
            assert (pixels == other.read_region(at, level, (w, h))).all(), (level, x, y, w, h)
    other.close()


@needs_slides
@pytest.mark.parametrize("name", ["CropBreastSlide.tiff", "slide2vec_test-mask.tif"])
def test_tifffile_and_openslide_give_equal_pixels_of_real_slides(name: str) -> None:
    one, other = both(SLIDES / name)
    assert one.level_dimensions == other.level_dimensions
    assert one.level_downsamples == other.level_downsamples
    for level, size in enumerate(one.level_dimensions):
        pixels = one.read_region((0, 0), level, size).astype(int)
        assert np.abs(pixels - other.read_region((0, 0), level, size)).max() <= 1
    other.close()


def test_levels_of_any_ratio_lie_where_they_say_with_tifffile_too(tmp_path: Path) -> None:
    level = np.asarray(Image.fromarray(IMAGE).resize((157, 110), Image.Resampling.BOX))
    pages = [(IMAGE, STRIPED), (level, STRIPED | {"subfiletype": 1})]
    write_pages(tmp_path / "a.tif", pages)
    with open_slide(tmp_path / "a.tif", 0.5) as slide:
        scale = slide.downsamples[1]
        for x in range(0, 500, 13):
            pixels, left, _ = slide.read(x, 0, 60, 40, 1)
            first = round(x / scale - left)
            assert x / scale - left == pytest.approx(first, abs=1e-9)
            assert 0 <= left < 1
            assert (pixels[:10] == level[:10, first : first + pixels.shape[1]]).all()


@pytest.mark.parametrize("kind", ["png", "bmp", "webp", "jpg"])
def test_a_plain_image_is_read_at_the_scale_it_is_given(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    Image.fromarray(IMAGE).save(path, lossless=True, quality=95, dpi=(96, 96))
    with pytest.raises(SlideError, match="states no microns per pixel"):
        open_slide(path)
    with open_slide(path, 0.5) as slide:
        assert (slide.reader, slide.size, slide.downsamples) == ("pillow", (WIDTH, HEIGHT), (1.0,))
        pixels, left, top = slide.read(100.5, 50, 300, 200, 0)
        assert (left, top) == (0.5, 0)
        expected = np.asarray(Image.open(path).convert("RGB"))
        assert (pixels == expected[50:250, 100:401]).all()
        assert slide.thumbnail(100)[0].shape == (70, 100, 3)


@pytest.mark.parametrize(
    "image",
    [Image.fromarray(GREY), Image.fromarray(IMAGE).quantize(16), Image.fromarray(RGBA)],
    ids=["grey", "palette", "transparent"],
)
def test_palettes_greys_and_transparency_of_images_become_rgb(
    tmp_path: Path, image: Image.Image
) -> None:
    image.save(tmp_path / "a.png")
    expected = Image.new("RGBA", image.size, "white")
    expected.alpha_composite(image.convert("RGBA"))
    with open_slide(tmp_path / "a.png", 0.5) as slide:
        assert (read_all(slide) == np.asarray(expected.convert("RGB"))).all()


REGIONS = DATA / "he_rois"


@pytest.mark.skipif(not REGIONS.is_dir(), reason="no real images: set WSIZOO_DATA")
def test_real_images_are_read_as_pillow_reads_them() -> None:
    files = [file for file in sorted(REGIONS.rglob("*")) if file.suffix in (".png", ".jpg")]
    assert len(files) > 10
    for file in files:
        with open_slide(file, 0.5) as slide:
            assert slide.reader == "pillow"
            assert (read_all(slide) == np.asarray(Image.open(file).convert("RGB"))).all()


def deep_png() -> bytes:
    """A 16-bit RGB PNG, of which Pillow would keep the high bytes."""
    import imagecodecs

    return bytes(imagecodecs.png_encode(IMAGE.astype(np.uint16) * 257))


def as_bytes(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (deep_png(), "is a PNG of 16-bit RGB pixels, expected 8-bit RGB or grey"),
        (as_bytes(Image.fromarray(GREY.astype(np.uint16)), "PNG"), "is a PNG of 16-bit I;16"),
        (as_bytes(Image.fromarray(IMAGE).convert("CMYK"), "JPEG"), "is a JPEG of CMYK pixels"),
        (as_bytes(Image.fromarray(GREY > 9), "PNG"), "is a PNG of 1 pixels"),
        (as_bytes(Image.fromarray(IMAGE), "GIF"), "in no format OpenSlide reads"),
    ],
    ids=["16-bit rgb", "16-bit grey", "cmyk", "bilevel", "gif"],
)
def test_an_image_that_is_no_brightfield_slide_is_refused(
    tmp_path: Path, content: bytes, match: str
) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(SlideError, match=match):
        open_slide(tmp_path / "a.png", 0.5)


def test_a_huge_plain_image_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", IMAGE[..., 0].size - 1)
    with open_slide(tmp_path / "a.png", 0.5) as slide:  # Pillow only warns up to twice as many
        assert (read_all(slide) == IMAGE).all()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(SlideError, match=r"too large for a plain image.*vips tiffsave"):
        open_slide(tmp_path / "a.png", 0.5)


@pytest.mark.parametrize(
    ("bounds", "kept"), [((1, 10**9), 768 * WIDTH * 4), ((10**7, 10**9), 10**7), ((1, 99), 99)]
)
def test_openslide_keeps_rows_of_tiles_within_bounds(
    tmp_path: Path, bounds: tuple[int, int], kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openslide

    asked, cache = [], openslide.OpenSlideCache
    monkeypatch.setattr(
        openslide, "OpenSlideCache", lambda size: [asked.append(size), cache(size)][1]
    )
    monkeypatch.setattr(backends, "DECODED_BYTES", bounds)
    with open_slide(write_pyramid(tmp_path / "a.svs", IMAGE, 0.5, (1,))) as slide:
        read_all(slide)
    assert set(asked) == {kept}


def test_the_content_says_what_a_file_is_not_its_name(tmp_path: Path) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "jpeg.svs", "JPEG")
    write_pyramid(tmp_path / "aperio.png", IMAGE, 0.5, (1,))
    (tmp_path / "text.svs").write_text("slide,mpp\n")
    with open_slide(tmp_path / "jpeg.svs", 0.5) as slide:
        assert (slide.reader, slide.format) == ("pillow", "JPEG")
    with open_slide(tmp_path / "aperio.png") as slide:
        assert (slide.reader, slide.format) == ("openslide", "aperio")
    with pytest.raises(SlideError, match=r"text.svs is in no format .* only a part of one"):
        open_slide(tmp_path / "text.svs", 0.5)


def test_a_slide_is_recognised_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "QUICKHASH_BYTES", 1000)
    hashes = {}
    for name, change in (("a", 0), ("b", 0), ("first", 30), ("last", -30), ("middle", 40_000)):
        path = tmp_path / f"{name}.bmp"
        content = bytearray(as_bytes(Image.fromarray(IMAGE), "BMP"))
        content[change] ^= change and 1
        path.write_bytes(content)
        with open_slide(path, 0.5) as slide:
            hashes[name] = slide.quickhash
    assert hashes["a"] == hashes["b"] == hashes["middle"]  # it is quick, no checksum
    assert len(set(hashes.values())) == 3
    assert all(len(value) == 64 for value in hashes.values())


def files_to_damage(folder: Path) -> dict[str, Path]:
    """One small file of each layout, name -> path."""
    write_pyramid(folder / "aperio.svs", IMAGE, 0.5, (1, 4))
    write_pyramid(folder / "generic.tif", IMAGE, 0.5, (1, 4), description=False)
    tifffile.imwrite(folder / "strips.tif", IMAGE, **STRIPED, compression="zlib")
    tifffile.imwrite(folder / "raw.tif", IMAGE, photometric="rgb")
    write_pages(folder / "ome.tif", ome(2, compression="jpeg"), ome=True)
    for kind in ("png", "jpg", "bmp", "webp"):
        Image.fromarray(IMAGE).save(folder / f"image.{kind}", lossless=True)
    return {path.name: path for path in sorted(folder.iterdir())}


def regions(path: Path) -> dict[tuple[int, int], bytes | None]:
    """Each 100 px square, None where it cannot be read; whatever else is raised is a failure."""
    found: dict[tuple[int, int], bytes | None] = {}
    with open_slide(path, 0.5) as slide:
        width, height = slide.size
        for x in range(0, min(width, 700) - 99, 100):
            for y in range(0, min(height, 500) - 99, 100):
                try:
                    found[x, y] = slide.read(x, y, 100, 100, 0)[0].tobytes()
                except SlideError:
                    found[x, y] = None
    return found


NAMES = ["aperio.svs", "generic.tif", "image.bmp", "image.jpg", "image.png", "image.webp",
         "ome.tif", "raw.tif", "strips.tif"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_file_cut_short_shows_the_true_pixels_or_none(tmp_path: Path, name: str) -> None:
    files = files_to_damage(tmp_path)
    assert sorted(files) == NAMES
    content, whole = files[name].read_bytes(), regions(files[name])
    assert None not in whole.values()
    refused = 0
    for length in (0, 1, 4, 8, 100, 1000, *(len(content) * k // 8 for k in range(1, 8)), -1):
        files[name].write_bytes(content[:length])
        try:
            rest = regions(files[name])
        except SlideError:
            refused += 1
            continue
        for place, pixels in rest.items():
            assert pixels in (None, whole[place]), (length, place)
    assert refused >= 4


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_damage_raises_anything_but_a_slide_error(tmp_path: Path, name: str) -> None:
    path = files_to_damage(tmp_path)[name]
    check_mutations(path, path.read_bytes(), 40)


@pytest.mark.slow
@needs_slides
@pytest.mark.parametrize("name", ["small.svs", "slide2vec_test-mask.tif", "CropBreastSlide.tiff"])
def test_no_damage_of_a_real_slide_raises_anything_but_a_slide_error(
    tmp_path: Path, name: str
) -> None:
    check_mutations(tmp_path / name, (SLIDES / name).read_bytes(), 40)


def check_mutations(path: Path, content: bytes, count: int) -> None:
    rng = random.Random(7)
    for number in range(count):
        changed = bytearray(content)
        reach = (200, len(content))[number % 2]  # the header, or anything
        for _ in range(rng.choice((1, 3, 30))):
            changed[rng.randrange(min(reach, len(content)))] = rng.randrange(256)
        if number % 5 == 0:
            del changed[rng.randrange(len(changed)) :]
        path.write_bytes(changed)
        with suppress(SlideError):
            regions(path)
