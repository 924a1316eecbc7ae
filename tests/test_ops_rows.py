"""Linear maps of many rows are `F.linear`, with its gradients, whichever library does them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wsizoo.ops import (
    RowLinear,
    RowSequential,
    map_rows,
    memory,
    products,
    row_linear,
    row_relu,
    rows,
    use_backend,
)


@pytest.fixture(params=["onednn", "mkl"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both take small products too; where the processor has no AVX-512, one of them is skipped."""
    if request.param == "mkl":
        monkeypatch.setattr(products, "_onednn", lambda: None)
    elif products._onednn() is None:
        pytest.skip("torch.mm is the faster one on this processor")
    monkeypatch.setattr(products, "SMALL", 0)
    monkeypatch.setattr(products, "UNIT", 4)
    monkeypatch.setattr(products, "ROWS", 16)  # so that there are several chunks
    monkeypatch.setattr(products, "FEW", 24)


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


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 30), k=st.integers(1, 9), m=st.integers(1, 9), biased=st.booleans())
def test_with_relu_it_is_the_two_with_their_gradients(n: int, k: int, m: int, biased: bool) -> None:
    leaves = [torch.randn(2, n, k), torch.randn(m, k), *([torch.randn(m)] if biased else [])]
    for leaf in leaves:
        leaf.requires_grad_()
    ours, theirs = row_relu(*leaves), F.relu(F.linear(*leaves))
    torch.testing.assert_close(ours, theirs)
    slope = torch.randn_like(theirs)
    found, wanted = (torch.autograd.grad(y, leaves, slope) for y in (ours, theirs))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("relu", [False, True])
def test_gradients_by_chunks_are_the_derivatives(relu: bool) -> None:
    leaves = [torch.randn(s, dtype=torch.float64) for s in ((30, 4), (3, 4), (3,))]
    for leaf in leaves:
        leaf.requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: map_rows(*x, relu=relu), leaves)


def test_dropout_drops_its_share_and_the_backward_pass_what_was_dropped() -> None:
    x, weight = torch.rand(300, 8, requires_grad=True), torch.rand(50, 8, requires_grad=True)
    torch.manual_seed(0)
    out = row_relu(x, weight, dropout=0.25)
    kept = (out != 0).float()
    assert float(kept.mean()) == pytest.approx(0.75, abs=0.02)
    assert float(kept.mean(0).std()) > 0.01  # values are drawn, not rows or columns
    assert float(kept.mean(1).std()) > 0.03
    plain = F.linear(x, weight) * kept / 0.75  # all are positive
    torch.testing.assert_close(out, plain)
    slope = torch.randn_like(out)
    found, wanted = (torch.autograd.grad(y, [x, weight], slope) for y in (out, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.equal(out, row_relu(x, weight, dropout=0.25))
    torch.manual_seed(0)
    assert torch.equal(out, row_relu(x, weight, dropout=0.25))
    assert row_relu(x, weight, dropout=1.0).count_nonzero() == 0


def stack_of(*extra: nn.Module) -> RowSequential:
    last = RowLinear(7, 5), nn.ReLU()
    return RowSequential(RowLinear(6, 7), nn.ReLU(inplace=True), nn.Dropout(0.5), *last, *extra)


def test_a_stack_is_nn_sequential_and_keeps_one_output_a_layer() -> None:
    stack, x = stack_of(nn.Tanh()), torch.randn(40, 6)
    plain = nn.Sequential(*stack)
    assert list(stack.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(stack.eval()(x), plain.eval()(x))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = stack.train()(x)
    others = {x.data_ptr(), *(p.data_ptr() for p in stack.parameters())}
    own = {t.data_ptr() for t in kept} - others
    assert len(own) == 3  # of two layers, and of the tanh
    assert out.shape == (40, 5)


def test_the_reference_of_a_stack_draws_as_its_modules_do() -> None:
    stack, x = stack_of(), torch.randn(40, 6)
    with use_backend("reference"):
        torch.manual_seed(3)
        found = stack(x)
        torch.manual_seed(3)
        assert torch.equal(found, nn.Sequential(*stack)(x))


def test_a_part_with_a_hook_or_of_another_class_is_called() -> None:
    class Low(RowLinear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) + 1

    stack, x = stack_of().eval(), torch.randn(9, 6)
    before, heard = stack(x), []
    stack[1].register_forward_hook(lambda *_: heard.append("relu"))
    torch.testing.assert_close(stack(x), before)
    assert heard == ["relu"]
    low = Low(6, 7)
    low.load_state_dict(stack[0].state_dict())
    stack[0] = low
    assert not torch.allclose(stack(x), before)


@pytest.mark.parametrize("nothing", [0, 0.0])
def test_dropout_of_nothing_may_be_a_whole_number(nothing: float) -> None:
    x, parts = torch.randn(40, 6, requires_grad=True), [RowLinear(6, 7), nn.ReLU()]
    stack, plain = RowSequential(*parts, nn.Dropout(nothing)), nn.Sequential(*parts)
    found, wanted = stack.train()(x), plain(x)
    torch.testing.assert_close(found, wanted)
    of_found, of_wanted = (torch.autograd.grad(y.sum(), x)[0] for y in (found, wanted))
    torch.testing.assert_close(of_found, of_wanted)


@pytest.mark.parametrize("run", [row_linear, row_relu])
def test_of_another_width_torch_itself_says_what_is_wrong(run: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied \(40x5 and 6x7\)"):
        run(torch.randn(40, 5), torch.randn(7, 6))


def test_a_part_whose_forward_was_replaced_is_called() -> None:
    stack, x = stack_of().eval(), torch.randn(9, 6)
    before, forward, heard = stack(x), stack[0].forward, []

    def replaced(rows: torch.Tensor) -> torch.Tensor:
        heard.append("linear")
        return forward(rows)

    stack[0].forward = replaced
    torch.testing.assert_close(stack(x), before)
    assert heard == ["linear"]
