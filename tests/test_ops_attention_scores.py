"""The network that scores patches: its numbers and gradients by chunks are those of its modules."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from wsizoo.ops import RowLinear, attention_scores, products, use_backend
from wsizoo.ops.attention_scores import map_scores

Layers = tuple[nn.Linear, nn.Linear | None, nn.Linear]


@pytest.fixture(params=["onednn", "mkl"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both take small products too, in several chunks."""
    if request.param == "mkl":
        monkeypatch.setattr(products, "_onednn", lambda: None)
    elif products._onednn() is None:
        pytest.skip("torch.mm is the faster one on this processor")
    for name, value in {"SMALL": 0, "UNIT": 4, "ROWS": 16, "FEW": 24}.items():
        monkeypatch.setattr(products, name, value)


def layers_of(
    e: int, a: int, k: int = 1, gated: bool = True, biased: bool = True, **options: torch.dtype
) -> Layers:
    value, gate = (RowLinear(e, a, biased, **options) for _ in range(2))
    return value, gate if gated else None, nn.Linear(a, k, biased, **options)


def leaves_of(layers: Layers, *more: Tensor) -> list[Tensor]:
    return [*more, *(p for layer in layers if layer is not None for p in layer.parameters())]


SIZES = st.integers(1, 9)


@settings(max_examples=40, deadline=None)
@given(
    *(st.integers(1, 60), SIZES, SIZES, st.integers(1, 3), st.booleans(), st.booleans()),
    st.sampled_from([torch.tanh, torch.relu, nn.functional.gelu]),
)
def test_scores_and_gradients_are_those_of_the_modules(
    n: int, e: int, a: int, k: int, gated: bool, biased: bool, activation: Callable[..., Tensor]
) -> None:
    layers, h = layers_of(e, a, k, gated, biased), torch.randn(n, e, requires_grad=True)
    ours = attention_scores(h, *layers, None, activation)
    with use_backend("reference"):
        theirs = attention_scores(h, *layers, None, activation)
    assert ours.shape == (n, k)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    slope, leaves = torch.randn_like(ours), leaves_of(layers, h)
    found, wanted = (torch.autograd.grad(y, leaves, slope) for y in (ours, theirs))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(attention_scores(h, *layers, None, activation), ours)


@pytest.mark.parametrize("gated", [True, False])
def test_gradients_by_chunks_are_the_derivatives(gated: bool) -> None:
    layers = layers_of(4, 3, 2, gated, dtype=torch.float64)
    h = torch.randn(30, 4, dtype=torch.float64, requires_grad=True)

    def run(*_: Tensor) -> Tensor:
        return map_scores(h, *layers, 0.0, torch.tanh)

    assert torch.autograd.gradcheck(run, leaves_of(layers, h))


@pytest.mark.parametrize(("gated", "share"), [(True, 0.75**2), (False, 0.75)])
@pytest.mark.parametrize("activation", [torch.tanh, torch.relu])
def test_dropout_drops_its_share_and_the_backward_pass_what_was_dropped(
    gated: bool, share: float, activation: Callable[..., Tensor]
) -> None:
    torch.manual_seed(0)
    value, gate, _ = layers_of(8, 40, gated=gated)
    value.weight.data.abs_()  # a ReLU lets all pass
    value.bias.data.abs_()
    shown = nn.Linear(40, 40)  # the scores are the hidden values themselves
    with torch.no_grad():
        shown.weight.copy_(torch.eye(40))
        shown.bias.zero_()
    h, drop = torch.rand(300, 8, requires_grad=True), nn.Dropout(0.25)
    out = attention_scores(h, value, gate, shown, drop, activation)
    kept = (out != 0).float()
    assert float(kept.mean()) == pytest.approx(share, abs=0.02)
    hidden = activation(value(h)) * (1 if gate is None else torch.sigmoid(gate(h)))
    theirs = shown(hidden * kept / share)
    torch.testing.assert_close(out, theirs, rtol=1e-4, atol=1e-5)
    slope, leaves = torch.randn_like(out), leaves_of((value, gate, shown), h)
    found, wanted = (torch.autograd.grad(y, leaves, slope) for y in (out, theirs))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        again = attention_scores(h, value, gate, shown, drop.eval(), activation)
    torch.testing.assert_close(again * kept / share, out, rtol=1e-4, atol=1e-5)
    drop.train().p = 1.0
    assert attention_scores(h, value, gate, shown, drop, activation).count_nonzero() == 0


def test_nothing_of_the_width_of_the_network_is_kept_but_two() -> None:
    layers, h = layers_of(6, 5), torch.randn(40, 6)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        attention_scores(h, *layers, nn.Dropout(0.5))
    assert sum(t.shape == (40, 5) for t in kept) == 2
    kept.clear()
    with torch.no_grad():
        attention_scores(h, *layers)
    assert kept == []


def test_frozen_layers_get_no_gradient() -> None:
    layers, h = layers_of(6, 5), torch.randn(40, 6)
    layers[0].requires_grad_(False)
    attention_scores(h, *layers).sum().backward()
    assert layers[0].weight.grad is None and layers[1].weight.grad is not None


def test_whoever_looks_at_single_parts_sees_them_called() -> None:
    layers, h, heard = layers_of(6, 5), torch.randn(40, 6), []
    before = attention_scores(h, *layers)
    layers[1].register_forward_hook(lambda *_: heard.append("gate"))
    torch.testing.assert_close(attention_scores(h, *layers), before)
    assert heard == ["gate"]
    with torch.autocast("cpu", torch.bfloat16):
        assert attention_scores(h, *layers).dtype == torch.bfloat16
    mapped = torch.func.vmap(lambda r: attention_scores(r[None], *layers)[0])(h)
    torch.testing.assert_close(mapped, before)


def test_a_part_whose_forward_was_replaced_is_called() -> None:
    layers, h = layers_of(6, 5), torch.randn(40, 6)
    layers[0].forward = lambda rows: torch.zeros(len(rows), 5)
    torch.testing.assert_close(attention_scores(h, *layers), layers[2].bias.expand(40, 1))


@pytest.mark.parametrize("gated", [True, False])
def test_dropout_of_nothing_may_be_a_whole_number(gated: bool) -> None:
    layers, h = layers_of(6, 5, gated=gated), torch.randn(40, 6)
    found = attention_scores(h, *layers, nn.Dropout(0))
    assert torch.equal(found, attention_scores(h, *layers))
    found.sum().backward()


@pytest.mark.parametrize("wrong", ["rows", "gate", "score"])
def test_of_another_width_torch_itself_says_what_is_wrong(wrong: str) -> None:
    (value, gate, score), h = layers_of(6, 5), torch.randn(40, 6)
    h = h[:, :4] if wrong == "rows" else h
    gate = RowLinear(7, 5) if wrong == "gate" else gate
    score = nn.Linear(3, 1) if wrong == "score" else score
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        attention_scores(h, value, gate, score)
