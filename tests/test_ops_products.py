"""Products through either library are the same sums, whatever the layout."""

import itertools
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsizoo.ops import chunks, outer, product, products


@pytest.fixture(params=["onednn", "mkl"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both take small products too; where the processor has no AVX-512, one of them is skipped."""
    if request.param == "mkl":
        monkeypatch.setattr(products, "_onednn", lambda: None)
    elif products._onednn() is None:
        pytest.skip("torch.mm is the faster one on this processor")
    monkeypatch.setattr(products, "SMALL", 0)
    monkeypatch.setattr(products, "UNIT", 4)
    return str(request.param)


def laid_out(values: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values: rows in a row, columns in a row, or with gaps."""
    if layout == "columns":
        return values.t().contiguous().t()
    if layout == "gaps":
        wide = values.new_zeros(len(values), 2 * values.shape[1] + 3)
        wide[:, ::2][:, : values.shape[1]] = values
        return wide[:, ::2][:, : values.shape[1]]
    return values


LAYOUTS = st.sampled_from(["rows", "columns", "gaps"])
SIZES = st.integers(1, 40)


@given(SIZES, SIZES, SIZES, LAYOUTS, LAYOUTS, st.integers(0, 1000))
def test_a_product_is_the_sum_it_says(
    n: int, k: int, m: int, left: str, right: str, seed: int
) -> None:
    torch.manual_seed(seed)
    a, b, c = (torch.randint(-9, 10, shape).float() for shape in ((n, k), (k, m), (n, m)))
    bias = torch.randint(-9, 10, (m,)).float()
    factors = laid_out(a, left), laid_out(b, right)
    expected = (a.long() @ b.long()).float()  # whole numbers: every order of sums is exact
    assert torch.equal(product(*factors), expected)
    assert torch.equal(product(*factors, bias, relu=True), (expected + bias).relu())
    assert torch.equal(product(*factors, bias, added=c), expected + bias + c)
    out = c.clone()
    assert product(*factors, added=out, out=out) is out
    assert torch.equal(out, expected + c)


@given(SIZES, SIZES, SIZES, LAYOUTS, LAYOUTS, st.integers(0, 1000))
def test_an_outer_product_is_the_sum_over_its_rows(
    n: int, k: int, m: int, left: str, right: str, seed: int
) -> None:
    torch.manual_seed(seed)
    a, b, c = (torch.randint(-9, 10, shape).float() for shape in ((n, k), (n, m), (k, m)))
    factors = laid_out(a, left), laid_out(b, right)
    expected = (a.T.long() @ b.long()).float()
    assert torch.equal(outer(*factors), expected)
    total = c.clone()
    assert outer(*factors, total) is total
    assert torch.equal(total, expected + c)


@given(SIZES, SIZES, SIZES, LAYOUTS, LAYOUTS, st.integers(0, 1000))
def test_a_product_as_it_is_may_be_added_to_or_multiplied(
    n: int, k: int, m: int, left: str, right: str, seed: int
) -> None:
    torch.manual_seed(seed)
    a, b, c = (torch.randint(-9, 10, shape).float() for shape in ((n, k), (k, m), (n, m)))
    bias, before = torch.randint(-9, 10, (m,)).float(), c.clone()
    factors = laid_out(a, left), laid_out(b, right)
    expected = (a.long() @ b.long()).float()
    assert torch.equal(products.exact(*factors), expected)
    assert torch.equal(products.exact(*factors, added=c), expected + c)
    assert torch.equal(products.exact(*factors, bias, times=c), (expected + bias) * c)
    assert torch.equal(products.exact(*factors, bias, added=c), expected + bias + c)
    assert torch.equal(c, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_keep_theirs(dtype: torch.dtype) -> None:
    a, b = torch.ones(64, 64, dtype=dtype), torch.ones(64, 64, dtype=dtype)
    assert torch.equal(product(a, b), torch.full((64, 64), 64, dtype=dtype))


@pytest.mark.parametrize(("n", "rows", "inner", "columns"), [(1, 64, 384, 512), (3, 96, 200, 130)])
def test_a_stack_of_products_is_the_products(n: int, rows: int, inner: int, columns: int) -> None:
    left, right = torch.randn(n, rows, inner), torch.randn(n, columns, inner).mT
    expected = (left.double() @ right.double()).float()
    for a, b in ((left, right), (left.mT.contiguous().mT, right.contiguous())):
        assert torch.allclose(products.stacked(a, b), expected, atol=1e-3)
    exact = products.stacked(left.double(), right.double())
    assert torch.allclose(exact, left.double() @ right.double())


def test_a_torch_without_the_private_call_is_served_by_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert products._onednn.__wrapped__() is None


@given(st.lists(st.integers(0, 3000), max_size=4))
def test_chunks_are_all_rows_in_order(lengths: list[int]) -> None:
    bounds = [0, *itertools.accumulate(lengths)]
    found = list(chunks(*bounds))
    for i, (start, end) in enumerate(itertools.pairwise(bounds)):
        rows = [row for which, some in found if which == i for row in range(some.start, some.stop)]
        assert rows == list(range(start, end))
    assert all(some.stop - some.start <= products.FEW for _, some in found)


@pytest.mark.skipif(products._onednn() is None, reason="no AVX-512")
def test_slides_of_any_length_ask_for_few_shapes() -> None:
    asked = set()

    class Spy:
        def __call__(self, rows: torch.Tensor, *rest: object) -> torch.Tensor:
            asked.add(len(rows))
            return torch.zeros(len(rows), 512)

    weight = torch.zeros(512, 512)
    with patch.object(products, "_onednn", return_value=Spy()), patch.object(products, "UNIT", 128):
        for n in range(1, 3000, 37):
            for _, some in chunks(0, n):
                product(torch.zeros(some.stop - some.start, 512), weight)
    assert asked <= set(range(128, 1025, 128))
