import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.test_ops_neighbourhoods import some_cells
from wsizoo.errors import BackendError, DataError
from wsizoo.ops import Disk, Everywhere, Windows, grid_attention

BACKENDS = ["reference", "auto"]


def slopes_times_distance(offset: Tensor) -> Tensor:
    """ALiBi of two heads."""
    return -torch.tensor([0.5, 0.25]).view(2, *[1] * (offset.ndim - 1)) * offset.double().norm(
        dim=-1
    )


def qkv(n: int, heads: int = 2, dim: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(n, heads, dim, generator=generator) for _ in range(3)]


def one_by_one(args: list[Tensor], neighbourhood: Any, bias: Any = None) -> Tensor:
    """The definition, a token and head at a time."""
    q, k, v = args
    out, cells, allowed = torch.zeros_like(q), neighbourhood.cells, neighbourhood.dense()
    for t in range(len(q)):
        keys = allowed[t].nonzero()[:, 0]
        for h in range(q.shape[1]):
            scores = k[keys, h] @ q[t, h] / math.sqrt(q.shape[2])
            if bias is not None:
                scores = scores + bias(cells[keys] - cells[t])[h]
            out[t, h] = scores.softmax(0).float() @ v[keys, h]
    return out


@given(radius=st.sampled_from([0, 0.9, 1, math.sqrt(2), 2.5, 5, 40]), seed=st.integers(0, 20))
def test_a_disk_holds_what_is_within_its_radius(radius: float, seed: int) -> None:
    cells = some_cells(40, 9, seed)
    cells = torch.cat([cells, cells[:4], cells[:3] + 10**12])
    near = (cells[:, None] - cells[None]).double().norm(dim=-1) <= radius + 1e-9
    assert torch.equal(Disk(cells, radius).dense(), near)


def test_the_edge_of_a_disk_belongs_to_it() -> None:
    cells = torch.tensor([[0, 0], [6, 8], [0, 10], [7, 8], [-10, 0]])
    assert Disk(cells, 10).dense()[0].tolist() == [True, True, True, False, True]
    assert Disk(cells, 10).reach == 10


def test_radii_that_are_none_are_errors() -> None:
    for radius in (-1, math.nan, math.inf, 2**31, "x", None):
        with pytest.raises(
            DataError, match=rf"a disk's radius is {radius!r} cells, expected 0 to 1073741824"
        ):
            Disk(some_cells(4, 3), radius)  # type: ignore[arg-type]


def test_cells_that_are_none_are_errors() -> None:
    cells = some_cells(4, 3)
    for wrong in (cells.float(), cells.int(), cells[0], torch.cat([cells, cells], 1)):
        expected = (
            rf"{re.escape(str(tuple(wrong.shape)))} {wrong.dtype}, expected \(T, 2\) torch.int64"
        )
        with pytest.raises(DataError, match=f"the cells of Disk are {expected}"):
            Disk(wrong, 3)
        with pytest.raises(DataError, match=f"the cells of Windows are {expected}"):
            Windows(wrong, 2)
        with pytest.raises(DataError, match=f"the cells of Everywhere are {expected}"):
            Everywhere(wrong, torch.tensor([0, 4]))


def test_everywhere_is_all_of_the_same_slide() -> None:
    cells = torch.cat([some_cells(3, 4), some_cells(2, 9)])
    everywhere = Everywhere(cells, torch.tensor([0, 3, 3, 5]))
    slide = torch.tensor([0, 0, 0, 1, 1])
    assert torch.equal(everywhere.dense(), slide[:, None] == slide)
    assert everywhere.reach == max(int((x.amax(0) - x.amin(0)).max()) for x in cells.split([3, 2]))
    nobody = Everywhere(cells[:0], torch.tensor([0, 0]))
    assert nobody.reach == 0
    assert nobody.dense().shape == (0, 0)


@pytest.mark.parametrize("offsets", [[0, 4], [1, 5], [0, 4, 3, 5], []])
def test_offsets_that_do_not_bound_the_slides_are_errors(offsets: list[int]) -> None:
    everywhere = Everywhere(some_cells(5, 4), torch.tensor(offsets, dtype=torch.int64))
    with pytest.raises(DataError, match="expected to ascend from 0 to 5, the number of cells"):
        everywhere.dense()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [None, slopes_times_distance])
def test_attention_is_the_definition(backend: str, bias: Any) -> None:
    args, cells = qkv(50), torch.cat([some_cells(44, 9), some_cells(6, 9)])
    for near in (Disk(cells, 3), Disk(cells, 0), Everywhere(cells, torch.tensor([0, 17, 50]))):
        out = grid_attention.on(backend)(*args, near, bias)
        assert torch.allclose(out, one_by_one(args, near, bias), atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bias_by_function_is_the_table_that_it_gives(backend: str) -> None:
    args, cells = qkv(40), some_cells(40, 9)
    axis = torch.arange(-3, 4)
    table = slopes_times_distance(torch.cartesian_prod(axis, axis).view(7, 7, 2))
    run, disk = grid_attention.on(backend), Disk(cells, 3.2)
    assert torch.allclose(run(*args, disk, slopes_times_distance), run(*args, disk, table))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_key_whose_bias_is_minus_infinity_is_none(backend: str) -> None:
    args, cells = qkv(30), some_cells(30, 7)
    everywhere = Everywhere(cells, torch.tensor([0, 30]))

    def near_only(offset: Tensor) -> Tensor:
        far = offset.square().sum(-1) > 4
        return torch.where(far, -torch.inf, 0.0).expand(2, *far.shape)

    run = grid_attention.on(backend)
    found = run(*args, everywhere, near_only)
    assert torch.allclose(found, grid_attention.reference(*args, Disk(cells, 2)), atol=1e-6)
    leaves = [x.requires_grad_() for x in args]
    none = run(*leaves, everywhere, lambda o: torch.full((2, *o.shape[:-1]), -torch.inf))
    assert torch.equal(none, torch.zeros_like(none))
    for slope in torch.autograd.grad(none.sum(), leaves):
        assert torch.equal(slope, torch.zeros_like(slope))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bias_function_of_a_wrong_shape_is_an_error(backend: str) -> None:
    disk = Disk(some_cells(9, 3), 2)
    with pytest.raises(DataError, match=r"a bias function gave \(.*expected \(2, .*heads first"):
        grid_attention.on(backend)(*qkv(9), disk, lambda offset: offset.double().norm(dim=-1))


def test_blocks_refuse_what_they_cannot_do() -> None:
    args, cells = qkv(9), some_cells(9, 4)
    with pytest.raises(BackendError, match="a Disk is not made of blocks"):
        grid_attention.on("blocked")(*args, Disk(cells, 2))
    with pytest.raises(BackendError, match="the bias is a function, blocks take a table"):
        grid_attention.on("blocked")(*args, Windows(cells, 2), slopes_times_distance)


@settings(max_examples=10)
@given(infinite=st.integers(0, 8))
def test_blocks_take_an_infinite_bias(infinite: int) -> None:
    args, windows = qkv(30), Windows(some_cells(30, 9), 2)
    table = torch.zeros(2, 7, 7)
    table[:, :infinite] = -torch.inf
    runs = (grid_attention.on(name)(*args, windows, table) for name in ("blocked", "reference"))
    assert torch.allclose(*runs, atol=1e-6)
