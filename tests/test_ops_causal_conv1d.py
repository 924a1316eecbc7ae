import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.ops import _numba, causal_conv1d
from wsizoo.testing import check_op_backend


def inputs(lengths: list[int], e: int = 3, taps: int = 4) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(sum(lengths))
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return draw(sum(lengths), e), draw(e, taps), draw(e), offsets


def by_torch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One sequence through torch's padded convolution."""
    padding = weight.shape[1] - 1
    found = F.conv1d(x.t()[None], weight[:, None], bias, padding=padding, groups=len(weight))
    return found[0, :, : len(x)].t()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=5),
    st.integers(1, 5),
    st.booleans(),
    st.booleans(),
)
def test_it_is_torchs_convolution_of_each_sequence(
    lengths: list[int], taps: int, reverse: bool, silu: bool
) -> None:
    x, weight, bias, offsets = inputs(lengths, taps=taps)
    activation = "silu" if silu else "none"
    found = causal_conv1d(x, weight, bias, activation, offsets, reverse)
    for rows, own in zip(x.split(lengths), found.split(lengths), strict=True):
        if len(rows):
            way = rows.flip(0) if reverse else rows
            expected = by_torch(way, weight, bias)
            expected = F.silu(expected) if silu else expected
            torch.testing.assert_close(own, expected.flip(0) if reverse else expected)


def test_without_offsets_all_rows_are_one_sequence_and_a_bias_may_be_missing() -> None:
    x, weight, _, _ = inputs([9])
    found = causal_conv1d(x, weight, activation="none")
    torch.testing.assert_close(found, by_torch(x, weight, None))
    back = causal_conv1d(x, weight, activation="none", reverse=True)
    torch.testing.assert_close(back, by_torch(x.flip(0), weight, None).flip(0))


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_are_right(reverse: bool) -> None:
    x, weight, bias, offsets = inputs([3, 0, 1, 6])
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    assert torch.autograd.gradcheck(lambda *t: causal_conv1d(*t, "silu", offsets, reverse), leaves)


def test_half_precision_is_summed_in_single() -> None:
    x, weight, bias, offsets = (t.bfloat16() if t.is_floating_point() else t for t in inputs([40]))
    found = causal_conv1d(x, weight, bias, offsets=offsets)
    assert found.dtype == torch.bfloat16
    expected = causal_conv1d(x.float(), weight.float(), bias.float(), offsets=offsets)
    assert torch.equal(found, expected.bfloat16())


def test_arguments_that_do_not_fit_are_errors() -> None:
    x, weight, bias, _ = inputs([9])
    with pytest.raises(DataError, match=r"causal_conv1d got x \(9, 3\) and weight \(2, 4\)"):
        causal_conv1d(x, weight[1:])
    with pytest.raises(DataError, match=r"causal_conv1d got bias \(2,\), expected \(3,\)"):
        causal_conv1d(x, weight, bias[1:])
    with pytest.raises(DataError, match=r"activation 'relu'\. Known: none, silu"):
        causal_conv1d(x, weight, bias, "relu")
    with pytest.raises(DataError, match=r"causal_conv1d got offsets \[0, 8\] for 9 rows"):
        causal_conv1d(x, weight, bias, offsets=torch.tensor([0, 8]))


def arguments(lengths: list[int], e: int, taps: int, silu: bool, reverse: bool) -> list[Any]:
    x, weight, bias, offsets = inputs(lengths, e, taps)
    return [x, weight, bias, "silu" if silu else "none", offsets, reverse]


SIZES = [
    functools.partial(arguments, [0], 3, 4, True, False),
    functools.partial(arguments, [1], 1, 1, True, False),
    functools.partial(arguments, [256, 3, 0, 700], 33, 4, True, True),
    functools.partial(arguments, [256, 3, 0, 700], 5, 4, False, False),
    functools.partial(arguments, [1000], 2, 16, True, True),
    functools.partial(arguments, [1000], 2, 17, True, False),
]


def test_kernels_compute_what_the_definition_computes() -> None:
    kinds = [torch.float32, torch.bfloat16]
    check_op_backend(causal_conv1d, "numba", *SIZES, dtypes=kinds)
    check_op_backend(causal_conv1d, "numba", lambda: list(inputs([600])[:2]))


def test_threads_and_spans_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_numba, "WORTH", 1)
    monkeypatch.setattr(_numba, "SPAN", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    check_op_backend(causal_conv1d, "numba", *SIZES)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.one_of(st.integers(0, 5), st.integers(0, 300)), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(1, 5),
    st.booleans(),
)
def test_any_lengths_agree(lengths: list[int], e: int, taps: int, reverse: bool) -> None:
    make = functools.partial(arguments, lengths, e, taps, True, reverse)
    check_op_backend(causal_conv1d, "numba", make)


def test_a_nan_stays_in_its_sequence() -> None:
    x, weight, bias, offsets = (t.float() if t.is_floating_point() else t for t in inputs([9, 9]))
    x[8, 0] = torch.nan
    for name in ("reference", "auto"):
        found = causal_conv1d.on(name)(x, weight, bias, "silu", offsets)
        assert torch.isnan(found).nonzero().tolist() == [[8, 0]]
