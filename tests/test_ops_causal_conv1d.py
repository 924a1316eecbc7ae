import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.ops import causal_conv1d


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
