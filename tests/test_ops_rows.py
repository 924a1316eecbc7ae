"""Linear maps of many rows are `F.linear`, with its gradients, whichever library does them."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wsizoo.ops import RowLinear, memory, products, row_linear, rows, use_backend


@pytest.fixture(params=["onednn", "mkl"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both take small products too; where the processor has no AVX-512, one of them is skipped."""
    if request.param == "mkl":
        monkeypatch.setattr(products, "_onednn", lambda: None)
    elif products._onednn() is None:
        pytest.skip("torch.mm is the faster one on this processor")
    monkeypatch.setattr(products, "SMALL", 0)
    monkeypatch.setattr(products, "UNIT", 4)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 30), k=st.integers(1, 9), m=st.integers(1, 9), biased=st.booleans())
def test_it_is_the_linear_map_with_its_gradients(n: int, k: int, m: int, biased: bool) -> None:
    leaves = [torch.randn(2, n, k), torch.randn(m, k), *([torch.randn(m)] if biased else [])]
    for leaf in leaves:
        leaf.requires_grad_()
    ours, theirs = row_linear(*leaves), F.linear(*leaves)
    torch.testing.assert_close(ours, theirs)
    slope = torch.randn_like(theirs)
    found, wanted = (torch.autograd.grad(y, leaves, slope) for y in (ours, theirs))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("smallest", [0, 1 << 18])  # bytes; from there memory is used again
def test_a_layer_has_the_parameters_of_nn_linear_and_changes_in_place(
    smallest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SMALLEST", smallest)
    own, plain = RowLinear(6, 5), nn.Linear(6, 5)
    own.load_state_dict(plain.state_dict())
    x = torch.randn(9, 6, requires_grad=True)
    torch.testing.assert_close(F.relu(own(x), inplace=True), F.relu(plain(x)))
    F.relu(own(x), inplace=True).sum().backward()
    F.relu(plain(x)).sum().backward()
    torch.testing.assert_close(own.weight.grad, plain.weight.grad)
    with torch.inference_mode():
        torch.testing.assert_close(own(x), plain(x))


def test_whoever_looks_at_single_ops_sees_the_plain_one() -> None:
    x, weight = torch.randn(8, 6), torch.randn(5, 6)
    assert rows.fits(x, weight)
    with use_backend("reference"):
        assert not rows.fits(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert row_linear(x, weight).dtype == torch.bfloat16
    assert not rows.fits(x.double(), weight.double())
    torch.testing.assert_close(torch.func.vmap(lambda r: row_linear(r, weight))(x), x @ weight.T)


def test_little_is_done_by_torch_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SMALL", 8 * 6 * 5)
    assert rows.fits(torch.randn(8, 6), torch.randn(5, 6))
    assert not rows.fits(torch.randn(7, 6), torch.randn(5, 6))
