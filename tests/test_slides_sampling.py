"""wsizoo.slides.sampling: patches have the um/px that their certificate states, by a ruler."""

import json
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from scipy.optimize import minimize_scalar

from wsizoo.slides.patches import PatchGrid, certify, read_batches
from wsizoo.slides.reader import Pixels, Slide, open_slide
from wsizoo.slides.sampling import Sampling, level_for_patches
from wsizoo.slides.tiff import Region, write_pyramid

PERIOD = 32.0
"""Level-0 px from one line of the ruler to the next."""
MPPS = [0.2277, 0.265, 0.301, 0.499]
PYRAMIDS = {  # downsample as OpenSlide states it: sizes of the levels, and the scanner's own factor
    1.9999: ((9999, 1200), (5000, 600), 2),
    3.9998: ((9999, 1200), (2500, 300), 4),
    4.0001: ((20001, 1200), (5000, 300), 4),
}
REQUESTS = [(0.5, 224, 0.0), (1.0, 256, 0.25), (0.25, 224, 0.1), (2.0, 112, 0.0)]
"""um/px, px and overlap of patches."""
WITHIN = 3e-4  # of the certificate; the worst patch is off by 1.6e-4


def ruler(factor: float) -> Region:
    """A level whose px are `factor` level-0 px: lines across x, a cosine, which no filter moves."""

    def read(x: int, y: int, width: int, height: int) -> Pixels:
        centres = (np.arange(x, x + width) + 0.5) * factor
        line = np.rint(128 + 100 * np.cos(centres * 2 * np.pi / PERIOD)).astype(np.uint8)
        return np.broadcast_to(line[None, :, None], (height, width, 3))

    return read


def write_ruler(
    path: Path, sizes: list[tuple[int, int]], factors: list[float], turned: bool = False
) -> Path:
    """A slide whose levels have these sizes, each showing the ruler at its own scale."""

    def turn(read: Region) -> Region:
        return lambda x, y, w, h: read(y, x, h, w).swapaxes(0, 1)

    reads = [turn(ruler(factor)) if turned else ruler(factor) for factor in factors]
    sizes = [size[::-1] if turned else size for size in sizes]
    levels = [read(0, 0, *size) for read, size in zip(reads[1:], sizes[1:], strict=True)]
    return write_pyramid(path, reads[0], 0.25, (1, *levels), size=sizes[0], quality=92)


def measure(patch: Pixels, axis: int, about: float) -> tuple[float, float]:
    """px of a patch from one line of the ruler to the next, and where one lies.

    Args:
        about: px, within 10 %; another period leaves more than is believed to be noise.
    """
    profile = patch.astype(float).mean(axis=(axis, 2))[3:-3]
    x = np.arange(3, 3 + len(profile)) + 0.5

    def fit(period: float) -> tuple[float, np.ndarray]:
        waves = np.stack([np.ones_like(x), *(f(x * 2 * np.pi / period) for f in (np.cos, np.sin))])
        found, *_ = np.linalg.lstsq(waves.T, profile, rcond=None)
        return float(((profile - found @ waves) ** 2).mean()), found

    near = min(about * np.linspace(0.9, 1.1, 81), key=lambda period: fit(period)[0])
    bounds = (near - 0.005 * about, near + 0.005 * about)
    best = minimize_scalar(
        lambda period: fit(period)[0], bounds=bounds, method="bounded", options={"xatol": 1e-7}
    )
    noise, (_, cosine, sine) = fit(best.x)
    strength = cosine**2 + sine**2
    assert noise < 0.02 * strength, "there is no such ruler"
    assert strength > 40**2, "nor any other"
    return best.x, np.arctan2(sine, cosine) * best.x / (2 * np.pi)


def corner_cells(grid: PatchGrid) -> np.ndarray:
    """First, middle and last column and row."""
    columns, rows = ({0, n // 2, n - 1} for n in (grid.columns, grid.rows))
    return np.array([[i, j] for j in sorted(rows) for i in sorted(columns)])


def check_with_ruler(slide: Slide, grid: PatchGrid, axis: int, true_mpp: float) -> float:
    """Every patch has the um/px of the certificate, and lies where the grid says; the worst."""
    certificate = certify(slide, grid)
    across = grid.footprint / grid.patch_size  # level-0 px per px
    cells, errors = corner_cells(grid), []
    (batch,) = read_batches(slide, grid, cells, len(cells))
    for corner, patch in zip(grid.corners(cells)[:, axis], batch.pixels, strict=True):
        period, line = measure(patch, axis, PERIOD / across)
        realised = PERIOD / period * true_mpp
        assert realised == pytest.approx(certificate.realised_mpp, rel=WITHIN)
        off = (corner + line * across) / PERIOD
        assert abs(off - round(off)) * PERIOD < max(1.0, across)
        errors.append(abs(realised / grid.mpp - 1))
    return max(errors)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float, bool], Path]:
    """The slide of a downsample, its ruler along its long axis, which is x, or y."""
    folder = tmp_path_factory.mktemp("rulers")

    def find(downsample: float, turned: bool) -> Path:
        path = folder / f"{downsample}-{turned}.svs"
        if not path.exists():
            *sizes, factor = PYRAMIDS[downsample]
            write_ruler(path, sizes, [1, factor], turned)
        return path

    return find


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("downsample", PYRAMIDS)
@pytest.mark.parametrize("mpp", MPPS)
def test_the_ruler_measures_what_the_certificate_states(
    pyramid: Callable[[float, bool], Path], mpp: float, downsample: float, turned: bool
) -> None:
    with open_slide(pyramid(downsample, turned), mpp) as slide:
        assert slide.downsamples[1] == pytest.approx(downsample, abs=2e-6)
        for patch_mpp, size, overlap in REQUESTS:
            grid = PatchGrid.of(slide, patch_mpp, size, overlap)
            certificate = certify(slide, grid)
            assert certificate.holds
            assert certificate.level == int(grid.footprint / size >= downsample)
            assert certificate.resampled
            assert check_with_ruler(slide, grid, int(turned), mpp) < 1e-3


@pytest.mark.parametrize("factor", [9999 / 2500, 4])
def test_the_certificate_holds_whether_a_level_was_stretched_or_cut(
    tmp_path: Path, factor: float
) -> None:
    path = write_ruler(tmp_path / "a.svs", [(9999, 1200), (2500, 300)], [1, factor])
    with open_slide(path) as slide:
        grid = PatchGrid.of(slide, 1.1, 224)
        assert certify(slide, grid).level == 1
        assert certify(slide, grid).error > 4e-5  # the two differ by 1e-4
        assert check_with_ruler(slide, grid, 0, 0.25) < 1e-3


def test_a_level_whose_size_disagrees_with_its_downsample_is_not_used(tmp_path: Path) -> None:
    sizes = [(4000, 1600), (2000, 800), (1000, 380), (250, 100)]  # (1000, 400) would be right
    path = write_ruler(tmp_path / "a.svs", sizes, [1, 2, 4, 16])
    with open_slide(path) as slide:
        assert slide.downsamples[2] == pytest.approx(4.105, abs=1e-3)
        for mpp, level in ((0.5, 1), (1.1, 1), (3.9, 1), (4.1, 3)):
            grid = PatchGrid.of(slide, mpp, 64)
            certificate = certify(slide, grid)
            assert certificate.level == level
            assert certificate.error < 1e-9
            if mpp < 4:  # above, a line of the ruler is half a px
                assert check_with_ruler(slide, grid, 0, 0.25) < WITHIN


@pytest.mark.parametrize(
    ("size", "level_size", "used"),
    [
        ((1096, 696), (137, 87), True),  # an eighth
        ((1100, 700), (137, 87), False),  # an eighth, cut; or 8.029 x 8.046
        ((11000, 7001), (1375, 875), True),  # the same, where the rounding matters little
        ((1000, 1000), (250, 250), True),
        ((1000, 1000), (251, 251), False),  # 3.984, or 4 rounded up twice over
        ((1000, 1000), (240, 240), True),  # 4.1667 in both: of no whole factor, but sure
    ],
)
def test_a_level_is_used_where_its_size_leaves_its_scale_certain(
    size: tuple[int, int], level_size: tuple[int, int], used: bool
) -> None:
    slide: Any = FakeSlide(0.25, size, level_size)
    assert level_for_patches(slide, 10.0) == int(used)


class FakeSlide:
    """What a certificate asks of a slide of two levels."""

    path = Path("fake.svs")

    def __init__(self, mpp: float, size: tuple[int, int], level_size: tuple[int, int]) -> None:
        self.mpp, self.mpp_xy, self.size = mpp, (mpp, mpp), size
        self.level_sizes = (size, level_size)
        ratios = np.divide(size, level_size)
        self.downsamples = (1.0, float(ratios.mean()))  # as OpenSlide computes it


def test_pixels_that_are_not_square_are_in_the_certificate(tmp_path: Path) -> None:
    per_cm = tuple((round(1e4 / mpp * 100), 100) for mpp in (0.500, 0.504))
    for axis in (0, 1):
        path = tmp_path / f"{axis}.tif"
        image = ruler(1)(0, 0, 1024, 1024).copy()
        image = image.swapaxes(0, 1).copy() if axis else image
        tifffile.imwrite(
            path, image, tile=(256, 256), photometric="rgb", resolution=per_cm,
            resolutionunit="CENTIMETER",
        )  # fmt: skip
        with open_slide(path) as slide:
            grid = PatchGrid.of(slide, 0.5, 224)
            certificate = certify(slide, grid)
            assert certificate.realised_mpp == pytest.approx(0.5 * 0.504 / 0.502, rel=1e-5)
            assert certificate.error == pytest.approx(0.004, rel=1e-2)
            assert not certificate.holds
            (batch,) = read_batches(slide, grid, corner_cells(grid), 99)
            (period, _), mpp = measure(batch.pixels[0], axis, 32), (0.500, 0.504)[axis]
        assert PERIOD / period * mpp == pytest.approx(0.5 * mpp / 0.502, rel=WITHIN)


def test_a_patch_taken_as_it_is_has_no_error(tmp_path: Path) -> None:
    path = write_ruler(tmp_path / "a.svs", [(4096, 1024), (1024, 256)], [1, 4])
    with open_slide(path) as slide:
        for mpp, level in ((0.25, 0), (1.0, 1)):
            certificate = certify(slide, PatchGrid.of(slide, mpp, 100, overlap=0.3))
            assert asdict(certificate) == {
                "asked_mpp": mpp, "realised_mpp": mpp, "error": 0.0, "level": level,
                "downsample": 4.0**level, "resampled": False,
            }  # fmt: skip
            assert json.loads(json.dumps(asdict(certificate))) == asdict(certificate)


def test_the_last_patches_of_a_level_that_was_cut_short_consist_of_its_own_pixels() -> None:
    slide: Any = FakeSlide(0.25, (4003, 4003), (1000, 1000))
    slide.downsamples = (1.0, 4.0)  # as stated by formats that state it
    for overlap in np.linspace(0, 0.9, 100):
        grid = PatchGrid.of(slide, 1.0, 200, overlap)
        sampling, last = Sampling.of(slide, grid), grid.all_cells()[-1:]
        assert (sampling.level, sampling.as_is) == (1, True)
        (corner,) = sampling.corners(grid, last) / 4  # px of the level
        assert (corner == np.rint(corner)).all()
        assert (corner + 200 <= 1000).all()
        assert (np.abs(corner - grid.corners(last)[0] / 4) <= 0.75).all()


def certificate_table() -> str:
    """For the manual: patches of 256 px at 1 um/px, from every slide of these tests."""
    lines = [
        "| slide, um/px | its second level | read from level | patches, um/px | error |",
        "|---|---|---|---|---|",
    ]
    for mpp, (downsample, (size, level_size, _)) in product(MPPS, PYRAMIDS.items()):
        slide: Any = FakeSlide(mpp, size, level_size)
        found = certify(slide, PatchGrid.of(slide, 1.0, 256))
        lines.append(
            f"| {mpp} | {downsample} | {found.level} | {found.realised_mpp:.5f} "
            f"| {found.error * 100:.4f} % |"
        )
    return "\n".join(lines)


def test_the_manual_shows_the_certificates_of_these_slides() -> None:
    manual = Path(__file__).parents[1] / "docs" / "slides.md"
    table = certificate_table()
    assert table in manual.read_text(encoding="utf-8"), f"docs/slides.md should show:\n{table}"
