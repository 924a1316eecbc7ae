"""wsizoo.formats.regrid: no patch is lost, nothing moves that need not, and it is said what did."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsizoo.errors import DataError
from wsizoo.formats.regrid import Floats, Grid, estimate_step, fit, settle


def block(width: int, height: int, step: float, x: float = 0, y: float = 0) -> Floats:
    """Corners of width x height patches that begin at (x, y)."""
    cells = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2)
    return cells * step + [x, y]


def regrid(coords: Floats, rule: Any = "error", steps: tuple[float, ...] = ()) -> Grid:
    return settle(fit(coords, steps), coords, rule, "'a.h5'")


def assert_bag_agrees(grid: Grid) -> None:
    """`Bag.grid()` of what comes out are the cells."""
    assert grid.report.spacing is not None
    assert np.array_equal(np.rint(grid.coords / grid.report.spacing), grid.cells)


steps = st.one_of(st.integers(32, 2048).map(float), st.floats(32, 2048))
contours = st.lists(
    st.tuples(st.integers(2, 8), st.integers(2, 8), st.integers(0, 9000), st.integers(0, 9000)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=100, deadline=None)
@given(step=steps, width=st.integers(2, 40), height=st.integers(1, 40), seed=st.integers(0, 99))
def test_coords_on_a_grid_come_back_unchanged(
    step: float, width: int, height: int, seed: int
) -> None:
    every = np.rint(block(width, height, step))
    kept = np.random.default_rng(seed).permutation(len(every))[: max(2, len(every) // 2)]
    grid = regrid(every[kept], steps=(step,))
    assert np.array_equal(grid.coords, every[kept])
    assert (grid.report.moved, grid.report.collisions, grid.report.lost) == (0, 0, 0)
    assert grid.report.on_grid
    assert_bag_agrees(grid)


@settings(max_examples=100, deadline=None)
@given(step=st.integers(64, 1024), parts=contours)
@example(step=64, parts=[(2, 2, 0, 0), (2, 2, 0, 104), (2, 2, 0, 280)])
def test_contours_with_origins_of_their_own_lose_no_patch(
    step: int, parts: list[tuple[int, int, int, int]]
) -> None:
    coords = np.concatenate([block(w, h, step, x, y) for w, h, x, y in parts])
    grid = regrid(coords, "nearest", (float(step),))
    assert len(grid.coords) == len(np.unique(grid.cells, axis=0)) == len(coords)
    assert grid.coords.min() >= 0
    assert_bag_agrees(grid)
    far = np.hypot(*(grid.coords - coords).T)
    assert grid.report.max_px <= far.max() + 1e-9
    assert grid.report.moved == (np.abs(grid.coords - coords) > 1).any(1).sum()


@settings(max_examples=100, deadline=None)
@given(step=st.integers(64, 1024), parts=contours, seed=st.integers(0, 99))
def test_the_order_of_rows_does_not_matter(
    step: int, parts: list[tuple[int, int, int, int]], seed: int
) -> None:
    coords = np.concatenate([block(w, h, step, x, y) for w, h, x, y in parts])
    coords = np.unique(coords, axis=0)
    order = np.random.default_rng(seed).permutation(len(coords))
    one, other = regrid(coords, "nearest"), regrid(coords[order], "nearest")
    assert np.array_equal(one.coords[order], other.coords)
    assert one.report.told() == other.report.told()


@settings(max_examples=60, deadline=None)
@given(
    step=st.floats(40, 1500), origin=st.floats(0, 3000), width=st.integers(3, 60),
    height=st.integers(3, 60),
)  # fmt: skip
def test_a_grid_that_begins_anywhere_is_found_from_coords_alone(
    step: float, origin: float, width: int, height: int
) -> None:
    coords = np.rint(block(width, height, step, origin, origin / 2))
    grid = regrid(coords)
    error = 2 / (max(width, height) - 1)  # corners are rounded
    assert grid.report.spacing == pytest.approx(step, abs=error)
    assert len(np.unique(grid.cells, axis=0)) == len(coords)
    assert grid.report.max_px < 5  # half a cell off (0, 0): pushed so far that rounding is safe
    assert_bag_agrees(grid)


def test_an_origin_half_a_cell_off_is_pushed_aside_where_rounding_would_merge_cells() -> None:
    coords = block(6, 6, 256, 128, 128)
    assert len(np.unique(np.rint(coords / 256), axis=0)) < len(coords)
    grid = regrid(coords)
    assert len(np.unique(grid.cells, axis=0)) == 36
    assert grid.report.max_px < 4
    assert_bag_agrees(grid)


def test_a_truncated_footprint_does_not_drift() -> None:
    coords = np.rint(block(300, 3, 491.87))
    grid = regrid(coords, steps=(491.0,))
    assert grid.report.spacing == pytest.approx(491.87, abs=1e-3)
    assert np.array_equal(grid.coords, coords)
    whole = regrid(block(300, 3, 491), steps=(491.87,))
    assert whole.report.spacing == 491.0
    assert whole.report.moved == 0


def test_overlapping_patches_have_the_step_of_their_neighbours_not_their_edge() -> None:
    grid = regrid(block(20, 20, 128), steps=(256.0,))
    assert (grid.report.spacing, grid.report.moved) == (128.0, 0)


def test_the_largest_grid_wins_and_the_rest_is_moved_to_it() -> None:
    coords = np.concatenate([block(20, 20, 256), block(2, 2, 256, 10_070, 80)])
    report = regrid(coords).report
    assert (report.moved, report.collisions) == (4, 0)
    assert report.max_px == pytest.approx(np.hypot(86, 80))
    assert report.mean_px == pytest.approx(report.max_px)
    assert report.max_patches == pytest.approx(report.max_px / 256)
    assert not report.on_grid
    assert report.told() == (
        "4 of 404 patches moved onto the grid, 117.5 px in the mean, 117.5 at most (0.46 patches)"
    )


def two_in_a_cell() -> Floats:
    """A 3 x 3 block, and one patch 20 px off its middle one."""
    return np.concatenate([block(3, 3, 100), [[120.0, 100.0]]])


def test_a_collision_is_an_error_that_names_the_first_and_the_choices() -> None:
    with pytest.raises(
        DataError,
        match=r"'a.h5': 1 of 10 patches share a cell.*first patches 4 and 9 at \(100, 100\) and "
        r"\(120, 100\).*nearest.*mean.*first",
    ):
        regrid(two_in_a_cell())


def test_nearest_moves_the_one_farther_off_to_the_next_free_cell() -> None:
    coords = two_in_a_cell()
    grid = regrid(coords, "nearest")
    assert np.array_equal(grid.coords[:9], coords[:9])
    assert grid.coords[9].tolist() == [300, 100]  # the nearest of those that are free
    assert (grid.report.collisions, grid.report.lost, grid.report.rule) == (1, 0, "nearest")
    assert grid.report.told().endswith("1 collided (nearest)")


def test_first_and_mean_keep_one_row_a_cell() -> None:
    coords = np.concatenate([two_in_a_cell(), [[200.0, 100.0]]])
    for rule in ("first", "mean"):
        grid = regrid(coords, rule)
        assert grid.rows.tolist() == list(range(9))
        assert grid.groups.tolist() == [*range(9), 4, 5]
        assert (grid.report.collisions, grid.report.lost) == (2, 2)


def test_nearest_gives_up_where_patches_lie_on_each_other() -> None:
    coords = np.tile([[5000.0, 5000.0]], (5000, 1))
    coords = np.concatenate([coords, block(3, 1, 10)])
    with pytest.raises(DataError, match=r"no free cell within 32 of patch.*mean or first"):
        regrid(coords, "nearest")


def test_coords_that_are_no_px_are_refused() -> None:
    with pytest.raises(DataError, match=r"coordinates are 0\.1 apart, expected level-0 px"):
        fit(block(10, 1, 0.1), (0.1,))


def test_one_patch_has_the_step_it_is_said_to_have_or_none() -> None:
    one = np.array([[512.0, 256.0]])
    assert regrid(one, steps=(256.0,)).report.spacing == 256.0
    grid = regrid(one)
    assert grid.report.spacing is None
    assert not grid.report.on_grid
    assert grid.coords.tolist() == [[512, 256]]
    assert estimate_step(np.zeros((3, 2))) is None


def test_50_000_patches_are_parted() -> None:
    rng = np.random.default_rng(0)
    coords = block(250, 200, 491.87)[rng.permutation(50_000)]
    coords[:2000] += rng.integers(0, 491, (2000, 2))
    grid = regrid(np.rint(coords), "nearest")
    assert len(np.unique(grid.cells, axis=0)) == 50_000
