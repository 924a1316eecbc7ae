import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.augment import half_filled_box, plain_augment, plain_snap
from wsizoo.augment import CoordinateAugmentation, augment_cells, snap
from wsizoo.bag import Bag
from wsizoo.errors import BagError, DataError
from wsizoo.testing import parity_cases

ALWAYS = CoordinateAugmentation(mirror=1, shear=1, rotate=1)


def turned(degrees: float, scale: float = 1.0) -> Tensor:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return scale * torch.tensor([[cos, -sin], [sin, cos]])


def slide(n: int = 60, **fields: Any) -> Bag:
    cells = half_filled_box(n)
    return Bag(torch.arange(float(n))[:, None], cells * 256 + 512, spacing=256.0, **fields)


def cells_of(bag: Bag) -> list[list[int]]:
    found: list[list[int]] = bag.grid().tolist()
    return found


# Coarse positions tie in their distances, and several fall on one cell.
POSITIONS = st.one_of(
    st.floats(0, 6, width=32), st.integers(0, 24).map(lambda quarters: quarters / 4)
)


@settings(deadline=None)
@given(st.lists(st.tuples(POSITIONS, POSITIONS), min_size=1, max_size=60))
def test_points_are_snapped_as_by_a_plain_loop(points: list[tuple[float, float]]) -> None:
    given_points = torch.tensor(points)
    assert torch.equal(snap(given_points), plain_snap(given_points))


@settings(max_examples=40, deadline=None)
@given(
    st.sets(st.tuples(st.integers(0, 15), st.integers(0, 15)), min_size=1, max_size=150),
    st.floats(-180, 180),
    st.floats(0.2, 1.2),
    st.floats(-0.3, 0.3),
)
def test_cells_are_moved_as_by_a_plain_loop(
    cells: set[tuple[int, int]], degrees: float, scale: float, shear: float
) -> None:
    given_cells = torch.tensor(sorted(cells))
    given_cells -= given_cells.amin(0)
    matrix = turned(degrees, scale) @ torch.tensor([[1, shear], [0, 1]])
    moved = augment_cells(given_cells, matrix)
    assert torch.equal(moved, plain_augment(given_cells, matrix))
    assert len(moved.unique(dim=0)) == len(given_cells)


def test_where_no_cell_is_free_within_ten_the_search_goes_on_further_out() -> None:
    crowd = torch.full((500, 2), 30.25)
    placed = snap(crowd)
    assert len(placed.unique(dim=0)) == 500
    assert placed.max() >= 22  # more than 21 x 21 cells
    assert torch.equal(placed, plain_snap(crowd))


@pytest.mark.parametrize("spread", [1, 70_000])
def test_far_islands_and_grids_beyond_int16_keep_their_shape(spread: int) -> None:
    cells = torch.tensor([[0, 0], [0, 1], [1, 0], [spread + 5, 3 * spread + 5]])
    mirrored = augment_cells(cells, torch.tensor([[-1.0, 0], [0, 1]]))
    assert mirrored.tolist() == [[spread + 5 - a, b] for a, b in cells.tolist()]


def test_a_quarter_turn_there_and_back_changes_nothing() -> None:
    cells = half_filled_box(200)
    cells -= cells.amin(0)
    again = augment_cells(augment_cells(cells, turned(90).round()), turned(-90).round())
    assert torch.equal(again, cells)


def test_no_cells_and_one_cell_are_right_answers() -> None:
    assert augment_cells(torch.empty(0, 2, dtype=torch.int64), turned(20)).shape == (0, 2)
    assert augment_cells(torch.tensor([[7, 9]]), turned(20)).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("cells", "matrix", "message"),
    [
        (torch.zeros(3, 2), turned(0), r"cells are \(3, 2\) torch.float32, expected \(N, 2\) int"),
        (torch.zeros(3).long(), turned(0), r"cells are \(3,\) torch.int64"),
        (torch.zeros(3, 2).long(), torch.eye(3), "expected 2 x 2 finite numbers"),
        (torch.zeros(3, 2).long(), turned(0, math.nan), r"the matrix is .*nan"),
        (torch.tensor([[0, 0], [2**24, 0]]), turned(0), r"reach 1\.67772e\+07, expected less th"),
    ],
)
def test_what_cannot_be_moved_is_named(cells: Tensor, matrix: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        augment_cells(cells, matrix)


def test_points_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="positions reach nan, expected less than 8388608 cells"):
        snap(torch.tensor([[0.0, math.nan]]))


def test_an_augmented_slide_keeps_its_rows_and_its_scale() -> None:
    bag = slide(mpp=0.5, target={"instances": torch.arange(60)})
    moved = ALWAYS(bag, 3)
    assert torch.equal(moved.features, bag.features)
    assert (moved.spacing, moved.footprint, moved.mpp) == (256.0, 256.0, 0.5)
    assert moved.coords is not None and moved.coords.dtype == torch.int64
    assert moved.target is bag.target
    expected = augment_cells(bag.grid(), ALWAYS.matrix(torch.Generator().manual_seed(3)))
    assert cells_of(moved) == expected.tolist()
    assert torch.equal(moved.coords, expected * 256)


def test_a_spacing_that_is_no_whole_number_gives_the_same_cells() -> None:
    cells = half_filled_box(50)
    bag = Bag(torch.zeros(50, 1), (cells * 223.7).round().long(), spacing=223.7)
    assert cells_of(ALWAYS(bag, 5)) == cells_of(
        ALWAYS(bag.replace(coords=cells * 224, spacing=224.0), 5)
    )


def test_the_same_seed_gives_the_same_slide_and_leaves_the_global_state() -> None:
    bag, state = slide(), torch.get_rng_state()
    generator = torch.Generator().manual_seed(11)
    one, two, three = ALWAYS(bag, 11), ALWAYS(bag, generator), ALWAYS(bag, generator)
    assert cells_of(one) == cells_of(two) != cells_of(three)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(11)
    assert cells_of(ALWAYS(bag)) == cells_of(one)


def test_probabilities_of_zero_change_nothing_and_draw_nothing() -> None:
    never = CoordinateAugmentation(mirror=0, shear=0, rotate=0)
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert torch.equal(never.matrix(generator), torch.eye(2))
    assert torch.equal(generator.get_state(), state)


def test_each_kind_happens_as_often_as_its_probability_says() -> None:
    generator = torch.Generator().manual_seed(0)
    for progress, share in ((0.0, 0.75), (1.0, 0.15)):
        turns = [
            CoordinateAugmentation(mirror=0, shear=0).matrix(generator, progress)
            for _ in range(2000)
        ]
        turned_at_all = sum(not torch.equal(turn, torch.eye(2)) for turn in turns) / 2000
        assert turned_at_all == pytest.approx(share, abs=0.04)


def test_matrices_are_mirrors_shears_and_turns_within_their_limits() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        mirror = CoordinateAugmentation(1, 0, 0).matrix(generator)
        assert torch.equal(mirror.abs(), torch.eye(2))
        shear = CoordinateAugmentation(0, 1, 0).matrix(generator) - torch.eye(2)
        assert (shear != 0).sum() == 1 and shear.abs().max() <= math.tan(math.radians(10))
        turn = CoordinateAugmentation(0, 0, 1).matrix(generator)
        degrees = math.degrees(math.atan2(turn[1, 0], turn[0, 0])) % 90
        assert min(degrees, 90 - degrees) <= 30 + 1e-4
        quarter = CoordinateAugmentation(0, 0, 1, quarter_turns=True).matrix(generator)
        assert quarter.abs().sum() == 2 and torch.det(quarter) == 1


@pytest.mark.parametrize(("decay", "half"), [("cosine", 0.6), ("linear", 0.6)])
def test_the_factor_goes_from_one_to_its_end(decay: Any, half: float) -> None:
    augmentation = CoordinateAugmentation(decay=decay)
    found = [augmentation.factor(progress) for progress in (0, 0.5, 1)]
    assert found == pytest.approx([1, half, 0.2])
    slow = augmentation.factor(0.1)
    assert slow == pytest.approx(
        0.92 if decay == "linear" else 0.2 + 0.4 * (1 + math.cos(0.1 * math.pi))
    )


def test_dropped_patches_take_their_features_and_targets_along() -> None:
    bag = slide(400, target={"label": 1, "instances": torch.arange(400)})
    found = CoordinateAugmentation(drop=0.3)(bag, 0)
    assert 240 < len(found) < 320
    assert found.target is not None and found.target["label"] == 1
    assert found.features[:, 0].tolist() == found.target["instances"].tolist()


def test_one_patch_always_stays() -> None:
    assert len(CoordinateAugmentation(drop=1.0)(slide(50), 0)) == 1


def test_the_slides_of_a_patient_keep_their_bounds() -> None:
    both = Bag.concat([slide(40), slide(30)])
    assert ALWAYS(both, 0).parts is both.parts
    dropped = CoordinateAugmentation(drop=0.5)(both, 0)
    assert dropped.parts is not None
    start, middle, stop = dropped.parts.tolist()
    of_second = torch.tensor([False] * 40 + [True] * 30)[
        torch.isin(torch.arange(70), _rows(both, dropped))
    ]
    assert (start, stop, middle) == (0, len(dropped), int((~of_second).sum()))


def _rows(whole: Bag, some: Bag) -> Tensor:
    """Which rows stayed; features are 0 to 39, then 0 to 29."""
    left = some.features[:, 0].tolist()
    rows, row = [], 0
    for value in left:
        while float(whole.features[row, 0]) != value:
            row += 1
        rows.append(row)
        row += 1
    return torch.tensor(rows)


def test_an_empty_slide_stays_empty() -> None:
    empty = Bag(torch.zeros(0, 3), torch.zeros(0, 2).long(), spacing=1.0)
    assert len(CoordinateAugmentation(drop=0.5)(empty, 0)) == 0


def test_slides_without_a_grid_or_with_shared_cells_are_refused() -> None:
    with pytest.raises(BagError, match="bag has no coords, so no grid"):
        ALWAYS(Bag(torch.zeros(3, 1)), 0)
    with pytest.raises(BagError, match="1 patches share a grid cell with another"):
        ALWAYS(Bag(torch.zeros(2, 1), torch.zeros(2, 2).long(), spacing=1.0), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mirror": 1.5}, r"mirror is 1\.5, expected a number in \[0, 1\]"),
        ({"drop": -0.1}, r"drop is -0\.1, expected a number"),
        ({"end": math.nan}, "end is nan"),
        ({"shear_degrees": 90}, "shear_degrees is 90, expected 0 to 89 degrees"),
        ({"rotate_degrees": -1}, "rotate_degrees is -1, expected 0 to 360 degrees"),
        ({"decay": "step"}, "decay is 'step', expected 'cosine' or 'linear'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        CoordinateAugmentation(**options)


def test_progress_is_a_share() -> None:
    with pytest.raises(DataError, match="progress is 3, expected the share that is done, 0 to 1"):
        ALWAYS.factor(3)


CASES = {case.name: case for case in parity_cases("span") if case.name.startswith("op_")}
NO_CASES = pytest.mark.skipif("op_aug_random" not in CASES, reason="no parity cases of SPAN here")
KINDS = {
    "mirror_p0.75": (CoordinateAugmentation(shear=0, rotate=0), 0.0),
    "mirror_p0.75_x0.2": (CoordinateAugmentation(shear=0, rotate=0), 1.0),
    "shear10_p0.75": (CoordinateAugmentation(mirror=0, rotate=0), 0.0),
    "rotate30_p0.75": (CoordinateAugmentation(mirror=0, shear=0), 0.0),
    "rotate_fixed_p1": (CoordinateAugmentation(0, 0, 1, quarter_turns=True), 0.0),
    "chain": (CoordinateAugmentation(), 0.0),
}


@NO_CASES
@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_the_global_generator_gives_the_published_matrices(kind: str) -> None:
    augmentation, progress = KINDS[kind]
    published = CASES["op_aug_random"].outputs()[f"out.{kind}"]
    with torch.random.fork_rng(devices=[]):
        for s, matrix in enumerate(published):
            torch.manual_seed(9000 + s)  # as the case says
            assert torch.allclose(augmentation.matrix(None, progress), matrix, atol=1e-6)


@NO_CASES
@pytest.mark.parity
def test_the_same_matrix_gives_the_published_cells() -> None:
    case = CASES["op_coord_aug"]
    given_tensors, published = case.inputs(), case.outputs()
    for i in range(10):
        moved = augment_cells(given_tensors[f"{i}.pos"].long(), given_tensors[f"{i}.matrix"])
        assert torch.equal(moved, published[f"out.{i}.pos"])
    for i in range(3):
        assert torch.equal(snap(given_tensors[f"snap{i}.coords"]), published[f"out.snap{i}.pos"])
