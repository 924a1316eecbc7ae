from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wsizoo.bag import segment_ids
from wsizoo.ops import segment_max, segment_mean, segment_pool, segment_softmax, segment_sum
from wsizoo.testing import check_op_backend

LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=6)
TRAILING = st.sampled_from([(), (3,), (2, 3)])
SEEDS = st.integers(0, 1000)


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def values_of(lengths: list[int], trailing: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(lengths), *trailing, generator=generator, dtype=torch.float64)


@given(LENGTHS, TRAILING, SEEDS)
def test_pooling_equals_a_loop(lengths: list[int], trailing: tuple[int, ...], seed: int) -> None:
    values, offsets = values_of(lengths, trailing, seed), offsets_of(lengths)
    total, mean, most = (f(values, offsets) for f in (segment_sum, segment_mean, segment_max))
    for i, rows in enumerate(torch.split(values, lengths)):
        torch.testing.assert_close(total[i], rows.sum(0))
        if len(rows):
            torch.testing.assert_close(mean[i], rows.mean(0))
            assert torch.equal(most[i], rows.amax(0))
        else:
            assert mean[i].abs().sum().item() == 0
            assert bool((most[i] == -torch.inf).all())


@given(LENGTHS, st.integers(1, 3), SEEDS)
def test_weighted_sums_equal_a_loop(lengths: list[int], k: int, seed: int) -> None:
    weights, values = values_of(lengths, (k,), seed), values_of(lengths, (4,), seed + 1)
    expected = [w.T @ v for w, v in zip(weights.split(lengths), values.split(lengths), strict=True)]
    for backend in ("reference", "products"):
        found = segment_pool.on(backend)(weights, values, offsets_of(lengths))
        torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("lengths", [[7], [3, 1, 2], [0, 4, 0], [300, 500]])
def test_products_give_the_weighted_sums_of_the_reference(lengths: list[int]) -> None:
    def inputs() -> list[Any]:
        n = sum(lengths)
        return [torch.randn(n, 2), torch.randn(n, 300), offsets_of(lengths)]

    check_op_backend(segment_pool, "products", inputs, dtypes=(torch.float32, torch.float64))


def test_a_weighted_sum_is_of_the_wider_dtype() -> None:
    weights, values = torch.rand(5, 2), torch.rand(5, 3).bfloat16()
    for offsets in (torch.tensor([0, 5]), torch.tensor([0, 2, 5])):
        found = segment_pool(weights, values, offsets)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.sum(0), weights.T @ values.float())


def test_one_of_several_inputs_may_be_without_gradient() -> None:
    offsets = torch.tensor([0, 2, 5])
    for learned in (0, 1):
        inputs = [torch.randn(5, 2), torch.randn(5, 3)]
        inputs[learned].requires_grad_()
        segment_pool(*inputs, offsets).sum().backward()
        assert inputs[learned].grad is not None and inputs[1 - learned].grad is None


@given(LENGTHS, TRAILING, SEEDS)
def test_softmax_equals_a_loop(lengths: list[int], trailing: tuple[int, ...], seed: int) -> None:
    values, offsets = values_of(lengths, trailing, seed), offsets_of(lengths)
    found = segment_softmax(values, offsets)
    assert found.shape == values.shape
    expected = [rows.softmax(0) for rows in torch.split(values, lengths)]
    torch.testing.assert_close(found, torch.cat(expected))


@given(LENGTHS)
def test_ids_name_the_slide_of_each_row(lengths: list[int]) -> None:
    expected = [i for i, n in enumerate(lengths) for _ in range(n)]
    assert segment_ids(offsets_of(lengths)).tolist() == expected


@pytest.mark.parametrize("op", [segment_sum, segment_mean, segment_max, segment_softmax])
@pytest.mark.parametrize("lengths", [[3, 1, 2], [0, 4, 0], [1]])
def test_gradients_are_right(op: Any, lengths: list[int]) -> None:
    values = values_of(lengths, (2,), 0).requires_grad_()
    offsets = offsets_of(lengths)
    filled = torch.tensor(lengths) > 0

    def run(v: Tensor) -> Tensor:
        found: Tensor = op(v, offsets)
        return found if op is segment_softmax else found[filled]

    assert torch.autograd.gradcheck(run, values)
    assert op is segment_max or torch.autograd.gradgradcheck(run, values)


def test_a_tied_maximum_shares_its_gradient_equally() -> None:
    values = torch.tensor([1.0, 3.0, 3.0, 2.0, 5.0, 5.0, 5.0], requires_grad=True)
    segment_max(values, torch.tensor([0, 4, 7])).sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.tensor([0, 0.5, 0.5, 0, 1 / 3, 1 / 3, 1 / 3]))


@pytest.mark.parametrize("scale", [1e4, 1e30, -1e30])
def test_softmax_is_stable_for_any_finite_logits(scale: float) -> None:
    logits = torch.tensor([scale, scale, scale / 2, scale], requires_grad=True)
    weights = segment_softmax(logits, torch.tensor([0, 3, 4]))
    weights[0].backward()
    assert torch.isfinite(weights).all() and logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert weights[3].item() == 1.0


def test_precision_follows_the_input() -> None:
    offsets = torch.tensor([0, 2])
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        values = torch.ones(2, 3, dtype=dtype)
        for op in (segment_sum, segment_mean, segment_max, segment_softmax):
            assert op(values, offsets).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    lengths = [5000, 3, 7000]
    offsets = offsets_of(lengths)
    ones = torch.ones(sum(lengths), 2, dtype=dtype)
    expected = torch.tensor(lengths, dtype=torch.float32).to(dtype)[:, None].expand(3, 2)
    assert torch.equal(segment_sum(ones, offsets), expected)
    assert torch.equal(segment_mean(ones, offsets), torch.ones(3, 2, dtype=dtype))
    logits = values_of(lengths, (), 3).to(dtype).requires_grad_()
    weights = segment_softmax(logits, offsets)
    for rows, own in zip(weights.split(lengths), logits.split(lengths), strict=True):
        assert float(rows.detach().float().sum()) == pytest.approx(1, abs=4e-3)
        torch.testing.assert_close(rows, own.float().softmax(0).to(dtype), rtol=8e-3, atol=1e-6)
    (weights.float() * torch.arange(sum(lengths))).sum().backward()
    assert logits.grad is not None and bool(torch.isfinite(logits.grad).all())


def test_no_slides_and_no_rows_give_empty_results() -> None:
    assert segment_sum(torch.zeros(0, 3), torch.tensor([0])).shape == (0, 3)
    assert segment_softmax(torch.zeros(0), torch.tensor([0, 0])).shape == (0,)
