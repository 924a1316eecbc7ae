"""The fused paths against the modules run one by one, in float64."""

import gc
import weakref

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from wsizoo_plugin_span import fused, fused_rows
from wsizoo_plugin_span.model import Span, SpanUNet

from wsizoo import Bag, BagBatch
from wsizoo.ops import products, use_backend

SLIDE = {"dim": 32, "head_dim": 16, "half_window": 2}
UNET = {"dim": 16, "head_dim": 8, "half_window": 2}
NETWORKS = {
    "defaults": (Span, SLIDE),
    "published": (Span, {**SLIDE, "compat": "published"}),
    "three global tokens": (Span, {**SLIDE, "tokens": ["max", "mean", "lrn"]}),
    "no global token": (Span, {**SLIDE, "tokens": [], "pooling": "addition"}),
    "all tokens read": (Span, {**SLIDE, "pooling": "multiattn"}),
    "shared q, k, v": (Span, {**SLIDE, "share_qkv": True}),
    "no shift, ALiBi": (Span, {**SLIDE, "attention": "long_noshift", "positions": "alibi"}),
    "no positions, two layers": (Span, {**SLIDE, "positions": "none", "layers": "22"}),
    "bias in the projection": (Span, {**SLIDE, "input_bias": True}),
    "one stage": (Span, {**SLIDE, "layers": "1", "pooling": "addition"}),
    "decoder": (SpanUNet, UNET),
    "published decoder": (SpanUNet, {**UNET, "compat": "published"}),
}


def bag_of(n, seed=0, edge=12):
    generator = torch.Generator().manual_seed(seed)
    at = torch.randperm(edge * edge, generator=generator)[:n]
    coords = torch.stack([at // edge, at % edge], 1) * 10
    features = torch.randn(n, 24, generator=generator, dtype=torch.float64)
    return Bag(features, coords, spacing=10.0, slide_id=f"S{seed}")


def network(kind, options, seed=0):
    torch.manual_seed(seed)
    made = kind(24, **options).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():  # biases and tables start at 0 or near
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def outputs(made, bags):
    found = made(bags[0]) if len(bags) == 1 else made.forward_packed(BagBatch.pack(bags))
    return found.slide if found.instances is None else found.instances


def gradients(made, bags):
    """Output, and the gradients of the features and of all parameters (None: unread)."""
    bags = [bag.replace(features=bag.features.clone().requires_grad_()) for bag in bags]
    made.zero_grad()
    found = outputs(made, bags)
    ramp = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view_as(found)
    (found * ramp).sum().backward()
    inputs = {f"features {i}": bag.features.grad for i, bag in enumerate(bags)}
    return found.detach(), {**inputs, **{n: p.grad for n, p in made.named_parameters()}}


@pytest.fixture
def runs(monkeypatch):
    """How many layers ran fused."""
    count = []
    run = fused.run
    monkeypatch.setattr(fused, "run", lambda *args: count.append(1) or run(*args))
    return count


@pytest.mark.parametrize("rows", [7, 1024])
@pytest.mark.parametrize("sizes", [(60,), (1,), (2,), (40, 3, 75)])
@pytest.mark.parametrize("name", NETWORKS)
def test_values_and_gradients_are_those_of_the_modules(name, sizes, rows, runs, monkeypatch):
    monkeypatch.setattr(products, "ROWS", rows)
    monkeypatch.setattr(products, "FEW", rows)
    made, bags = network(*NETWORKS[name]), [bag_of(n, i) for i, n in enumerate(sizes)]
    mine, my_slopes = gradients(made, bags)
    assert runs
    done = len(runs)
    with use_backend("reference"):
        theirs, their_slopes = gradients(made, bags)
    assert len(runs) == done, "the reference is the modules one by one"
    assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-11)
    for key in their_slopes:
        got, expected = (
            torch.zeros(()) if slopes[key] is None else slopes[key]
            for slopes in (my_slopes, their_slopes)
        )
        assert (got - expected).abs().max() <= 1e-9 * (1 + expected.abs().max()), key


@pytest.mark.parametrize("name", ["defaults", "published decoder", "three global tokens"])
def test_rows_kept_or_not_and_either_library_give_the_same_in_float32(name, monkeypatch):
    """Sizes at which oneDNN is asked, where this processor has it."""
    made, bags = network(*NETWORKS[name]).float(), [bag_of(n, i) for i, n in enumerate((140, 90))]
    bags = [bag.replace(features=bag.features.float()) for bag in bags]
    monkeypatch.setattr(products, "SMALL", 0)
    mine, my_slopes = gradients(made, bags)
    monkeypatch.setattr(fused_rows, "KEPT", 0)
    monkeypatch.setattr(products, "_onednn", lambda: None)
    theirs, their_slopes = gradients(made, bags)
    assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    for key, expected in their_slopes.items():
        if expected is not None:
            gap = (my_slopes[key] - expected).abs().max()
            assert gap <= 1e-4 * (1 + expected.abs().max()), key


def test_parameters_that_a_head_leaves_unread_get_gradients_of_zero():
    """As in the published training, where weight decay moves them like all others."""
    made = network(Span, SLIDE)
    _, slopes = gradients(made, [bag_of(50)])
    last = "encoder.stages.2.layers.0."
    for name in ("q1.weight", "k1.bias", "v1.weight", "table"):
        assert torch.equal(slopes[last + name], torch.zeros_like(slopes[last + name]))


def test_gradients_under_dropout_are_those_of_what_was_kept():
    """The same draws at two points: a directional derivative."""
    options = {**SLIDE, "attention_dropout": 0.3, "input_dropout": 0.2, "tokens": ["lrn", "mean"]}
    made, bag = network(Span, {**options, "pool_dropout": 0.1}).train(), bag_of(70)
    ways = [torch.randn_like(p) for p in made.parameters()]

    def value(step):
        """The total so far along the way, and the gradients there."""
        with torch.no_grad():
            for parameter, way in zip(made.parameters(), ways, strict=True):
                parameter.add_(way, alpha=step)
        torch.manual_seed(5)
        total = (outputs(made, [bag]) * torch.linspace(-1, 1, 32, dtype=torch.float64)).sum()
        slopes = torch.autograd.grad(total, list(made.parameters()))
        with torch.no_grad():
            for parameter, way in zip(made.parameters(), ways, strict=True):
                parameter.sub_(way, alpha=step)
        return total.item(), slopes

    slopes = value(0)[1]
    along = sum(float((s * w).sum()) for s, w in zip(slopes, ways, strict=True))
    assert (value(1e-6)[0] - value(-1e-6)[0]) / 2e-6 == pytest.approx(along, rel=1e-6)


def test_dropout_keeps_the_mean_of_a_projection():
    torch.manual_seed(0)
    features, weight = torch.ones(2000, 8), torch.ones(64, 8) / 8
    kept = fused_rows.project(features, weight, None, 0.25)
    assert float(kept.mean()) == pytest.approx(1, abs=0.01)
    assert kept.unique().tolist() == [0, pytest.approx(4 / 3)]


def test_a_graph_can_be_walked_twice():
    made, bag = network(Span, {**SLIDE, "tokens": ["lrn", "max"]}), bag_of(50)
    total = outputs(made, [bag]).sum()
    first = torch.autograd.grad(total, list(made.parameters()), retain_graph=True)
    second = torch.autograd.grad(total, list(made.parameters()))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_a_step_that_is_not_walked_back_leaves_nothing_behind():
    made, bag = network(Span, SLIDE), bag_of(50)
    gc.collect()
    gc.disable()
    try:
        found = made.encoder(bag.features, made_pyramid(made, bag))[0].tokens
        gone = weakref.ref(found)
        del found
        assert gone() is None
    finally:
        gc.enable()


def made_pyramid(made, bag):
    from wsizoo_plugin_span.cells import cells_of
    from wsizoo_plugin_span.pyramid import build

    return build([cells_of(bag)], made.settings.plan)


@pytest.mark.parametrize(
    "options",
    [{"positions": "rope"}, {"activation": "gelu"}, {"attention": "swin", "pooling": "multiattn"}],
)
def test_layers_with_other_parts_run_as_modules(options, runs):
    outputs(network(Span, {**SLIDE, **options}), [bag_of(30)])
    assert not runs


class LowRank(torch.nn.Linear):
    """A linear map with something added, as adapters are."""

    def forward(self, x):
        return super().forward(x) + x.sum(-1, keepdim=True)


def test_parts_that_are_more_than_their_weights_are_called(runs):
    made, bag = network(Span, {**SLIDE, "layers": "1", "pooling": "addition"}), bag_of(30)
    layer = made.encoder.stages[0].layers[0]
    plain = outputs(made, [bag])
    assert runs.pop()
    heard = []
    handle = layer.q1.register_forward_hook(lambda *args: heard.append(1))
    assert torch.allclose(outputs(made, [bag]), plain)
    assert heard
    handle.remove()
    layer.k1.forward = torch.zeros_like
    assert not torch.allclose(outputs(made, [bag]), plain)
    del layer.k1.forward
    low = LowRank(32, 32).double()
    low.load_state_dict(layer.v1.state_dict())
    layer.v1 = low
    assert not torch.allclose(outputs(made, [bag]), plain)
    assert not runs


def test_hooks_on_projection_and_pooling_are_heard():
    made, heard = network(Span, SLIDE), []
    slots = [stage.slot.block for stage in made.encoder.stages]
    slots[0].first.register_forward_hook(lambda *args: heard.append("projection"))
    slots[1].input_norm.register_forward_pre_hook(lambda *args: heard.append("pooling"))
    outputs(made, [bag_of(30)])
    assert heard == ["projection", "pooling"]


def test_functions_of_torch_func_see_the_modules(runs):
    made, bag = network(Span, SLIDE), bag_of(30)
    parameters = dict(made.named_parameters())

    def total(parameters):
        return torch.func.functional_call(made, parameters, (bag,)).slide.sum()

    slopes = torch.func.grad(total)(parameters)
    assert not runs
    outputs(made, [bag]).sum().backward()
    assert runs
    for name, parameter in parameters.items():
        assert torch.allclose(slopes[name], parameter.grad, atol=1e-9), name


def test_frozen_parameters_cost_no_gradient():
    made, bags = network(Span, {**SLIDE, "tokens": ["lrn", "max"]}), [bag_of(50), bag_of(20, 1)]
    _, expected = gradients(made, bags)
    for name, parameter in made.named_parameters():
        parameter.requires_grad_("norm" in name or name.endswith("k1.bias"))
    _, slopes = gradients(made, bags)
    for name, parameter in made.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(slopes[name], expected[name], atol=1e-12), name
        else:
            assert slopes[name] is None


def test_half_precision_and_autocast_run_as_modules(runs):
    made, bag = network(Span, SLIDE).float(), bag_of(30)
    with torch.autocast("cpu", torch.bfloat16):
        outputs(made, [bag])
    made.bfloat16()
    assert outputs(made, [bag]).dtype == torch.bfloat16
    assert not runs


def test_layers_that_drop_elsewhere_run_as_modules_in_training_only(runs):
    made = network(Span, {**SLIDE, "dropout": 0.1})
    outputs(made.train(), [bag_of(30)])
    assert not runs
    outputs(made.eval(), [bag_of(30)])
    assert runs


def test_second_derivatives_are_the_references_alone():
    made, bag = network(Span, SLIDE), bag_of(30)
    bag = bag.replace(features=bag.features.clone().requires_grad_())
    bias = made.encoder.stages[0].layers[0].q1.bias

    def walk_twice():
        value = outputs(made, [bag]).square().sum()
        (slope,) = torch.autograd.grad(value, bag.features, create_graph=True)
        made.zero_grad()
        slope.square().sum().backward()
        return slope.square().sum().detach()

    with pytest.raises(RuntimeError, match="once_differentiable"):
        walk_twice()
    with use_backend("reference"), sdpa_kernel(SDPBackend.MATH):
        before, slope = walk_twice(), bias.grad.clone()
        step = 1e-4 * slope / slope.norm()
        with torch.no_grad():
            bias.add_(step)
        assert float(walk_twice() - before) == pytest.approx(float((slope * step).sum()), rel=1e-2)


def test_scores_are_those_of_the_weights_when_they_are_first_read():
    made, bag = network(Span, SLIDE), bag_of(30)
    early, late = made(bag), made(bag)
    before = early.scores
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    assert early.scores is before
    assert not torch.allclose(late.scores, before)
    assert float(late.scores.sum()) == pytest.approx(1)
