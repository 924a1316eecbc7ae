import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.ops import Neighbourhood, Windows
from wsizoo.ops.neighbourhoods import compact

PATTERNS = ("regular", "shifted", "union")


def some_cells(n: int, edge: int, seed: int = 0) -> Tensor:
    """n distinct cells of a square, in random order."""
    at = torch.randperm(edge * edge, generator=torch.Generator().manual_seed(seed))[:n]
    return torch.stack([at // edge, at % edge], 1)


def pairs(neighbourhood: Neighbourhood) -> Tensor:
    """(T, T) how many blocks allow each pair."""
    count = torch.zeros(len(neighbourhood) + 1, len(neighbourhood) + 1, dtype=torch.int64)
    for block in neighbourhood.blocks:
        ok = block.allowed.repeat(len(block.queries), 1, 1)
        ok[block.forbidden[:, 0], block.forbidden[:, 1], block.forbidden[:, 2]] = False
        query = block.queries[:, :, None].expand_as(ok)[ok]
        key = block.keys[:, None].expand_as(ok)[ok]
        count.index_put_((query, key), torch.ones_like(query), accumulate=True)
    return count[:-1, :-1]


def grouped_pairs(windows: Windows) -> Tensor:
    """(T, T) how many groups hold each pair."""
    groups = windows.groups
    count = torch.zeros(len(windows), len(windows), dtype=torch.int64)
    bounds = torch.stack([groups.query_bounds, groups.key_bounds], 1).tolist()
    for (q0, k0), (q1, k1) in itertools.pairwise(bounds):
        queries, keys = groups.queries[q0:q1, None], groups.keys[None, k0:k1]
        count[queries, keys] += 1
        offset = windows.cells[keys] - windows.cells[queries]
        assert torch.equal(groups.around[None, k0:k1] - groups.inside[q0:q1, None], offset)
        assert 0 < k1 - k0 <= groups.most_keys
        assert q0 < q1
    assert bounds[-1] == [len(groups.queries), len(groups.keys)]
    assert len(groups) == len(bounds) - 1
    return count


@given(
    half=st.integers(1, 4),
    pattern=st.sampled_from(PATTERNS),
    n=st.integers(0, 60),
    seed=st.integers(0, 99),
    far=st.sampled_from([0, -40, 10**6]),
)
def test_blocks_and_groups_hold_each_pair_of_the_definition_once(
    half: int, pattern: str, n: int, seed: int, far: int
) -> None:
    cells = some_cells(n, 13, seed)
    cells[: n // 2] += far  # two islands
    islands = [None, torch.zeros(n, dtype=torch.bool), torch.arange(n) < n // 2]
    shifts = islands[seed % 3] if far else islands[seed % 2]
    alone = torch.arange(n)[:: max(1, n - 1)]
    windows = Windows(cells, half, pattern, shifts, alone)
    assert torch.equal(pairs(windows), windows.dense().long())
    assert torch.equal(grouped_pairs(windows), windows.dense().long())
    inside = windows.groups.inside
    assert ((inside >= 0) & (inside < windows.groups.side)).all()
    assert windows.groups.side == windows.group_side


@pytest.mark.parametrize("pattern", PATTERNS)
def test_windows_are_what_the_paper_says(pattern: str) -> None:
    cells = some_cells(40, 11)
    a, b = cells.T
    regular = (a[:, None] // 4 == a // 4) & (b[:, None] // 4 == b // 4)
    shifted = ((a[:, None] + 2) // 4 == (a + 2) // 4) & ((b[:, None] + 2) // 4 == (b + 2) // 4)
    expected = {"regular": regular, "shifted": shifted, "union": regular | shifted}[pattern]
    assert torch.equal(Windows(cells, 2, pattern).dense(), expected)


def test_no_two_cells_beyond_the_reach_attend() -> None:
    windows = Windows(some_cells(80, 17), 3)
    apart = (windows.cells[None] - windows.cells[:, None]).abs().amax(-1)
    assert windows.reach == 5
    assert apart[windows.dense()].max() == 5


def test_far_islands_are_numbered_without_the_plane_between_them() -> None:
    keys = torch.tensor([[0, 0], [10**8, 10**8], [0, 0], [3, 10**9]])
    number, count = compact(keys)
    assert count == 3
    assert number.tolist() == [0, 2, 0, 1]


def test_a_grid_too_wide_to_number_is_an_error() -> None:
    with pytest.raises(DataError, match="more than a grid can number"):
        compact(torch.tensor([[0, 0], [2**40, 2**40]]))


def test_wrong_windows_are_errors() -> None:
    cells = some_cells(4, 3)
    with pytest.raises(DataError, match="windows are 'round', expected 'regular'"):
        Windows(cells, 3, "round")
    with pytest.raises(DataError, match="half a window is 0 cells, expected at least 1"):
        Windows(cells, 0)


def test_the_base_says_nothing_of_its_own() -> None:
    base = Neighbourhood(some_cells(2, 2))
    assert base.group_side is None
    kinds = (lambda: base.blocks, lambda: base.strips, lambda: base.groups)
    for ask in (lambda: base.reach, base.dense, *kinds):
        with pytest.raises(NotImplementedError):
            ask()
