"""Attention in tiles is torch's, whatever the sizes; its dropout is drawn again in backward."""

import functools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wsizoo.errors import BackendError, DataError
from wsizoo.ops import attention, products, tiled, use_backend
from wsizoo.testing import check_op_backend

TILED = attention.on("tiled")


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pairs take tiles too."""
    monkeypatch.setattr(tiled, "FEW", 0)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles so small that several are crossed, all of their products by the library for large."""
    monkeypatch.setattr(tiled, "KEYS", 8)
    monkeypatch.setattr(tiled, "QUERIES", 8)
    monkeypatch.setattr(tiled, "UNIT", 4)
    monkeypatch.setattr(products, "SMALL", 0)


def rows(m: int, n: int, *lead: int, d: int = 6, e: int = 5, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(m * n)
    shapes = (m, d), (n, d), (n, e)
    q, k, v = (torch.randn(*(lead or (2,)), *s, generator=generator) for s in shapes)
    return [q * scale, k * scale, v]


def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v


def seeded(run: Any, dropout: float, *args: Tensor) -> Tensor:
    torch.manual_seed(1)
    found: Tensor = run(*args, dropout)
    return found


SIZES = [
    functools.partial(rows, 1, 1),
    functools.partial(rows, 3, 700),
    functools.partial(rows, 300, 1300),
    functools.partial(rows, 700, 3, 2, 3),
    functools.partial(rows, 130, 2100, scale=9.0),
]


def test_tiles_compute_what_the_definition_computes() -> None:
    check_op_backend(attention, "tiled", *SIZES, dtypes=[torch.float64, torch.float32])


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    shift=st.sampled_from([0.0, -200.0]),
)
def test_all_sizes_cross_tiles(m: int, n: int, scale: float, shift: float) -> None:
    q, k, v = (x.double() for x in rows(m, n, scale=scale))
    q[..., 0], k[..., 0] = scale, shift  # all scores are far below 0
    leaves = [x.requires_grad_() for x in (q, k, v)]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"KEYS": 8, "QUERIES": 8, "UNIT": 4, "FEW": 0}.items():
            patch.setattr(tiled, name, value)
        ours, theirs = TILED(*leaves), explicit(*leaves)
        slope = torch.randn_like(ours)
        found, wanted = (torch.autograd.grad(y, leaves, slope) for y in (ours, theirs))
    torch.testing.assert_close((ours, *found), (theirs, *wanted), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("n", [5, 17])  # keys of one tile, and of three
@pytest.mark.parametrize("dropout", [0.0, 0.25, 0.1])
def test_gradients_are_of_the_weights_that_were_drawn(small: None, n: int, dropout: float) -> None:
    leaves = [x.double().requires_grad_() for x in rows(11, n, d=3, e=2)]
    assert torch.autograd.gradcheck(functools.partial(seeded, TILED, dropout), leaves)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_in_float32_too(small: None, dropout: float) -> None:
    leaves = [x.requires_grad_() for x in rows(19, 21)]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    ours, theirs = (seeded(TILED, dropout, *x) for x in (leaves, exact))
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)
    slope = torch.randn_like(theirs)
    found = torch.autograd.grad(ours, leaves, slope.float())
    wanted = torch.autograd.grad(theirs, exact, slope)
    torch.testing.assert_close([x.double() for x in found], list(wanted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.25, 0.1])
def test_as_large_a_share_is_dropped_as_is_said(dropout: float) -> None:
    n = 1024
    q, v = torch.zeros(1, n, 2), torch.eye(n)[None]  # so that the output is the weights
    kept = seeded(TILED, dropout, q, q, v)[0] * n
    assert float((kept > 0).float().mean()) == pytest.approx(1 - dropout, abs=0.002)
    scale = kept[kept > 0]
    assert float(scale.mean()) == pytest.approx(1 / (1 - dropout), rel=1e-3)
    assert float(scale.std()) < 1e-3
    by_key, by_query = ((kept > 0).float().mean(axis) for axis in (0, 1))
    spread = math.sqrt(dropout * (1 - dropout) / n)
    for share in (by_key, by_query):
        assert float(share.std()) == pytest.approx(spread, rel=0.1)


def test_scores_that_need_no_largest_one_are_not_made_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    exact = tiled.exact
    monkeypatch.setattr(tiled, "exact", lambda *a, **k: asked.append(1) or exact(*a, **k))
    counts = []
    for scale in (1.0, 100.0):
        TILED(*rows(4, 4, 1, scale=scale))
        counts.append(len(asked))
        asked.clear()
    assert counts == [2, 3]


def test_what_is_not_finite_is_not_finite() -> None:
    q, k, v = rows(4, 4)
    k[0, 1] = torch.nan
    assert bool(TILED(q, k, v)[0].isnan().all())
    assert bool(TILED(q, k, v)[1].isfinite().all())


def test_nothing_of_pairs_is_kept_and_of_few_keys_no_output() -> None:
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    for n, expected in ((2000, 5), (300, 4)):
        kept.clear()
        leaves = [x.requires_grad_() for x in rows(2000, n, 1, d=4, e=4)]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            TILED(*leaves, 0.25)
        assert (len(kept), max(kept)) == (expected, 2000 * 4)


def test_heads_of_a_row_lie_side_by_side() -> None:
    qkv = torch.randn(70, 3, 2, 4, requires_grad=True)
    out = TILED(*(x.transpose(0, 1) for x in qkv.unbind(1)))
    assert out.transpose(0, 1).is_contiguous()
    out.add_(1).sum().backward()  # in place too
    assert qkv.grad is not None


def test_the_gradient_that_comes_in_stays_as_it_is(small: None) -> None:
    leaves = [x.requires_grad_() for x in rows(12, 12, 1)]
    out = TILED(*leaves, 0.25)
    slope = torch.randn_like(out)
    before = slope.clone()
    torch.autograd.grad(out, leaves, slope)
    assert torch.equal(slope, before)


def test_whoever_cannot_take_tiles_gets_torchs_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = rows(6, 7)
    expected = explicit(q, k, v)
    torch.testing.assert_close(
        torch.func.vmap(attention)(q[:, None], k[:, None], v[:, None])[:, 0], expected
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(q, k, v).shape == expected.shape
    with use_backend("reference"):
        torch.testing.assert_close(attention(q, k, v), expected)
    for args, reason in (
        ([x.bfloat16() for x in (q, k, v)], "it takes float32 and float64"),
        ([x.to("meta") for x in (q, k, v)], "it runs on CPUs only"),
    ):
        with pytest.raises(BackendError, match=f"cannot run on 'tiled': {reason}"):
            TILED(*args)
    monkeypatch.setattr(tiled, "FEW", 43)
    with pytest.raises(BackendError, match="cannot run on 'tiled': of fewer than 43 pairs"):
        TILED(q, k, v)


def test_what_does_not_fit_together_is_refused() -> None:
    q, k, v = rows(6, 7)
    for wrong in ([q[0], k[0], v[0]], [q, k[:1], v], [q, k[..., :3], v], [q, k, v[:, :3]]):
        for run in (attention, TILED):
            with pytest.raises(DataError, match=r"attention got q \(.*expected \(heads, m, d\)"):
                run(*wrong)
    with pytest.raises(DataError, match="attention got dropout 1, expected a share below 1"):
        attention(q, k, v, 1)
