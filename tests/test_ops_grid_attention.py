import functools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.test_ops_neighbourhoods import PATTERNS, some_cells
from wsizoo.errors import DataError
from wsizoo.ops import Windows, attention_weights, base_2, blocked, grid_attention
from wsizoo.testing import check_op_backend


def inputs(
    n: int, heads: int, dim: int, pattern: str, bias: bool, alone: bool = False
) -> list[Any]:
    """Arguments of the op, on cells of a square."""
    cells = some_cells(n, 16)
    generator = torch.Generator().manual_seed(n)
    draw = functools.partial(torch.randn, generator=generator)
    without = torch.tensor([0, n - 1]) if alone else torch.empty(0, dtype=torch.int64)
    windows = Windows(cells, 3, pattern, without_self=without)
    table = draw(heads, 11, 11) if bias else None
    return [*(draw(n, heads, dim) for _ in range(3)), windows, table]


SIZES = [
    functools.partial(inputs, 0, 2, 8, "union", True),
    functools.partial(inputs, 1, 1, 4, "union", False),
    functools.partial(inputs, 2, 2, 8, "union", True, alone=True),
    functools.partial(inputs, 97, 3, 5, "shifted", True),
    functools.partial(inputs, 200, 2, 8, "regular", False),
    functools.partial(inputs, 200, 2, 8, "union", True, alone=True),
]


def test_blocks_compute_what_the_definition_computes() -> None:
    check_op_backend(grid_attention, "blocked", *SIZES, dtypes=[torch.float64, torch.float32])
    check_op_backend(grid_attention, "blocked", *SIZES[3:], dtypes=[torch.bfloat16])


def test_chunks_of_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "CHUNK", 1)
    check_op_backend(grid_attention, "blocked", *SIZES[2:], dtypes=[torch.float64])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_it_is_plain_attention_where_all_cells_share_a_window(pattern: str) -> None:
    q, k, v, _, _ = inputs(20, 2, 8, "union", False)
    everything = Windows(some_cells(20, 16), 16, pattern)
    plain = F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v)))
    assert torch.allclose(grid_attention(q, k, v, everything), plain.transpose(0, 1), atol=1e-5)


def test_a_token_without_a_key_gets_zero_and_gives_no_gradient() -> None:
    cells = torch.tensor([[0, 0], [100, 100], [100, 101]])
    windows = Windows(cells, 2, without_self=torch.tensor([0]))
    q = torch.randn(3, 1, 4, requires_grad=True)
    for run in (grid_attention.on("reference"), grid_attention.on("blocked")):
        out = run(q, q, q, windows)
        assert torch.equal(out[0], torch.zeros(1, 4))
        (slope,) = torch.autograd.grad(out.sum(), q)
        assert torch.equal(slope[0], torch.zeros(1, 4))


@settings(max_examples=20)
@given(shift=st.integers(-(10**6), 10**6), seed=st.integers(0, 9))
def test_moving_the_grid_by_whole_windows_changes_nothing(shift: int, seed: int) -> None:
    q, k, v, windows, bias = inputs(60, 2, 4, "union", True)
    moved = Windows(windows.cells + shift * windows.side, 3)
    assert torch.equal(grid_attention(q, k, v, moved, bias), grid_attention(q, k, v, windows, bias))


def test_extreme_scores_stay_finite() -> None:
    q, k, v, windows, bias = inputs(60, 2, 4, "union", True)
    large = grid_attention(q * 1e4, k * 1e4, v, windows, bias)
    assert torch.isfinite(large).all()
    low = grid_attention(q, k, v, windows, bias - 1e4)  # type: ignore[operator]
    assert torch.allclose(low, grid_attention(q, k, v, windows, bias), atol=1e-2)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    q, k, _, windows, bias = inputs(256, 2, 4, "union", True)
    ones = torch.ones(256, 2, 4)
    for run in (grid_attention.on("reference"), grid_attention.on("blocked")):
        out = run(q, k, ones, windows, bias, 0.3)
        assert out.mean() == pytest.approx(1, abs=0.02)
        assert out.std() > 0.05
    kept = base_2.keep_mask(torch.empty(1000, 1001), 0.3).float().mean()
    assert float(kept) == pytest.approx(0.7, abs=0.003)


def test_gradients_under_dropout_are_those_of_the_weights_that_were_kept() -> None:
    """The same draws at two points: a directional derivative in float64."""
    q, k, v, windows, bias = (
        x.double() if isinstance(x, Tensor) else x for x in inputs(90, 2, 4, "union", True)
    )
    ways = [torch.randn_like(x) for x in (q, k, v, bias)]

    def value(step: float, slopes: bool = False) -> Any:
        torch.manual_seed(3)
        args = [(x + step * w).requires_grad_() for x, w in zip((q, k, v, bias), ways, strict=True)]
        out = grid_attention.on("blocked")(*args[:3], windows, args[3], 0.4)
        total = (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum()
        if not slopes:
            return float(total.detach())
        found = torch.autograd.grad(total, args)
        return float(sum((s * w).sum() for s, w in zip(found, ways, strict=True)))

    assert (value(1e-5) - value(-1e-5)) / 2e-5 == pytest.approx(value(0, slopes=True), rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_and_backward_under_autocast_are_those_outside_of_it(dtype: torch.dtype) -> None:
    q, k, v, windows, bias = inputs(90, 2, 8, "union", True)
    leaves = [x.to(dtype).requires_grad_() for x in (q, k, v, bias)]

    def found() -> list[Tensor]:
        out = grid_attention.on("blocked")(*leaves[:3], windows, leaves[3])
        return [out, *torch.autograd.grad(out.sum(), leaves)]

    plain = found()
    with torch.autocast("cpu", torch.bfloat16):
        cast = found()
    for a, b in zip(plain, cast, strict=True):
        assert torch.equal(a, b)


def test_one_softmax_over_both_windows_counts_no_key_twice() -> None:
    q, k, v, windows, _ = inputs(120, 1, 4, "union", False)
    scores = (q[:, 0] @ k[:, 0].T / math.sqrt(4)).masked_fill(~windows.dense(), -torch.inf)
    expected = scores.softmax(-1) @ v[:, 0]
    assert torch.allclose(grid_attention(q, k, v, windows)[:, 0], expected, atol=1e-5)


def test_the_weights_are_those_that_the_values_are_mixed_by() -> None:
    q, k, v, windows, bias = inputs(120, 2, 4, "union", True, alone=True)
    weights = attention_weights(q, k, windows, bias)
    assert torch.equal(weights > 0, windows.dense().expand(2, -1, -1))
    assert torch.allclose(weights.sum(-1), windows.dense().any(1).float(), atol=1e-6)
    mixed = torch.einsum("htu,uhd->thd", weights, v)
    assert torch.allclose(grid_attention(q, k, v, windows, bias), mixed, atol=1e-5)
    assert attention_weights(q.bfloat16(), k.bfloat16(), windows).dtype == torch.float32


def test_arguments_that_do_not_fit_are_errors() -> None:
    q, k, v, windows, bias = inputs(9, 2, 4, "union", True)
    for run in (grid_attention.on("reference"), grid_attention.on("blocked")):
        with pytest.raises(DataError, match=r"q \(9, 2, 4\), k \(8, 2, 4\).*for 9 cells"):
            run(q, k[:8], v, windows)
        with pytest.raises(DataError, match=r"a bias \(2, 9, 9\), expected \(2, 11, 11\)"):
            run(q, k, v, windows, bias[:, 1:-1, 1:-1])  # type: ignore[index]
