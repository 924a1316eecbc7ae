import functools
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wsizoo.errors import BackendError, DataError
from wsizoo.ops import _numba, scan_chunked, selective_scan
from wsizoo.testing import check_op_backend

BACKENDS = ["chunked", "numba"]
EVERY = ["reference", *BACKENDS]
PARTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def inputs(
    lengths: Sequence[int],
    e: int = 5,
    n: int = 3,
    reverse: bool = False,
    plain: bool = False,
    seed: int = 0,
) -> list[Any]:
    """Arguments of the op; `plain`: one sequence, and nothing that may be left out."""
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    t = sum(lengths)
    u, delta, a, b, c = draw(t, e), draw(t, e), draw(e, n), draw(t, n), draw(t, n)
    if plain:
        return [u, delta.abs(), -a.exp(), b, c]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return [u, delta, -a.exp(), b, c, draw(e), draw(t, e), draw(e), True, offsets, reverse]


def ready(backend: str) -> str:
    """Skip where the backend cannot run."""
    found = {each.name: each for each in selective_scan.backends()}.get(backend)
    if found is not None and (reason := selective_scan.why_not(found)) is not None:
        pytest.skip(reason)
    return backend


SIZES = [
    functools.partial(inputs, [0]),
    functools.partial(inputs, [1], 1, 1),
    functools.partial(inputs, [70], plain=True),
    functools.partial(inputs, [0, 1, 9, 0, 130, 1, 1], 6, 16),
    functools.partial(inputs, [0, 1, 9, 0, 130, 1, 1], 6, 16, True),
    functools.partial(inputs, [300, 215, 3], 33, 20, True),
]


def test_segments_compute_what_the_definition_computes() -> None:
    kinds = [torch.float64, torch.float32, torch.bfloat16]
    check_op_backend(selective_scan, "chunked", *SIZES, dtypes=kinds)


def test_kernels_compute_what_the_definition_computes() -> None:
    check_op_backend(selective_scan, "numba", *SIZES, dtypes=[torch.float32, torch.bfloat16])


def test_threads_and_spans_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_numba, "WORTH", 1)
    monkeypatch.setattr(_numba, "SPAN", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    check_op_backend(selective_scan, "numba", *SIZES, functools.partial(inputs, [600], 48, 16))


def test_few_segments_in_a_block_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_chunked, "STEPS", 4)
    for block in (1, 1 << 9):
        monkeypatch.setattr(scan_chunked, "BLOCK", block)
        check_op_backend(selective_scan, "chunked", *SIZES, dtypes=[torch.float64])


LENGTHS = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 90)), min_size=1, max_size=5)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.integers(1, 7), st.integers(1, 17), st.booleans(), st.integers(0, 99))
def test_any_lengths_agree(
    backend: str, lengths: list[int], e: int, n: int, reverse: bool, seed: int
) -> None:
    make = functools.partial(inputs, lengths, e, n, reverse, seed=seed)
    check_op_backend(selective_scan, ready(backend), make)


@pytest.mark.parametrize("backend", EVERY)
def test_it_is_the_recurrence(backend: str) -> None:
    """Two steps by hand: one channel, one state."""
    u, delta, b, c = (torch.tensor([x]).t() for x in ([2.0, 3], [0.5, 1], [1.0, 4], [5.0, -1]))
    y, last = selective_scan.on(ready(backend))(u, delta, torch.tensor([[-1.0]]), b, c)
    first = 0.5 * 2 * 1
    second = torch.exp(torch.tensor(-1.0)) * first + 1 * 3 * 4
    torch.testing.assert_close(y, torch.stack([torch.tensor(first * 5), -second])[:, None])
    torch.testing.assert_close(last, second.reshape(1, 1, 1))


@pytest.mark.parametrize("backend", EVERY)
def test_packed_sequences_do_not_see_each_other(backend: str) -> None:
    run, lengths = selective_scan.on(ready(backend)), [3, 0, 1, 40]
    for reverse in (False, True):
        u, delta, a, b, c, d, z, bias, softplus, offsets, _ = inputs(lengths, reverse=reverse)
        y, last = run(u, delta, a, b, c, d, z, bias, softplus, offsets, reverse)
        for i, (start, end) in enumerate(itertools.pairwise(offsets)):
            rows = slice(int(start), int(end))
            if end > start:
                own = (x[rows] for x in (u, delta, b, c, z))
                u1, delta1, b1, c1, z1 = own
                alone = run(u1, delta1, a, b1, c1, d, z1, bias, softplus, reverse=reverse)
                torch.testing.assert_close(y[rows], alone[0])
                torch.testing.assert_close(last[i], alone[1][0])
            else:
                assert not last[i].any()


@pytest.mark.parametrize("backend", EVERY)
def test_reverse_is_the_flipped_sequence(backend: str) -> None:
    run = selective_scan.on(ready(backend))
    u, delta, a, b, c, d, z, bias, softplus, _, _ = inputs([50])
    y, last = run(u, delta, a, b, c, d, z, bias, softplus, reverse=True)
    flipped = (x.flip(0) for x in (u, delta, b, c, z))
    u, delta, b, c, z = flipped
    expected = run(u, delta, a, b, c, d, z, bias, softplus)
    torch.testing.assert_close(y, expected[0].flip(0))
    torch.testing.assert_close(last, expected[1])


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("scale", [60.0, 1e4, 1e30])
def test_extreme_steps_stay_finite(backend: str, scale: float) -> None:
    """A huge dt forgets all that was, a tiny one forgets and adds nothing; neither gives a NaN."""
    args = inputs([64], 6, 16)
    args[1] = torch.where(args[1] > 0, scale, -scale)
    args[0] = args[0] / scale
    leaves = [x.requires_grad_() for x in args if isinstance(x, Tensor) and x.is_floating_point()]
    y, last = selective_scan.on(ready(backend))(*args)
    for found in (y, last, *torch.autograd.grad(y.sum(), leaves)):
        assert torch.isfinite(found).all()


@pytest.mark.parametrize("backend", EVERY)
def test_a_nan_is_not_hidden(backend: str) -> None:
    for name in ("u", "delta", "B"):
        args = inputs([20], plain=True)
        args[PARTS.index(name)][7, 0] = torch.nan
        y, _ = selective_scan.on(ready(backend))(*args)
        assert torch.isfinite(y[:7]).all() and torch.isnan(y[7]).any()


@pytest.mark.parametrize("backend", EVERY)
def test_the_last_state_has_no_gradient(backend: str) -> None:
    args = inputs([9])
    args[0].requires_grad_()
    y, last = selective_scan.on(ready(backend))(*args)
    assert y.requires_grad and not last.requires_grad


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_of_the_definition_are_right(reverse: bool) -> None:
    args = [
        x.double().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
        for x in inputs([3, 0, 4], 2, 2, reverse)
    ]
    assert torch.autograd.gradcheck(lambda *x: selective_scan.on("reference")(*x)[0], args)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_that_need_no_gradient_get_none(backend: str) -> None:
    args = inputs([30])
    args[0].requires_grad_()
    y, _ = selective_scan.on(ready(backend))(*args)
    (slope,) = torch.autograd.grad(y.sum(), [args[0]])
    assert bool(slope.abs().sum() > 0)


@pytest.mark.parametrize("backend", EVERY)
def test_arguments_that_do_not_fit_are_errors(backend: str) -> None:
    run, args = selective_scan.on(ready(backend)), inputs([9])
    with pytest.raises(DataError, match=r"u \(9,\) and A \(5, 3\), expected \(rows, channels\)"):
        run(args[0][:, 0], *args[1:])
    for at, wrong, expected in (
        (1, args[1][1:], r"delta \(8, 5\) for u \(9, 5\) and 3 states, expected \(9, 5\)"),
        (2, args[2][1:], r"A \(4, 3\) .* expected \(5, 3\)"),
        (4, args[4][:, 1:], r"C \(9, 2\) .* expected \(9, 3\)"),
        (7, args[7][1:], r"delta_bias \(4,\) .* expected \(5,\)"),
    ):
        with pytest.raises(DataError, match=f"selective_scan got {expected}"):
            run(*args[:at], wrong, *args[at + 1 :])
    for bad in ([0, 8], [1, 9], [0, 5, 3, 9], []):
        with pytest.raises(DataError, match=r"selective_scan got offsets .* rise from 0 to 9"):
            run(*args[:9], torch.tensor(bad, dtype=torch.int64), False)


def test_numba_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_numba, "_installed", lambda: True)
    for u, message in (
        (torch.zeros(4, 5).double(), "tensors are float64"),
        (torch.zeros(4, 5, device="meta"), "tensors are on meta"),
    ):
        assert message in str(_numba.why_not(u))
    monkeypatch.setattr(_numba, "_installed", lambda: False)
    assert 'pip install "wsizoo[scan]"' in str(_numba.why_not())
    with pytest.raises(BackendError, match="cannot run on 'numba': without numba"):
        selective_scan.on("numba")(*inputs([4]))
    assert torch.isfinite(selective_scan(*inputs([4]))[0]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_keeps_few_of_the_states(backend: str) -> None:
    args, kept = inputs([600], 512, 16), {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    leaves = [x.requires_grad_() for x in args if isinstance(x, Tensor) and x.is_floating_point()]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        y, _ = selective_scan.on(ready(backend))(*args)
    for x in (*leaves, args[9]):
        assert kept.pop(x.untyped_storage().data_ptr()) == x.untyped_storage().nbytes()
    assert 0 < sum(kept.values()) < 0.1 * y.nbytes * 16


@pytest.mark.parametrize("backend", EVERY)
def test_autocast_changes_nothing(backend: str) -> None:
    args, run = inputs([40]), selective_scan.on(ready(backend))
    leaves = [x.requires_grad_() for x in args if isinstance(x, Tensor) and x.is_floating_point()]

    def found() -> list[Tensor]:
        y, last = run(*args)
        return [y, last, *torch.autograd.grad(y.sum(), leaves)]

    plain = found()
    with torch.autocast("cpu", torch.bfloat16):
        cast = found()
    for a, b in zip(plain, cast, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_nan_stays_in_its_sequence(
    backend: str, reverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In values and in gradients of what belongs to a step; those of A see all sequences."""
    monkeypatch.setattr(scan_chunked, "STEPS", 4)
    for name in ("u", "delta", "B", "C", "z"):
        args = inputs([3, 19, 30], 4, 16, reverse)
        args[PARTS.index(name)][10, 0] = torch.nan
        steps = [args[PARTS.index(part)].requires_grad_() for part in ("u", "delta", "B", "C", "z")]
        y, last = selective_scan.on(ready(backend))(*args)
        y.sum().backward()
        for found in (y, *(step.grad for step in steps)):
            assert torch.isfinite(found[:3]).all() and torch.isfinite(found[22:]).all()
        assert torch.isfinite(last[[0, 2]]).all() and torch.isnan(y[3:22]).any()


@pytest.mark.parametrize("backend", EVERY)
def test_a_step_that_takes_no_time_changes_nothing(backend: str) -> None:
    args = inputs([24], 5, 16)
    args[1][[0, 5, 23]] = -torch.inf
    args[1].requires_grad_()
    y, _ = selective_scan.on(ready(backend))(*args)
    y.sum().backward()
    expected, _ = selective_scan.reference(*args)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(args[1].grad[[0, 5, 23]], torch.zeros(3, 5))
