"""wsizoo.slides.tiff: pyramids that OpenSlide and tifffile read back as they were meant."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsizoo.errors import DataError, ScaleError
from wsizoo.slides.tiff import Pixels, write_pyramid

TOLERANCE = 6
"""Grey levels that JPEG at quality 80 may cost on a smooth image."""


def smooth_image(width: int, height: int) -> Pixels:
    y, x = np.mgrid[:height, :width]
    planes = [x * 200 / width, y * 200 / height, 100 + 50 * (x / width - y / height)]
    return np.rint(np.stack(planes, axis=-1)).astype(np.uint8)


def read_level(path: Path, level: int) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        region = slide.read_region((0, 0), level, slide.level_dimensions[level])
    return np.asarray(region.convert("RGB")).astype(int)


def properties(path: Path) -> dict[str, str]:
    with openslide.OpenSlide(path) as slide:
        return dict(slide.properties)


def test_openslide_reads_vendor_scale_objective_and_levels(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.svs", smooth_image(1024, 768), mpp=0.5)
    found = properties(path)
    assert found["openslide.vendor"] == "aperio"
    assert float(found["openslide.mpp-x"]) == float(found["openslide.mpp-y"]) == 0.5
    assert found["openslide.objective-power"] == "20"
    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == ((1024, 768), (256, 192), (64, 48))
        assert slide.level_downsamples == (1, 4, 16)


def test_every_level_holds_the_box_means_of_the_image(tmp_path: Path) -> None:
    image = smooth_image(1024, 768)
    path = write_pyramid(tmp_path / "a.svs", image, mpp=0.5)
    for level, factor in enumerate((1, 4, 16)):
        blocks = image.reshape(768 // factor, factor, 1024 // factor, factor, 3)
        expected = blocks.mean(axis=(1, 3))
        assert np.abs(read_level(path, level) - expected).max() <= TOLERANCE


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(width=st.integers(5, 90), height=st.integers(5, 90), factor=st.integers(2, 5))
def test_odd_sizes_and_odd_factors_are_read_back(
    tmp_path: Path, width: int, height: int, factor: int
) -> None:
    image = smooth_image(90, 90)[:height, :width]
    path = write_pyramid(tmp_path / "odd.svs", image, 0.5, (1, factor), tile=32, quality=95)
    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == (
            (width, height),
            (width // factor, height // factor),
        )
    assert np.abs(read_level(path, 0) - image).mean() <= TOLERANCE


def test_a_level_may_be_an_image_of_its_own(tmp_path: Path) -> None:
    own = smooth_image(143, 97)
    path = write_pyramid(tmp_path / "a.svs", smooth_image(500, 340), 0.5, (1, own, 10))
    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == ((500, 340), (143, 97), (50, 34))
    assert np.abs(read_level(path, 1) - own).max() <= TOLERANCE


def test_a_function_gives_the_same_file_as_its_array(tmp_path: Path) -> None:
    image = smooth_image(700, 530)
    requests = []

    def region(x: int, y: int, width: int, height: int) -> Pixels:
        requests.append(width * height)
        return image[y : y + height, x : x + width]

    whole = write_pyramid(tmp_path / "whole.svs", image, 0.25, (1, 3, 6, 7), tile=64)
    parts = write_pyramid(
        tmp_path / "parts.svs", region, 0.25, (1, 3, 6, 7), size=(700, 530), tile=64
    )
    assert parts.read_bytes() == whole.read_bytes()
    assert max(requests) <= (64 * 7) ** 2


def test_big_tiff_is_read_like_classic_tiff(tmp_path: Path) -> None:
    image = smooth_image(600, 400)
    classic = write_pyramid(tmp_path / "classic.svs", image, 0.5)
    big = write_pyramid(tmp_path / "big.svs", image, 0.5, big=True)
    with tifffile.TiffFile(classic) as one, tifffile.TiffFile(big) as other:
        assert (one.is_bigtiff, other.is_bigtiff) == (False, True)
    assert properties(big)["openslide.mpp-x"] == "0.5"
    for level in range(3):
        assert np.array_equal(read_level(big, level), read_level(classic, level))


def test_a_small_file_is_classic_tiff(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.svs", smooth_image(64, 64), 0.5, (1,))
    assert path.read_bytes()[:4] == b"II*\0"


def test_tifffile_finds_the_tags(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.svs", smooth_image(700, 500), 0.5, (1, 4))
    with tifffile.TiffFile(path) as file:
        assert file.is_svs
        assert [page.shape for page in file.pages] == [(500, 700, 3), (125, 175, 3)]
        first, second = (page.tags for page in file.pages)
    assert first["Compression"].value == 7
    assert first["YCbCrSubSampling"].value == (2, 2)
    assert len(first["TileOffsets"].value) == 3 * 2
    assert (first["NewSubfileType"].value, second["NewSubfileType"].value) == (0, 1)
    assert (first["XResolution"].value, second["XResolution"].value) == ((20000, 1), (5000, 1))
    assert first["ResolutionUnit"].value == 3


@pytest.mark.parametrize(
    ("description", "resolution", "vendor", "mpp"),
    [
        (True, False, "aperio", 0.5),
        (False, True, "generic-tiff", 0.5),
        (False, False, "generic-tiff", None),
    ],
)
def test_scale_comes_from_either_source_and_is_missing_without_both(
    tmp_path: Path, description: bool, resolution: bool, vendor: str, mpp: float | None
) -> None:
    path = write_pyramid(
        tmp_path / "a.tif",
        smooth_image(300, 300),
        0.5,
        description=description,
        resolution=resolution,
    )
    found = properties(path)
    assert found["openslide.vendor"] == vendor
    assert found["openslide.level-count"] == "3"
    assert found.get("openslide.mpp-x") == (None if mpp is None else str(mpp))


def test_further_properties_can_be_read_from_the_slide(tmp_path: Path) -> None:
    path = write_pyramid(
        tmp_path / "a.svs", smooth_image(64, 64), 0.5, (1,), properties={"Origin": "synthetic"}
    )
    assert properties(path)["aperio.Origin"] == "synthetic"


def test_the_same_image_gives_the_same_bytes(tmp_path: Path) -> None:
    files = [
        write_pyramid(tmp_path / name, smooth_image(300, 200), 0.5, (1, 4)) for name in ("a", "b")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes(b"old")

    def region(x: int, y: int, width: int, height: int) -> Pixels:
        if y:
            raise OSError("the disk is gone")
        return np.zeros((height, width, 3), np.uint8)

    with pytest.raises(OSError, match="the disk is gone"):
        write_pyramid(path, region, 0.5, (1,), size=(300, 600))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_compression_package_is_needed(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['imagecodecs'] = sys.modules['tifffile'] = None\n"
        "import numpy as np; from wsizoo.slides.tiff import write_pyramid\n"
        "write_pyramid(sys.argv[1], np.zeros((40, 50, 3), np.uint8), 0.5, (1, 4))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.svs")], check=True)
    assert read_level(tmp_path / "a.svs", 0).shape == (40, 50, 3)


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_scale_is_refused(tmp_path: Path, mpp: float) -> None:
    with pytest.raises(ScaleError, match=r"mpp is .* expected 0\.01 to 10000"):
        write_pyramid(tmp_path / "a.svs", smooth_image(64, 64), mpp)


def test_impossible_images_levels_and_tiles_are_refused(tmp_path: Path) -> None:
    path, image = tmp_path / "a.svs", smooth_image(64, 48)
    with pytest.raises(DataError, match=r"float64 \(48, 64, 3\); expected uint8"):
        write_pyramid(path, image.astype(float), 0.5)
    with pytest.raises(DataError, match=r"uint8 \(48, 64\); expected uint8 \(H, W, 3\)"):
        write_pyramid(path, image[..., 0], 0.5)
    with pytest.raises(DataError, match="The first level must be the factor 1"):
        write_pyramid(path, image, 0.5, (4, 16))
    with pytest.raises(DataError, match="Level factor 49 does not fit an image of 64 x 48 px"):
        write_pyramid(path, image, 0.5, (1, 49))
    with pytest.raises(DataError, match="tile is 100 px; JPEG in TIFF needs a multiple of 16"):
        write_pyramid(path, image, 0.5, tile=100)
    with pytest.raises(DataError, match=r"needs size=\(width, height\)"):
        write_pyramid(path, lambda x, y, w, h: image, 0.5)
    with pytest.raises(DataError, match=r"size \(64, 48\) was given with an array"):
        write_pyramid(path, image, 0.5, size=(64, 48))
    with pytest.raises(DataError, match=r"region at \(0, 0\); expected uint8 \(20, 30, 3\)"):
        write_pyramid(path, lambda x, y, w, h: image, 0.5, (1,), size=(30, 20))
    assert not list(tmp_path.iterdir())
