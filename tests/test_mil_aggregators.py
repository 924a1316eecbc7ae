from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wsizoo
from wsizoo.bag import Bag, BagBatch
from wsizoo.interfaces import Aggregator
from wsizoo.mil.abmil import ABMIL
from wsizoo.mil.pooling import MaxPooling, MeanPooling

MAKERS: dict[str, Any] = {
    "mean": lambda: MeanPooling(6, 5),
    "mean-of-features": lambda: MeanPooling(6, None),
    "max": lambda: MaxPooling(6, 5),
    "abmil": lambda: ABMIL(6, 5, 4),
    "abmil-plain": lambda: ABMIL(6, 5, 4, gated=False),
    "abmil-deep": lambda: ABMIL(6, 5, 4, hidden=(8,), standardise=True),
}


@pytest.fixture(params=MAKERS)
def aggregator(request: pytest.FixtureRequest) -> Aggregator:
    torch.manual_seed(0)
    made: Aggregator = MAKERS[request.param]()
    return made.eval()


def bag(n: int, seed: int = 0) -> Bag:
    return Bag(torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)))


def filled(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value


def test_packed_slides_give_the_same_as_one_by_one(aggregator: Aggregator) -> None:
    bags = [bag(n, seed=n) for n in (1, 7, 30)]
    assert aggregator.forward_packed is not None
    packed, singles = aggregator.forward_packed(BagBatch.pack(bags)), [aggregator(b) for b in bags]
    for field in ("slide", "scores", "instances"):
        join = torch.stack if field == "slide" else torch.cat
        expected = join([filled(getattr(single, field)) for single in singles])
        torch.testing.assert_close(getattr(packed, field), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gated", [True, False])
def test_large_packed_slides_agree_in_bfloat16(gated: bool) -> None:
    torch.manual_seed(0)
    module = ABMIL(6, 5, 4, gated=gated).eval().bfloat16()
    bags = [bag(n, seed=n).to(dtype=torch.bfloat16) for n in (5000, 3, 7000)]
    packed, singles = module.forward_packed(BagBatch.pack(bags)), [module(b) for b in bags]
    slide = torch.stack([filled(single.slide) for single in singles])
    scores = torch.cat([filled(single.scores) for single in singles])
    torch.testing.assert_close(filled(packed.slide), slide, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(filled(packed.scores), scores, rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize("maker", [MeanPooling, MaxPooling])
def test_pooling_one_slide_equals_the_packed_op_with_its_gradient(maker: Any) -> None:
    torch.manual_seed(0)
    module = maker(6, None)
    slopes = []
    for packed in (False, True):
        features = bag(9).features.round().requires_grad_()  # with ties
        own = Bag(features)
        slide = module.forward_packed(BagBatch.pack([own])).slide[0] if packed else None
        slide = module(own).slide if slide is None else slide
        (slide * torch.arange(1, 7)).sum().backward()
        slopes.append((slide.detach(), features.grad))
    torch.testing.assert_close(slopes[0], slopes[1])


def test_the_order_of_patches_does_not_matter(aggregator: Aggregator) -> None:
    whole, order = bag(12), torch.randperm(12)
    first, second = aggregator(whole), aggregator(whole.subset(order))
    torch.testing.assert_close(first.slide, second.slide)
    torch.testing.assert_close(filled(first.scores)[order], filled(second.scores))


def test_the_width_is_as_stated(aggregator: Aggregator) -> None:
    found = aggregator(bag(3))
    assert filled(found.slide).shape == (aggregator.out_dim,)
    assert filled(found.instances).shape == (3, aggregator.out_dim)


def test_gradients_are_right() -> None:
    for make in MAKERS.values():
        module = make().double().eval()

        def run(features: Tensor, module: Any = module) -> Tensor:
            return filled(module(Bag(features)).slide)

        features = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(run, features)


def test_the_mean_of_features_is_their_mean() -> None:
    whole = bag(9)
    slide = filled(MeanPooling(6, None)(whole).slide)
    torch.testing.assert_close(slide, whole.features.mean(0))


def test_the_maximum_shares_its_scores_among_winners() -> None:
    found = MaxPooling(2, None)(Bag(torch.tensor([[1.0, 5.0], [3.0, 5.0], [2.0, 4.0]])))
    assert filled(found.slide).tolist() == [3.0, 5.0]
    assert filled(found.scores).tolist() == [0.25, 0.75, 0.0]


@pytest.mark.parametrize("gated", [True, False])
def test_abmil_is_equations_7_to_9_of_the_paper(gated: bool) -> None:
    torch.manual_seed(1)
    module = ABMIL(6, 5, 4, gated=gated).eval()
    whole = bag(8)
    weight, bias = module.embed[0].parameters()
    h = torch.relu(whole.features @ weight.T + bias)
    rows = []
    for row in h:
        hidden = torch.tanh(module.value(row))
        if module.gate is not None:
            hidden = hidden * torch.sigmoid(module.gate(row))
        rows.append(module.score(hidden)[0])
    weights = torch.stack(rows).exp() / torch.stack(rows).exp().sum()
    found = module(whole)
    torch.testing.assert_close(found.scores, weights)
    torch.testing.assert_close(found.slide, sum(w * row for w, row in zip(weights, h, strict=True)))
    assert filled(found.scores).sum().item() == pytest.approx(1.0)


def test_abmil_embeds_through_the_hidden_widths() -> None:
    module = ABMIL(6, 5, 4, hidden=[9, 7])
    linear = [m for m in module.embed if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(6, 9), (9, 7), (7, 5)]
    assert module.out_dim == module(bag(3)).instances.shape[1] == 5


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    module, whole = ABMIL(6, 16, 4, dropout=0.5), bag(20)
    assert not torch.equal(filled(module(whole).slide), filled(module(whole).slide))
    module.eval()
    assert torch.equal(filled(module(whole).slide), filled(module(whole).slide))


@pytest.mark.parametrize("entry", wsizoo.list_models("abmil-feather-*"))
def test_feathers_configuration_trains_on_a_slide_of_many_patches(entry: str) -> None:
    """Its dropout after the last layer is 0, a whole number."""
    model = wsizoo.build(entry, "head={name: classification, classes: [a, b]}", seed=0).train()
    whole = Bag(torch.randn(3000, model.in_dim), target={"label": 1})
    model.losses(model(whole), whole)["task"].backward()
    assert all(p.grad is not None for p in model.parameters())
