"""wsizoo.demo: synthetic slides whose labels are what they claim."""

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
from scipy import ndimage

from wsizoo.demo import cohort
from wsizoo.demo.frame import CELL, CELL_MAP, CELLS, MAP, SIDE, STEP
from wsizoo.demo.noise import enlarge, jittered_grid, smooth_noise
from wsizoo.demo.plan import FOCI, FOCUS_NUCLEI, Plan
from wsizoo.demo.tissue_art import MARGIN, stamp_nuclei
from wsizoo.errors import DataError


@pytest.fixture(scope="module")
def plans() -> list[Plan]:
    """One slide of each combination of labels."""
    return [cohort.plan(index) for index in range(4)]


@pytest.fixture(scope="module")
def drawn() -> cohort.DemoSlide:
    return cohort.draw(3)


def focus_nuclei(plan: Plan) -> np.ndarray:
    lymphocytes = next(nuclei for nuclei in plan.nuclei if nuclei.kind == "lymphocyte")
    return lymphocytes.centres[: FOCI * FOCUS_NUCLEI].reshape(FOCI, FOCUS_NUCLEI, 2)


def foci_flags(plan: Plan) -> np.ndarray:
    flags = np.zeros((CELLS, CELLS), bool)
    flags[plan.foci[:, 1], plan.foci[:, 0]] = True
    return flags


def test_four_slides_in_a_row_have_the_four_combinations_of_labels() -> None:
    assert Counter(cohort.labels(index) for index in range(40)) == {
        (0, 0): 10, (0, 1): 10, (1, 0): 10, (1, 1): 10
    }  # fmt: skip


def test_every_slide_has_20_foci_of_80_nuclei(plans: list[Plan]) -> None:
    for plan in plans:
        assert len(np.unique(plan.foci, axis=0)) == FOCI == 20
        for cell, centres in zip(plan.foci, focus_nuclei(plan), strict=True):
            assert len(np.unique(centres, axis=0)) == FOCUS_NUCLEI == 80
            assert (centres // CELL == cell).all()


def test_no_focus_crosses_the_border_of_its_cell(plans: list[Plan]) -> None:
    for plan in plans:
        centres = focus_nuclei(plan).reshape(-1, 2)
        lymphocytes = next(nuclei for nuclei in plan.nuclei if nuclei.kind == "lymphocyte")
        alone = replace(lymphocytes, centres=centres, angles=lymphocytes.angles[: len(centres)])
        canvas = stamp_nuclei(replace(plan, nuclei=(alone,)), np.random.default_rng(0))
        cells = canvas[MARGIN:-MARGIN, MARGIN:-MARGIN].reshape(CELLS, CELL, CELLS, CELL)
        assert np.array_equal(cells.any(axis=(1, 3)), foci_flags(plan))
        assert not cells[:, [0, -1]].any()
        assert not cells[:, :, :, [0, -1]].any()


def test_the_ground_of_a_focus_stays_in_its_cell_when_enlarged(plans: list[Plan]) -> None:
    plan = plans[2]
    for column, row in plan.foci:
        others = plan.ground.copy()
        own = (
            slice(row * CELL_MAP, (row + 1) * CELL_MAP),
            slice(column * CELL_MAP, (column + 1) * CELL_MAP),
        )
        others[:] = 0
        others[own] = plan.ground[own]
        padded = np.pad(others, CELL_MAP)
        around = padded[
            row * CELL_MAP : (row + 3) * CELL_MAP, column * CELL_MAP : (column + 3) * CELL_MAP
        ]
        large = enlarge(np.pad(around, 1), STEP)
        assert large[CELL:-CELL, CELL:-CELL].max() > 0.9
        large[CELL:-CELL, CELL:-CELL] = 0
        assert not large.any()


def test_foci_are_two_groups_of_ten_or_all_apart(plans: list[Plan]) -> None:
    for plan in plans:
        flags = foci_flags(plan)
        touching_corners = np.ones((3, 3))
        _, apart = ndimage.label(flags, touching_corners)
        edges, groups = ndimage.label(flags)
        if plan.clustered:
            assert apart == groups == 2
            assert np.bincount(edges.ravel())[1:].tolist() == [10, 10]
        else:
            assert apart == FOCI


def test_tumour_is_2_to_6_percent_of_the_tissue_or_absent(plans: list[Plan]) -> None:
    for plan in plans:
        tumour = next(nuclei for nuclei in plan.nuclei if nuclei.kind == "tumour")
        assert bool(len(tumour.centres)) == bool(plan.tumour)
        if plan.tumour:
            assert 0.02 <= plan.tumour_share() <= 0.06
        else:
            assert plan.tumour_share() == 0
        assert plan.tumour_cells().shape == (CELLS, CELLS)
        assert not plan.tumour_cells()[foci_flags(plan)].any()


def test_tumour_cells_add_up_to_the_nests(plans: list[Plan]) -> None:
    plan = plans[1]
    in_cells = plan.tumour_cells().sum() * CELL_MAP**2
    assert in_cells == pytest.approx((plan.nests > 0.5).sum(), rel=1e-5)


@pytest.mark.slow
def test_all_forty_plans_keep_their_promises() -> None:
    for index in range(40):
        plan = cohort.plan(index)
        assert 0.4 < plan.tissue.mean() < 0.6
        assert (focus_nuclei(plan) // CELL == plan.foci[:, None]).all()
        assert 0.02 <= plan.tumour_share() <= 0.06 or not plan.tumour


def test_a_drawn_slide_is_tissue_on_white(drawn: cohort.DemoSlide) -> None:
    assert drawn.name == "demo-03"
    assert (drawn.tumour, drawn.clustered) == (1, 1)
    assert drawn.image.shape == (SIDE, SIDE, 3)
    assert drawn.image.dtype == np.uint8
    small = drawn.image[4::8, 4::8].astype(int)
    tissue = cohort.plan(3).tissue
    red, green, blue = small[tissue > 0.99].mean(axis=0)
    assert red > blue > green
    assert small[tissue == 0].min() > 225


def test_nests_and_foci_are_darker_than_the_tissue_around(drawn: cohort.DemoSlide) -> None:
    plan = cohort.plan(3)
    grey = drawn.image[..., 0].reshape(MAP, STEP, MAP, STEP).mean(axis=(1, 3))
    stroma = (plan.tissue > 0.99) & (plan.nests + plan.ground + plan.epithelium == 0)
    assert grey[plan.nests > 0.5].mean() < grey[stroma].mean() - 30
    assert grey[plan.ground > 0.5].mean() < grey[stroma].mean() - 30
    assert grey[plan.lumen > 0.9].mean() > grey[stroma].mean() + 15


def test_the_same_index_gives_the_same_slide(drawn: cohort.DemoSlide) -> None:
    again = cohort.draw(3)
    assert again.image.tobytes() == drawn.image.tobytes()
    assert np.array_equal(again.tumour_cells, drawn.tumour_cells)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Slides of 320 px instead of 5376; the list tells which were drawn."""
    calls: list[int] = []

    def draw(index: int) -> cohort.DemoSlide:
        calls.append(index)
        image = np.full((320, 320, 3), index, np.uint8)
        share = np.full((CELLS, CELLS), index, np.float32)
        return cohort.DemoSlide(f"demo-{index:02d}", image, *cohort.labels(index), share, 0.0)

    monkeypatch.setattr(cohort, "draw", draw)
    return calls


def read_labels(folder: Path) -> list[dict[str, str]]:
    with open(folder / "labels.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_cohort_is_slides_truth_and_balanced_labels(tmp_path: Path, tiny: list[int]) -> None:
    slides = cohort.write_cohort(tmp_path, 40, workers=1)
    rows = read_labels(tmp_path)
    assert list(rows[0]) == ["slide", "tumour", "clustered", "part"]
    assert [row["slide"] for row in rows] == [f"demo-{index:02d}" for index in range(40)]
    counts = Counter((row["tumour"], row["clustered"], row["part"]) for row in rows)
    assert counts == {
        (tumour, clustered, part): number
        for tumour in "01"
        for clustered in "01"
        for part, number in (("train", 6), ("test", 4))
    }
    for index, slide in enumerate(slides):
        assert np.load(slide.truth)[0, 0] == index
        with openslide.OpenSlide(slide.slide) as opened:
            assert opened.properties["openslide.mpp-x"] == "0.5"
            assert opened.properties["aperio.Origin"] == "synthetic"


@pytest.mark.parametrize(
    ("count", "train", "test"), [(4, 4, 0), (8, 4, 4), (12, 8, 4), (20, 12, 8)]
)
def test_smaller_cohorts_stay_balanced(
    tmp_path: Path, tiny: list[int], count: int, train: int, test: int
) -> None:
    slides = cohort.write_cohort(tmp_path, count, workers=1)
    parts = Counter(slide.part for slide in slides)
    assert (parts["train"], parts["test"]) == (train, test)
    for part in parts:
        labels = Counter((s.tumour, s.clustered) for s in slides if s.part == part)
        assert len(labels) == 4
        assert len(set(labels.values())) == 1


def test_an_interrupted_run_resumes_where_it_stopped(tmp_path: Path, tiny: list[int]) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cohort.write_cohort(tmp_path, 8, workers=1, progress=interrupt)
    assert not (tmp_path / "labels.csv").exists()
    seen: list[tuple[int, int]] = []
    cohort.write_cohort(tmp_path, 8, workers=1, progress=lambda *now: seen.append(now))
    assert tiny == list(range(8))
    assert seen == [(done, 8) for done in range(3, 9)]
    assert len(read_labels(tmp_path)) == 8


def test_slides_without_truth_damaged_or_of_another_recipe_are_drawn_again(
    tmp_path: Path, tiny: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = cohort.write_cohort(tmp_path, 4, workers=1)
    slides[0].truth.unlink()
    slides[2].slide.write_bytes(b"not a slide")
    tiny.clear()
    cohort.write_cohort(tmp_path, 4, workers=1)
    assert tiny == [0, 2]
    tiny.clear()
    monkeypatch.setattr(cohort, "RECIPE", "next")
    cohort.write_cohort(tmp_path, 4, workers=1)
    assert tiny == [0, 1, 2, 3]


def test_a_cohort_that_cannot_be_balanced_is_refused(tmp_path: Path) -> None:
    for count in (0, -4, 10):
        with pytest.raises(DataError, match=f"cohort of {count} slides cannot be balanced"):
            cohort.write_cohort(tmp_path, count)


@pytest.mark.slow
def test_worker_processes_write_what_one_process_draws(tmp_path: Path) -> None:
    slides = cohort.write_cohort(tmp_path, 4, workers=2)
    for index, slide in enumerate(slides):
        expected = cohort.draw(index)
        assert np.array_equal(np.load(slide.truth), expected.tumour_cells)
        with openslide.OpenSlide(slide.slide) as opened:
            assert opened.level_dimensions == ((5376, 5376), (1344, 1344), (336, 336))
            region = np.asarray(opened.read_region((2240, 2240), 0, (896, 896)).convert("RGB"))
        original = expected.image[2240:3136, 2240:3136]
        assert np.abs(region.astype(int) - original).mean() < 5
    assert not list(tmp_path.rglob("*.tmp-*"))


def test_noise_has_mean_0_and_variance_1_and_wraps_around() -> None:
    field = smooth_noise(np.random.default_rng(0), 256, 6)
    assert abs(field.mean()) < 1e-4
    assert field.std() == pytest.approx(1, abs=1e-4)
    assert np.abs(field[0] - field[-1]).max() < 1


def test_enlarging_is_bilinear() -> None:
    field = np.random.default_rng(0).random((7, 9)).astype(np.float32)
    y, x = np.meshgrid(
        (np.arange(40) + 0.5) / 8 + 0.5, (np.arange(56) + 0.5) / 8 + 0.5, indexing="ij"
    )
    expected = ndimage.map_coordinates(field, [y, x], order=1)
    assert np.allclose(enlarge(field, 8), expected, atol=1e-6)


def test_grid_points_stay_within_their_jitter() -> None:
    points = jittered_grid(np.random.default_rng(0), 5, 10, 2)
    middle = (points // 10 + 0.5) * 10
    assert np.abs(points - middle).max() <= 2
    assert len(np.unique(middle, axis=0)) == 25
