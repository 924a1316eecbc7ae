import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.test_ops_neighbourhoods import some_cells
from wsizoo.errors import DataError
from wsizoo.ops import Disk, Everywhere, Neighbourhood, strips


def blocks_of(near: Neighbourhood) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Queries (L,), keys (K,) and numbers of offsets (L, K) of each block, without what fills."""
    found = []
    for strip in near.strips.strips:
        for block in strip.blocks:
            some = block.queries
            ours = slice(some.start, min(some.stop, strip.n_queries))
            for part in block.keys:
                assert (part.stop - part.start) % strips.KEYS == 0
                assert part.stop - part.start <= strips.MOST_KEYS
                theirs = slice(part.start, min(part.stop, strip.n_keys))
                number = strip.key_at[theirs] - strip.query_at[ours, None]
                number = (number + near.strips.number_of_zero).clamp(0, near.strips.n_offsets - 1)
                found.append((strip.queries[ours], strip.keys[theirs], number))
    return found


def check(near: Neighbourhood) -> None:
    """Each allowed pair is in one block, and its offset has the number that it has in the table."""
    n, limit = len(near), near.strips.limit
    seen = torch.zeros(n, n, dtype=torch.int64)
    offsets = near.strips.offsets(near.cells.device)
    for queries, keys, number in blocks_of(near):
        seen[queries[:, None], keys] += 1
        offset = near.cells[keys] - near.cells[queries][:, None]
        told = offsets[number]
        allowed = near.dense()[queries][:, keys]
        assert torch.equal(told[allowed], offset[allowed])
        if limit is not None:
            assert torch.equal(told.square().sum(-1) <= limit, allowed)
    assert (seen <= 1).all()
    assert (seen[near.dense()] == 1).all()


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(0, 200),
    seed=st.integers(0, 99),
    radius=st.sampled_from([0, 1, 2.5, 9, 30, 10**6]),
    far=st.sampled_from([0, -70, 10**6]),
)
def test_strips_hold_each_pair_of_a_disk_once_and_tell_who_is_near(
    n: int, seed: int, radius: float, far: int
) -> None:
    cells = some_cells(n, 30, seed)
    cells[: n // 2] += far
    cells[: n // 9] = cells[n - n // 9 :]
    near = Disk(cells, radius)
    if near.strips.n_offsets < 10**5:
        check(near)


@settings(max_examples=10, deadline=None)
@given(sizes=st.lists(st.integers(0, 90), max_size=4), seed=st.integers(0, 99))
def test_strips_hold_each_pair_of_a_slide_once(sizes: list[int], seed: int) -> None:
    cells = some_cells(sum(sizes), 30, seed)
    check(Everywhere(cells, torch.tensor([0, *sizes]).cumsum(0)))


def test_a_long_slide_is_cut_into_slices() -> None:
    near = Disk(torch.stack([torch.zeros(1500).long(), torch.arange(1500) // 4], 1), 150)
    check(near)
    assert max(len(block.keys) for strip in near.strips.strips for block in strip.blocks) > 1


def test_cells_too_far_apart_to_be_numbered_are_an_error() -> None:
    with pytest.raises(DataError, match=r"cells span .*, more than a grid can number"):
        _ = Disk(torch.tensor([[0, 0], [2**40, 2**40]]), 3).strips
