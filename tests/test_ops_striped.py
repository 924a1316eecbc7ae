import dataclasses
import functools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.test_ops_disks import slopes_times_distance
from tests.test_ops_neighbourhoods import some_cells
from wsizoo.errors import BackendError
from wsizoo.ops import (
    Disk,
    Everywhere,
    Windows,
    attention,
    grid_attention,
    listening,
    products,
    strips,
)
from wsizoo.testing import check_op_backend

FAST, REFERENCE = grid_attention.on("striped"), grid_attention.on("reference")


def crowd(n: int, edge: int = 40, seed: int = 0) -> Tensor:
    """n cells of a square in random order, some of them twice."""
    cells = some_cells(n, edge, seed)
    cells[: n // 8] = cells[n // 8 : 2 * (n // 8)]
    return cells


def args_of(near: Any, heads: int = 2, dim: int = 8, bias: Any = None) -> list[Any]:
    n, generator = len(near), torch.Generator().manual_seed(len(near))
    return [*(torch.randn(n, heads, dim, generator=generator) for _ in range(3)), near, bias]


def table(reach: int) -> Tensor:
    generator = torch.Generator().manual_seed(reach)
    return torch.randn(2, 2 * reach + 1, 2 * reach + 1, generator=generator)


def disk(n: int, radius: float, bias: str = "none") -> list[Any]:
    near = Disk(crowd(n), radius)
    made = {"none": None, "table": table(near.reach), "alibi": slopes_times_distance}
    return args_of(near, bias=made[bias])


def slides(bias: str, *sizes: int, apart: int = 0) -> list[Any]:
    cells = torch.cat([crowd(n, seed=i) + i * apart for i, n in enumerate(sizes)])
    if apart:
        cells[0] -= apart
    near = Everywhere(cells, torch.tensor([0, *sizes]).cumsum(0))
    made = {"none": None, "table": table(near.reach) if not apart else None}
    return args_of(near, bias=made.get(bias, slopes_times_distance))


SIZES = [
    functools.partial(disk, 0, 3),
    functools.partial(disk, 1, 3),
    functools.partial(disk, 90, 0, "alibi"),
    functools.partial(disk, 300, 2.5, "table"),
    functools.partial(disk, 300, 10),
    functools.partial(disk, 300, 1000),
    functools.partial(slides, "none", 70, 0, 1, 200),
    functools.partial(slides, "table", 40, 90),
    functools.partial(slides, "alibi", 40, 90),
    functools.partial(slides, "alibi", 30, 50, apart=10**7),
]


def test_strips_compute_what_the_definition_computes() -> None:
    check_op_backend(grid_attention, "striped", *SIZES, dtypes=[torch.float64, torch.float32])
    check_op_backend(grid_attention, "striped", *SIZES[3:], dtypes=[torch.bfloat16])


def test_blocks_of_many_slices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "MOST_KEYS", strips.KEYS)
    monkeypatch.setattr(strips, "MANY_QUERIES", strips.QUERIES)
    check_op_backend(grid_attention, "striped", *SIZES, dtypes=[torch.float64])


def test_values_of_pairs_are_those_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "TABLE", 0)
    monkeypatch.setattr(strips, "TABLE_PER_TOKEN", 0)
    check_op_backend(grid_attention, "striped", *SIZES, dtypes=[torch.float64])


def of(run: Any, args: list[Any]) -> list[Tensor]:
    """Output and gradients in float64."""
    leaves = [x.double().requires_grad_() for x in args[:3]]
    out = run(*leaves, *args[3:])
    cotangent = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent)]


SHAPES = ("scattered", "islands", "line", "diagonal", "crowd")


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 150),
    radius=st.sampled_from([0, 0.5, 1, math.sqrt(2), 2.5, 7, 16, 40, 10**6]),
    shape=st.sampled_from(SHAPES),
    shift=st.sampled_from([0, -7, 10**9]),
    bias=st.sampled_from([None, slopes_times_distance]),
    seed=st.integers(0, 99),
)
def test_in_float64_strips_are_the_definition_to_1e_12(
    n: int, radius: float, shape: str, shift: int, bias: Any, seed: int
) -> None:
    cells = crowd(n, 13, seed)
    along = torch.arange(n)
    if shape == "islands":
        cells = cells + (along % 5)[:, None] * torch.tensor([1000, 10**8])
    if shape in ("line", "diagonal"):
        cells = torch.stack([along * (shape == "diagonal"), along], 1)
    if shape == "crowd":
        cells = cells // 6
    args = args_of(Disk(cells + shift, radius), bias=bias)
    for mine, theirs in zip(of(FAST, args), of(REFERENCE, args), strict=True):
        assert float((mine - theirs).abs().max()) <= 1e-12 * max(1, float(theirs.abs().max()))


def test_whole_slides_without_a_bias_attend_by_the_op_for_it() -> None:
    with listening(attention) as calls:
        FAST(*slides("none", 70, 0, 1, 200))
        FAST(*slides("alibi", 70))
    assert [tuple(call["q"].shape) for call in calls] == [(2, 70, 8), (2, 1, 8), (2, 200, 8)]
    nobody = [x.requires_grad_() for x in torch.zeros(3, 0, 2, 8).unbind()]
    FAST(
        *nobody, Everywhere(torch.zeros(0, 2, dtype=torch.int64), torch.tensor([0]))
    ).sum().backward()


def test_who_is_too_far_is_found_once_unless_there_are_many_slices() -> None:
    q, k, v, near, bias = disk(300, 5, "alibi")
    strip = near.strips.strips[0]
    block = strip.blocks[0]
    found = near.strips.far(strip, block, block.keys[0])
    assert near.strips.far(strip, block, block.keys[0]) is found
    assert torch.equal(FAST(q, k, v, near), FAST(q, k, v, near))
    assert torch.allclose(FAST(q, k, v, near, bias), REFERENCE(q, k, v, near, bias), atol=1e-5)
    large = Disk(crowd(1500, 40), 1000).strips
    strip = large.strips[0]
    block = strip.blocks[0]
    assert large.far(strip, block, block.keys[0]) is not large.far(strip, block, block.keys[0])


def test_strips_of_a_slide_may_have_a_limit() -> None:
    """Their blocks have more queries than those of disks."""

    class Near(Disk):
        @property
        def strips(self) -> strips.Strips:
            made = strips.strips_of_slides(self.cells, [0, len(self)])
            return dataclasses.replace(made, limit=self.within)

    disk = Disk(crowd(600), 3)
    args = args_of(Near(disk.cells, disk.radius))
    assert torch.allclose(FAST(*args), REFERENCE(*args[:3], disk), atol=1e-5)
    assert max(block.queries.start for block in args[3].strips.strips[0].blocks) > 0


def test_a_nan_stays_among_the_queries_of_its_blocks() -> None:
    q, k, v, *_ = disk(1500, 2)
    v[0, 0, 0] = math.nan
    near = Disk(crowd(1500, 100), 2)
    lost = FAST(q, k, v, near)[:, 0, 0].isnan()
    assert lost[near.dense()[0]].all()
    hold = [
        strip.queries[block.queries]
        for strip in near.strips.strips
        for block in strip.blocks
        if any((strip.keys[part] == 0).any() for part in block.keys)
    ]
    assert set(lost.nonzero()[:, 0].tolist()) <= set(torch.cat(hold).tolist())
    assert len(set(torch.cat(hold).tolist())) < 1500


def test_far_islands_build_no_table_of_their_extent() -> None:
    asked = []

    def bias(offset: Tensor) -> Tensor:
        asked.append(offset[..., 0].numel())
        return slopes_times_distance(offset)

    args = slides("alibi", 300, 100, apart=10**7)
    FAST(*args[:4], bias)
    assert max(asked) <= strips.MANY_QUERIES * strips.MOST_KEYS
    asked.clear()
    near = Everywhere(crowd(3000, 80), torch.tensor([0, 3000]))
    FAST(*args_of(near, bias=bias))
    assert asked == [159 * 159]


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    q, k, _, near, bias = disk(600, 6, "alibi")
    out = FAST(q, k, torch.ones_like(q), near, bias, 0.3)
    assert out.mean() == pytest.approx(1, abs=0.02)
    assert out.std() > 0.03
    assert not torch.equal(out, FAST(q, k, torch.ones_like(q), near, bias, 0.3))


@pytest.mark.parametrize("make", [SIZES[3], SIZES[8]])
def test_gradients_under_dropout_are_those_of_the_weights_that_were_kept(make: Any) -> None:
    """The same draws at two points: a directional derivative in float64."""
    q, k, v, near, bias = (x.double() if isinstance(x, Tensor) else x for x in make())
    leaves = [x for x in (q, k, v, bias) if isinstance(x, Tensor)]
    ways = [torch.randn_like(x) for x in leaves]

    def value(step: float, slopes: bool = False) -> Any:
        torch.manual_seed(3)
        args = [(x + step * w).requires_grad_() for x, w in zip(leaves, ways, strict=True)]
        out = FAST(*args[:3], near, args[3] if len(args) > 3 else bias, 0.4)
        total = (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum()
        if not slopes:
            return float(total.detach())
        found = torch.autograd.grad(total, args)
        return float(sum((s * w).sum() for s, w in zip(found, ways, strict=True)))

    assert (value(1e-5) - value(-1e-5)) / 2e-5 == pytest.approx(value(0, slopes=True), rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_and_backward_under_autocast_are_those_outside_of_it(dtype: torch.dtype) -> None:
    q, k, v, near, bias = disk(200, 4, "alibi")
    leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]

    def found() -> list[Tensor]:
        out = FAST(*leaves, near, bias)
        return [out, *torch.autograd.grad(out.sum(), leaves)]

    plain = found()
    with torch.autocast("cpu", torch.bfloat16):
        cast = found()
    for a, b in zip(plain, cast, strict=True):
        assert torch.equal(a, b)


def test_extreme_scores_stay_finite() -> None:
    q, k, v, near, _ = disk(200, 4)
    assert torch.isfinite(FAST(q * 1e4, k * 1e4, v, near)).all()


def test_a_token_alone_gets_its_own_value() -> None:
    q, k, v, _, _ = disk(40, 3)
    alone = Disk(torch.stack([torch.arange(40) * 7, torch.zeros(40).long()], 1), 3)
    assert torch.equal(FAST(q, k, v, alone), v)


def test_what_is_not_made_of_strips_is_refused() -> None:
    q, k, v, *_ = disk(9, 3)
    with pytest.raises(BackendError, match="a Windows is not made of strips"):
        FAST(q, k, v, Windows(some_cells(9, 4), 2))


@pytest.mark.parametrize(("heads", "dim"), [(1, 384), (4, 16)])
def test_a_patch_far_from_new_ones_keeps_its_output_when_the_slide_grows(
    heads: int, dim: int
) -> None:
    """Two layers: what lies within twice the radius is all that counts.

    Keys that are too far away are exact zeros in every sum, and lie between the others without
    changing their order: where products add in that order, as oneDNN's do, not a bit changes.
    """
    radius, grown = 4, crowd(900)
    x = torch.randn(len(grown), heads, dim, generator=torch.Generator().manual_seed(0))
    there = (grown[:, 0] >= 3) & (grown[:, 0] < 30) & (grown[:, 1] < 25)

    def layers(cells: Tensor, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + FAST(x, x, x, Disk(cells, radius))
        return x

    cells = grown[there]
    inside = (cells[:, 0] >= 3 + 2 * radius) & (cells[:, 0] < 30 - 2 * radius)
    inside &= cells[:, 1] < 25 - 2 * radius
    before, after = layers(cells, x[there])[inside], layers(grown, x)[there][inside]
    assert len(before) > 30
    assert float((before - after).abs().max()) <= 1e-6 * float(before.abs().max())
    if dim == 384 and products._onednn() is not None:
        assert torch.equal(before, after)
    assert not torch.allclose(layers(cells, x[there])[~inside], layers(grown, x)[there][~inside])
