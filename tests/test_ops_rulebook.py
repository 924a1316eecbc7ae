from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.ops import Grids, Rulebook, children, rulebook, transpose_rulebook

FAR = 12_000_000  # a multiple of every stride here


@st.composite
def grids(draw: Any) -> tuple[Tensor, tuple[int, int]]:
    """Some cells of a small grid in any order, and its shape."""
    shape = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    every = st.integers(0, shape[0] * shape[1] - 1)
    flat = draw(st.lists(every, unique=True, max_size=40))
    cells = torch.tensor([divmod(at, shape[1]) for at in flat], dtype=torch.int64)
    return cells.view(-1, 2), shape


NO_DEADLINE = settings(deadline=None)
KERNELS = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))


def by_loops(
    cells: Tensor, shape: tuple[int, int], kernel: int, stride: int, dilation: int
) -> dict[tuple[int, int], dict[int, int]]:
    """{output cell: {kernel position: row of the input}} of the definition, in raster order."""
    rows = {(a, b): row for row, (a, b) in enumerate(cells.tolist())}
    size = [(length - dilation * (kernel - 1) - 1) // stride + 1 for length in shape]
    found: dict[tuple[int, int], dict[int, int]] = {}
    for a in range(size[0]):
        for b in range(size[1]):
            under = {
                i * kernel + j: rows[at]
                for i in range(kernel)
                for j in range(kernel)
                if (at := (a * stride + i * dilation, b * stride + j * dilation)) in rows
            }
            if under:
                found[a, b] = under
    return found


def told(book: Rulebook) -> dict[tuple[int, int], dict[int, int]]:
    found: dict[tuple[int, int], dict[int, int]] = {(a, b): {} for a, b in book.out_cells.tolist()}
    for p, (inputs, outputs) in enumerate(book.pairs):
        for row, out in zip(inputs.tolist(), outputs.tolist(), strict=True):
            a, b = book.out_cells[out].tolist()
            assert p not in found[a, b]
            found[a, b][p] = row
    return found


@NO_DEADLINE
@given(grids(), KERNELS)
def test_it_says_what_the_loops_of_the_definition_find(
    grid: tuple[Tensor, tuple[int, int]], kernel: tuple[int, int, int]
) -> None:
    book, expected = rulebook(*grid, *kernel), by_loops(*grid, *kernel)
    assert told(book) == expected
    assert book.out_cells.tolist() == [list(cell) for cell in expected]
    assert book.counts.tolist() == [len(under) for under in expected.values()]
    k, s, d = kernel
    assert book.out_shape == tuple(max(0, (n - d * (k - 1) - 1) // s + 1) for n in grid[1])


@NO_DEADLINE
@given(grids(), st.integers(1, 3))
def test_tiles_give_each_cell_one_parent(grid: tuple[Tensor, tuple[int, int]], side: int) -> None:
    cells, shape = grid
    book = rulebook(cells, shape, side, side)
    for cell, parent, position in zip(cells, book.parents, book.position, strict=True):
        dropped = bool((cell // side >= torch.tensor(shape) // side).any())
        assert (int(parent) == -1) == dropped == (int(position) == -1)
        if not dropped:
            assert torch.equal(book.out_cells[parent], cell // side)
            assert int(position) == int(cell[0] % side * side + cell[1] % side)


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), (2, 3, 1), (2, 2, 2)])
def test_other_kernels_give_no_parents(kernel: int, stride: int, dilation: int) -> None:
    book = rulebook(torch.tensor([[0, 0]]), (9, 9), kernel, stride, dilation)
    with pytest.raises(DataError, match=f"kernel {kernel}, stride {stride}, dilation {dilation} d"):
        _ = book.parents
    with pytest.raises(DataError, match="needs kernel = stride and dilation 1"):
        _ = book.position


@pytest.mark.parametrize("kernel", [(2, 2, 1), (3, 2, 1), (3, 1, 2)])
def test_islands_far_apart_are_as_if_near(kernel: tuple[int, int, int]) -> None:
    island = torch.tensor([[0, 0], [0, 1], [1, 3], [4, 4], [5, 5]]) + 12
    shift = torch.tensor([FAR, 3 * FAR])
    near = rulebook(island, (60, 60), *kernel)
    book = rulebook(torch.cat([island, island + shift]), (2 * FAR, 4 * FAR), *kernel)
    out = near.out_cells
    assert torch.equal(book.out_cells, torch.cat([out, out + shift // kernel[1]]))
    assert torch.equal(book.counts, near.counts.repeat(2))


def test_a_hundred_thousand_cells_are_no_trouble() -> None:
    cells = torch.cartesian_prod(torch.arange(400), torch.arange(250)) + 40_000
    book = rulebook(cells, (40_400, 40_250))
    assert book.out_shape == (20_200, 20_125)
    assert len(book.out_cells) == 25_000
    assert bool((book.counts == 4).all())
    assert torch.equal(book.out_cells[book.parents], cells // 2)


@pytest.mark.parametrize("kernel", [(1, 1, 1), (2, 2, 1), (3, 2, 1)])
def test_no_cells_and_one_cell(kernel: tuple[int, int, int]) -> None:
    none = rulebook(torch.empty(0, 2, dtype=torch.int64), (8, 8), *kernel)
    assert none.out_cells.shape == (0, 2) and none.counts.shape == (0,)
    assert len(none.pairs) == kernel[0] ** 2
    one = rulebook(torch.tensor([[3, 4]]), (8, 8), *kernel)
    assert told(one) == by_loops(one.cells, (8, 8), *kernel)


@NO_DEADLINE
@given(grids(), grids(), KERNELS)
def test_any_coarse_cells_reach_any_target_cells(
    coarse: tuple[Tensor, Any], targets: tuple[Tensor, Any], kernel: tuple[int, int, int]
) -> None:
    book = transpose_rulebook(coarse[0], targets[0], *kernel)
    k, s, d = kernel
    rows = {tuple(cell): row for row, cell in enumerate(targets[0].tolist())}
    for (a, b), under in told(book).items():
        expected = {
            i * k + j: rows[at]
            for i in range(k)
            for j in range(k)
            if (at := (a * s + i * d, b * s + j * d)) in rows
        }
        assert under == expected
    assert torch.equal(book.out_cells, coarse[0]) and torch.equal(book.cells, targets[0])


@NO_DEADLINE
@given(grids(), KERNELS)
def test_the_transpose_to_a_convolutions_own_input_is_its_own_rulebook(
    grid: tuple[Tensor, tuple[int, int]], kernel: tuple[int, int, int]
) -> None:
    book = rulebook(*grid, *kernel)
    again = transpose_rulebook(book.out_cells, book.cells, *kernel)
    assert told(again) == told(book)


def test_children_come_cell_by_cell() -> None:
    cells = torch.tensor([[0, 1], [5, 0]])
    assert children(cells).tolist() == [
        *([0, 2], [0, 3], [1, 2], [1, 3]),
        *([10, 0], [10, 1], [11, 0], [11, 1]),
    ]
    assert rulebook(children(cells, 3), (18, 18), 3, 3).out_cells.tolist() == cells.tolist()


def pack(parts: list[tuple[Tensor, tuple[int, int]]], stride: int) -> tuple[Tensor, Grids]:
    """Slides one after another along the first axis, at multiples of the stride."""
    steps = [-(-shape[0] // stride) * stride for _, shape in parts]
    starts = torch.tensor([0, *steps[:-1]]).cumsum(0)
    origins = F.pad(starts[:, None], (0, 1))
    lengths = torch.tensor([0, *(len(cells) for cells, _ in parts)])
    packed = torch.cat([cells + at for (cells, _), at in zip(parts, origins, strict=True)])
    return packed, Grids(torch.tensor([shape for _, shape in parts]), origins, lengths.cumsum(0))


@NO_DEADLINE
@given(st.lists(grids(), min_size=1, max_size=4), KERNELS)
def test_packed_slides_are_as_one_by_one(
    parts: list[tuple[Tensor, tuple[int, int]]], kernel: tuple[int, int, int]
) -> None:
    packed: tuple[Tensor, Any] = pack(parts, kernel[1] ** 2)
    alone: list[tuple[Tensor, Any]] = list(parts)
    for _ in range(2):  # the second level is built on what the first gives
        book, books = rulebook(*packed, *kernel), [rulebook(*part, *kernel) for part in alone]
        grid = book.out_shape
        assert isinstance(grid, Grids)
        assert grid.shape.tolist() == [list(one.out_shape or ()) for one in books]
        assert grid.offsets.diff().tolist() == [len(one.out_cells) for one in books]
        expected = {}
        for one, (a, b), row in zip(books, grid.origins.tolist(), packed[1].offsets, strict=False):
            for (c, d), under in told(one).items():
                expected[a + c, b + d] = {p: r + int(row) for p, r in under.items()}
        assert told(book) == expected
        packed = book.out_cells, grid
        alone = [(one.out_cells, one.out_shape) for one in books]


GOOD = torch.tensor([[0, 0], [1, 1], [2, 3]])


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (GOOD.int(), r"cells are \(3, 2\) int32, expected \(T, 2\) int64"),
        (GOOD[:, :1], r"cells are \(3, 1\) int64"),
        (torch.cat([GOOD, GOOD[1:]]), r"2 of 3 cells are given more than once: \(1, 1\), \(2, 3\)"),
        (GOOD - torch.tensor([1, 0]), r"1 of 3 cells lie outside .* 3 x 4 cells: \(-1, 0\)"),
        (GOOD + 2, r"2 of 3 cells lie outside of their grid of 3 x 4 cells: \(3, 3\), \(4, 5\)"),
        (GOOD + 9, r"3 of 3 cells lie outside"),
    ],
)
def test_cells_that_are_none_of_the_grid_are_refused(cells: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rulebook(cells, (3, 4))


def test_of_many_offenders_a_message_names_the_first() -> None:
    cells = torch.cartesian_prod(torch.arange(5), torch.arange(2))
    with pytest.raises(DataError, match=r"8 of 10 .*: \(1, 0\), \(1, 1\), \(2, 0\), \.\.\.$"):
        rulebook(cells, (1, 2))


def test_cells_of_a_transpose_are_checked_too() -> None:
    with pytest.raises(DataError, match="1 of 3 target cells are given more than once"):
        transpose_rulebook(GOOD, torch.cat([GOOD, GOOD[:1]]))
    with pytest.raises(DataError, match=r"coarse cells are .* int32"):
        transpose_rulebook(GOOD.int(), GOOD)


@pytest.mark.parametrize("wrong", [(0, 2, 1), (2, 0, 1), (2, 2, -1)])
def test_kernels_below_one_are_refused(wrong: tuple[int, int, int]) -> None:
    k, s, d = wrong
    message = f"got kernel {k}, stride {s}, dilation {d}; each must be at least 1"
    with pytest.raises(DataError, match=message):
        rulebook(GOOD, (3, 4), *wrong)
    with pytest.raises(DataError, match=message):
        transpose_rulebook(GOOD, GOOD, *wrong)


def test_packed_slides_that_would_mix_are_refused() -> None:
    sizes, offsets = torch.tensor([[2, 2], [2, 2]]), torch.tensor([0, 1, 2])
    cells = torch.tensor([[0, 0], [3, 0]])
    with pytest.raises(
        DataError, match=r"^origins of packed slides are \[\[0, 0\], \[3, 0\]\], expected mul"
    ):
        rulebook(cells, Grids(sizes, torch.tensor([[0, 0], [3, 0]]), offsets))
    cells = torch.tensor([[4, 0], [0, 0]])
    with pytest.raises(
        DataError, match=r"^packed slides meet in an output cell, or are not in the order of"
    ):
        rulebook(cells, Grids(sizes, torch.tensor([[4, 0], [0, 0]]), offsets))
    cells = torch.tensor([[0, 0], [0, 1]])
    with pytest.raises(DataError, match=r"^packed slides meet in an output cell"):
        rulebook(cells, Grids(sizes, torch.tensor([[0, 0], [0, 0]]), offsets))
    with pytest.raises(DataError, match="got 2 cells for grids of packed slides that have 3"):
        rulebook(cells, Grids(sizes, torch.tensor([[0, 0], [2, 0]]), torch.tensor([0, 1, 3])))
