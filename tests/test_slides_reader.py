"""wsizoo.slides.reader: scale that can be trusted, and regions that hold what the slide holds."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from wsizoo.errors import SlideError
from wsizoo.slides import reader
from wsizoo.slides.reader import Pixels, Slide, open_slide
from wsizoo.slides.tiff import write_pyramid

JPEG = 8
"""Grey levels that JPEG may cost on a smooth image."""

DATA = Path(os.environ.get("WSIZOO_DATA", Path(__file__).parents[2] / "shared" / "data"))
SLIDES = DATA / "slides"
needs_slides = pytest.mark.skipif(
    not (SLIDES / "expected.json").is_file(), reason="no real slides: set WSIZOO_DATA"
)


def smooth_image(width: int, height: int) -> Pixels:
    y, x = np.mgrid[:height, :width]
    planes = [x * 200 / width, y * 200 / height, 128 + 90 * np.sin(x / 60) * np.cos(y / 45)]
    return np.rint(np.stack(planes, axis=-1)).astype(np.uint8)


@pytest.fixture(scope="module")
def image() -> Pixels:
    return smooth_image(1100, 700)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, image: Pixels) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    return write_pyramid(folder / "a.svs", image, 0.5, (1, 2, 8), quality=95)


def watched(slide: Slide) -> list[tuple[tuple[int, int], int, tuple[int, int]]]:
    """Every region that a slide is asked for from now on: origin, level, size."""
    calls = []
    handle = slide._handle

    class Spy:
        def __getattr__(self, name: str) -> Any:
            return getattr(handle, name)

        def read_region(self, origin: Any, level: int, size: Any) -> Any:
            calls.append((origin, level, size))
            return handle.read_region(origin, level, size)

    slide._handle = Spy()
    return calls


def test_a_slide_knows_its_name_size_levels_and_scale(path: Path) -> None:
    with open_slide(path) as slide:
        assert slide.slide_id == "a"
        assert slide.size == (1100, 700)
        assert slide.level_sizes == ((1100, 700), (550, 350), (137, 87))
        assert slide.downsamples[:2] == (1, 2)
        assert (slide.mpp, slide.mpp_source) == (0.5, "openslide.mpp-x")
        assert (slide.reader, slide.format) == ("openslide", "aperio")
        assert len(slide.quickhash) == 64


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_region_holds_the_pixels_of_its_level_at_the_place_it_says(
    path: Path, image: Pixels, level: int
) -> None:
    factor = (1, 2, 8)[level]
    with open_slide(path) as slide:
        scale = slide.downsamples[level]
        pixels, left, top = slide.read(203.0, 101.0, 400, 300, level, margin=3)
    x = (np.arange(pixels.shape[1]) + 0.5 - left) * scale + 203
    y = (np.arange(pixels.shape[0]) + 0.5 - top) * scale + 101
    near = np.ix_(np.clip(y, 0, 699).astype(int), np.clip(x, 0, 1099).astype(int))
    difference = pixels[3:-3, 3:-3].astype(int) - image[near][3:-3, 3:-3]
    assert np.abs(difference).mean() < 1 + factor / 2
    assert left >= 3
    assert top >= 3


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    x=st.floats(0, 1090), y=st.floats(0, 690), width=st.floats(1, 900), height=st.floats(1, 600),
    level=st.integers(0, 2), margin=st.integers(0, 5),
)  # fmt: skip
def test_nothing_outside_the_slide_is_read(
    path: Path, x: float, y: float, width: float, height: float, level: int, margin: int
) -> None:
    width, height = min(width, 1100 - x), min(height, 700 - y)
    with open_slide(path) as slide:
        calls = watched(slide)
        pixels, left, top = slide.read(x, y, width, height, level, margin)
        (origin, _, size), scale = calls[0], slide.downsamples[level]
        for axis in (0, 1):
            assert origin[axis] >= 0
            assert origin[axis] / scale + size[axis] <= slide.level_sizes[level][axis] + 1e-5
    assert left >= 0
    assert top >= 0
    assert left + width / scale <= pixels.shape[1]
    assert top + height / scale <= pixels.shape[0]


def test_what_lies_beyond_the_last_pixel_of_a_level_repeats_it(tmp_path: Path) -> None:
    level = smooth_image(249, 175)  # of 1000 x 700 px, a column of 4 px less
    path = write_pyramid(tmp_path / "a.svs", smooth_image(1000, 700), 0.5, (1, level), quality=95)
    with open_slide(path) as slide:
        pixels, left, _ = slide.read(900, 0, 100, 600, 1)
        whole, _, _ = slide.read(0, 0, 1000, 700, 1)
    assert left + 100 / slide.downsamples[1] <= pixels.shape[1]
    assert np.abs(pixels[:150, -1].astype(int) - whole[:150, -1]).max() <= JPEG


@pytest.mark.parametrize(
    ("levels", "wanted", "level"),
    [
        ((1.0, 4.0, 16.0), 1.0, 0),
        ((1.0, 4.0, 16.0), 3.9, 0),
        ((1.0, 4.0, 16.0), 4.0, 1),
        ((1.0, 4.0002, 16.003), 4.0, 1),
        ((1.0, 3.9998, 16.0), 4.0, 1),
        ((1.0, 4.1, 16.0), 4.0, 0),
        ((1.0, 4.0, 16.0), 200.0, 2),
        ((1.0, 4.0, 16.0), 0.5, 0),
    ],
)
def test_a_level_is_never_coarser_than_wanted_up_to_rounding(
    path: Path, levels: tuple[float, ...], wanted: float, level: int
) -> None:
    with open_slide(path) as slide:
        slide.downsamples = levels
        assert slide.level_for(wanted) == level


@pytest.mark.parametrize("strip", [2**24, 2**14])
def test_the_whole_slide_is_box_averaged_whether_in_strips_or_at_once(
    tmp_path: Path, image: Pixels, strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "STRIP_PIXELS", strip)
    path = write_pyramid(tmp_path / "a.svs", image, 0.5, (1, 2), quality=95)
    with open_slide(path) as slide:
        small, downsample = slide.image(10)
    assert small.shape == (70, 110, 3)
    assert downsample == 10
    means = image.reshape(70, 10, 110, 10, 3).mean(axis=(1, 3))
    assert np.abs(small - means).max() <= JPEG


def test_a_thumbnail_has_the_edge_that_was_asked_for(path: Path) -> None:
    with open_slide(path) as slide:
        small, downsample = slide.thumbnail(256)
        whole, one = slide.thumbnail(2000)
    assert small.shape == (163, 256, 3)
    assert downsample == 1100 / 256
    assert (whole.shape, one) == ((700, 1100, 3), 1)


def without_first_tile(path: Path) -> Path:
    """The slide, its first level-0 tile absent, as sparse pyramids leave out what is empty."""
    with tifffile.TiffFile(path) as tiff:
        count = tiff.pages[0].tags["TileByteCounts"]
        where, width = count.valueoffset, {3: 2, 4: 4, 16: 8}[int(count.dtype)]
    with open(path, "rb+") as file:
        file.seek(where)
        file.write(bytes(width))
    return path


def test_transparent_regions_are_white(tmp_path: Path) -> None:
    dark = np.full((600, 600, 3), 40, np.uint8)
    path = without_first_tile(write_pyramid(tmp_path / "a.svs", dark, 0.5, (1,)))
    with open_slide(path) as slide:
        pixels, _, _ = slide.read(0, 0, 600, 600, 0)
    assert (pixels[:256, :256] == 255).all()
    assert np.abs(pixels[256:, 256:].astype(int) - 40).max() < JPEG


def test_what_is_no_slide_file_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="is not there, expected a slide file"):
        open_slide(tmp_path / "absent.svs")
    with pytest.raises(SlideError, match="is a folder, expected a slide file"):
        open_slide(tmp_path)
    for content in (b"", b"hello", b"II*\0"):
        (tmp_path / "broken.svs").write_bytes(content)
        with pytest.raises(SlideError, match=r"no format OpenSlide reads|directories cannot be"):
            open_slide(tmp_path / "broken.svs")


def test_a_file_that_may_not_be_read_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader.os, "access", lambda *_: False)
    with pytest.raises(SlideError, match="may not be read by this user"):
        open_slide(path)


def with_damaged_piece(path: Path, index: int = 0) -> Path:
    """The slide, 400 bytes in the middle of one level-0 tile or strip overwritten."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        start, count = page.dataoffsets[index], page.databytecounts[index]
    with open(path, "rb+") as file:
        file.seek(start + count // 2)
        file.write(bytes(400))
    return path


def test_a_damaged_region_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = with_damaged_piece(write_pyramid(tmp_path / "a.svs", smooth_image(600, 600), 0.5, (1,)))
    with open_slide(path) as slide, pytest.raises(SlideError, match=r"region at \(0, 0\), level 0"):
        slide.read(0, 0, 300, 300, 0)


def compressed_tiff(path: Path, image: Pixels) -> Path:
    """One that tifffile reads: striped, so OpenSlide does not."""
    tifffile.imwrite(path, image, photometric="rgb", rowsperstrip=64, compression="zlib")
    return path


WRITERS = {
    "openslide": lambda path, image: write_pyramid(path, image, 0.5, (1, 4), quality=90),
    "tifffile": compressed_tiff,
}


@pytest.mark.parametrize("reader", sorted(WRITERS))
def test_after_a_damaged_region_the_others_are_read_as_before(tmp_path: Path, reader: str) -> None:
    image = smooth_image(600, 600)
    whole = WRITERS[reader](tmp_path / "whole.tif", image)
    broken = with_damaged_piece(WRITERS[reader](tmp_path / "broken.tif", image))
    with open_slide(whole, 0.5) as good, open_slide(broken, 0.5) as bad:
        assert bad.reader == reader
        for _ in range(3):
            with pytest.raises(SlideError, match="cannot be read: "):
                bad.read(0, 0, 100, 100, 0)
            assert (bad.read(300, 300, 200, 200, 0)[0] == good.read(300, 300, 200, 200, 0)[0]).all()


@pytest.mark.parametrize("reader", sorted(WRITERS))
def test_threads_read_what_one_thread_reads_whatever_the_others_meet(
    tmp_path: Path, reader: str
) -> None:
    path = with_damaged_piece(WRITERS[reader](tmp_path / "a.tif", smooth_image(1100, 700)))
    rng = np.random.default_rng(5)
    places = [(int(x), int(y)) for x, y in rng.integers(0, (1000, 600), (160, 2))]
    places[::5] = [(0, 0)] * len(places[::5])  # in the damaged tile or strip

    def attempt(slide: Slide, place: tuple[int, int]) -> Pixels | None:
        try:
            return slide.read(*place, 90, 80, 0)[0]
        except SlideError:
            return None

    with open_slide(path, 0.5) as slide:
        alone = [attempt(slide, place) for place in places]
    with open_slide(path, 0.5) as slide, ThreadPoolExecutor(4) as pool:
        together = list(pool.map(partial(attempt, slide), places))
    failed = [pixels is None for pixels in alone]
    assert 32 <= sum(failed) < 120
    assert [pixels is None for pixels in together] == failed
    for one, other in zip(alone, together, strict=True):
        assert one is None or (one == other).all()


@pytest.mark.parametrize("reader", sorted(WRITERS))
def test_a_slide_that_was_closed_says_so(tmp_path: Path, reader: str) -> None:
    with open_slide(WRITERS[reader](tmp_path / "a.tif", smooth_image(600, 600)), 0.5) as slide:
        pass
    with pytest.raises(SlideError, match=r"a\.tif was closed"):
        slide.read(0, 0, 100, 100, 0)


def test_a_size_that_no_glass_has_is_refused(tmp_path: Path) -> None:
    Image.new("L", (2_000_001, 1)).save(tmp_path / "a.bmp")
    with pytest.raises(SlideError, match=r"is 2000001 x 1 px, expected edges of 1 to 2000000"):
        open_slide(tmp_path / "a.bmp", 0.5)


EXPECTED = json.loads((SLIDES / "expected.json").read_text()) if SLIDES.is_dir() else {}


@needs_slides
@pytest.mark.parametrize("name", sorted(n for n in EXPECTED if not n.startswith("negative/")))
def test_real_slides_have_the_numbers_that_were_recorded(name: str) -> None:
    expected = EXPECTED[name]
    bogus = expected["mpp_x"] > 20
    with open_slide(SLIDES / name, mpp=0.5 if bogus else None) as slide:
        assert list(slide.size) == expected["dimensions"]
        assert [list(size) for size in slide.level_sizes] == expected["level_dimensions"]
        assert np.allclose(slide.downsamples, expected["level_downsamples"], atol=1e-3)
        assert (slide.reader, slide.format) == ("openslide", expected["vendor"])
        assert len(slide.quickhash) == 64
        if not bogus:
            assert slide.mpp_source in ("openslide.mpp-x", "tiff.XResolution")
            assert slide.mpp == pytest.approx(expected["mpp_x"], rel=1e-3)
        pixels, downsample = slide.thumbnail(200)
    assert max(pixels.shape[:2]) == min(200, max(slide.size))
    assert downsample >= 1


@needs_slides
@pytest.mark.parametrize(
    ("name", "match"),
    [
        (
            "CropBreastSlide.tiff",
            r"264.6 microns per pixel \(tiff.XResolution, 96 dpi: of a screen",
        ),
        (
            "multiframe_camelyon_challenge_image.dcm",
            r"states 28.97 x 28.97 microns per pixel \(openslide.mpp-x\)",
        ),
        ("negative/broken.svs", "in no format OpenSlide reads"),
        ("negative/unopenable.tiff", r"compressed in an unknown way \(52479\)"),
    ],
)
def test_real_files_that_cannot_be_trusted_are_refused(name: str, match: str) -> None:
    with pytest.raises(SlideError, match=match):
        open_slide(SLIDES / name)


@needs_slides
def test_a_real_slide_that_opens_but_cannot_be_read_is_refused_on_reading() -> None:
    slide = open_slide(SLIDES / "negative" / "unreadable.svs")
    with slide, pytest.raises(SlideError, match=r"cannot be read: Bogus marker length.*damaged"):
        slide.read(0, 0, 16, 16, 0)


def test_a_slide_that_cannot_be_decoded_anywhere_is_given_up_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_pyramid(tmp_path / "a.svs", np.full((3000, 3000, 3), 200, np.uint8), 0.5, (1,))
    with open_slide(path) as slide:
        tried: list[int] = []

        def torn(*_: object) -> Pixels:
            tried.append(1)
            raise OSError("torn")

        monkeypatch.setattr(slide._handle, "read_region", torn)
        with pytest.raises(SlideError, match="cannot be read: torn"):
            slide.image(1.0)
        assert len(tried) <= 200
        tried.clear()
        with pytest.raises(SlideError, match="cannot be read: torn"):
            slide.image(3000.0)  # of one px
        assert len(tried) == 1


def test_a_damaged_plain_image_is_decoded_once(tmp_path: Path) -> None:
    Image.effect_noise((900, 900), 80).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with open_slide(tmp_path / "cut.png", 0.5) as slide, pytest.raises(SlideError, match="read"):
        slide.thumbnail()
