"""The selectors to compare with: their contract, what they choose, how they learn."""

import shutil

import pytest
import torch
from wsizoo_plugin_sparselearn.comparison import AbmilScore, GumbelTopk, StraightThrough
from wsizoo_plugin_sparselearn.selector import SparseLearn
from wsizoo_plugin_sparselearn.untrained import Norm, Random, UniformGrid

import wsizoo
from wsizoo import Bag, Fingerprint
from wsizoo.errors import FingerprintError, SpecError
from wsizoo.testing import conformance

DIM, K = 24, 8
CLASSES = "head.classes=[normal,tumour]"
MODEL = ("abmil-uni", "encoder.dim=24", "aggregator.dim=6", "aggregator.attention=4", CLASSES)
MADE = {
    "sparselearn": SparseLearn,
    "random": Random,
    "uniform-grid": UniformGrid,
    "norm": Norm,
    "abmil-score": AbmilScore,
    "straight-through": StraightThrough,
    "gumbel-topk": GumbelTopk,
}


@conformance(Random, "selector", k=K)
def test_random_is_a_selector(check):
    check()


@conformance(UniformGrid, "selector", k=K)
def test_uniform_grid_is_a_selector(check):
    check()


@conformance(Norm, "selector", k=0.5)
def test_norm_is_a_selector(check):
    check()


@conformance(AbmilScore, "selector", k=K)
def test_abmil_score_is_a_selector(check):
    check()


@conformance(StraightThrough, "selector", k=K)
def test_straight_through_is_a_selector(check):
    check()


@conformance(GumbelTopk, "selector", k=K, scorer="linear")
def test_gumbel_topk_is_a_selector(check):
    check()


def bag_of(n=40, seed=0, **changes):
    features = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))
    cells = torch.stack([torch.arange(n) % 7, torch.arange(n) // 7], 1)
    given = {"coords": cells * 224, "spacing": 224.0, "slide_id": "S1", "target": {"label": 1}}
    return Bag(features, **{**given, **changes})


def made(kind, **options):
    torch.manual_seed(0)
    return kind(DIM, **{"k": K, **options}).eval()


@pytest.mark.parametrize("aggregator", ["abmil", "mean", "max", "span", "longmil"])
@pytest.mark.parametrize("selector", MADE)
def test_every_selector_goes_before_every_aggregator(selector, aggregator):
    brings = {"span": "wsizoo_plugin_span", "longmil": "wsizoo_plugin_longmil"}
    pytest.importorskip(brings.get(aggregator, "wsizoo"))
    small = {
        "span": ["aggregator.dim=8", "aggregator.head_dim=4"],
        "longmil": ["aggregator.dim=16", "aggregator.radius=3"],
    }.get(aggregator, ["aggregator.dim=6"])
    model = wsizoo.build(
        "mean-uni", "encoder.dim=24", CLASSES, f"aggregator={aggregator}", *small,
        f"selector={selector}", "selector.k=8",
    )  # fmt: skip
    bag = bag_of()
    with torch.no_grad():
        output = model(bag)
    assert len(output.kept) == K and output.logits.shape == (2,)
    model.train()
    loss = torch.stack(list(model.losses(model(bag), bag).values())).sum()
    loss.backward()
    slopes = [p.grad for p in model.parameters() if p.grad is not None]
    assert slopes and all(bool(torch.isfinite(slope).all()) for slope in slopes)
    learns = [p for p in model.selector.parameters() if p.grad is not None and p.grad.any()]
    assert bool(learns) == (selector not in ("random", "uniform-grid", "norm"))


def test_random_patches_are_those_of_the_slide_its_seed_and_its_step():
    bag, module = bag_of(), made(Random)
    kept = module(bag).index
    assert torch.equal(made(Random)(bag).index, kept)
    others = [module(bag_of(slide_id="S2")).index, made(Random, seed=1)(bag).index]
    module.train()
    others.append(module(bag).index)
    module.after_step(1, 10)
    others.append(module(bag).index)
    drawn = {tuple(index.tolist()) for index in [kept, *others]}
    assert len(drawn) == 5 and all(len(set(one)) == K for one in drawn)
    assert torch.equal(module.eval()(bag).index, kept)


def test_random_patches_are_all_as_likely():
    module = made(Random, k=10)
    counts = torch.zeros(40)
    for i in range(2000):
        counts[module(bag_of(slide_id=f"S{i}")).index] += 1
    assert float((counts - 500).abs().max()) < 5 * (2000 * 0.25 * 0.75) ** 0.5


def test_a_uniform_sample_follows_the_raster_whatever_the_order():
    bag, module = bag_of(), made(UniformGrid, k=6)
    expected = [j * 40 // 6 for j in range(6)]
    assert module(bag).index.tolist() == expected
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = module(bag.subset(order))
    assert sorted(order[shuffled.index].tolist()) == expected
    assert module(bag.replace(coords=None)).index.tolist() == expected
    assert module(bag.replace(spacing=None, footprint=None)).index.tolist() == expected
    assert made(UniformGrid, k=50)(bag).bag is bag


def test_the_largest_features_are_kept():
    features = torch.ones(40, DIM)
    features[[3, 30]] = -5.0
    assert made(Norm, k=2)(bag_of().replace(features=features)).index.tolist() == [3, 30]


@pytest.fixture
def trained(tmp_path):
    """A model with an ABMIL, on features of made-up."""
    model = wsizoo.build(*MODEL, "encoder.name=made-up", seed=5)
    model.trained = True
    return model, str(wsizoo.save(model, tmp_path / "abmil"))


@pytest.mark.parametrize("kind", [AbmilScore, SparseLearn])
def test_scores_are_a_trained_abmils(trained, kind):
    model, path = trained
    options = {"abmil": path, "hidden": 4, "embedding": [6]}
    if kind is SparseLearn:
        options["scorer"] = "gated"
    module, bag = made(kind, **options), bag_of(encoder=Fingerprint("made-up"))
    module.start_training(10, [bag])
    logits = model.aggregator.attend(bag.features)[1]
    torch.testing.assert_close(module.score(bag), logits)
    assert module(bag).index.tolist() == logits.topk(K).indices.sort().values.tolist()
    frozen = not any(p.requires_grad for p in module.scorer.parameters())
    assert frozen == (kind is AbmilScore)


def test_an_abmil_that_does_not_fit_is_refused(trained, tmp_path):
    _, path = trained
    bag = bag_of(encoder=Fingerprint("made-up"))
    with pytest.raises(
        SpecError, match=r"widths\. Type: selector\.embedding=\[6\] selector\.hidden=4$"
    ):
        made(AbmilScore, abmil=path).start_training(10, [bag])
    options = {"abmil": path, "hidden": 4, "embedding": [6]}
    with pytest.raises(FingerprintError, match="made-up"):
        made(AbmilScore, **options).start_training(10, [bag_of(encoder=Fingerprint("uni"))])
    other = wsizoo.build(*MODEL, "aggregator=mean", "encoder.name=made-up")
    other.trained = True
    folder = wsizoo.save(other, tmp_path / "mean")
    with pytest.raises(SpecError, match="whose aggregator is mean, expected an abmil"):
        made(AbmilScore, **{**options, "abmil": str(folder)}).start_training(10, [bag])
    plain = wsizoo.build(*MODEL, "aggregator.gated=false", "encoder.name=made-up")
    plain.trained = True
    folder = wsizoo.save(plain, tmp_path / "plain")
    with pytest.raises(SpecError, match=r"no gate, expected aggregator\.gated=true"):
        made(AbmilScore, **{**options, "abmil": str(folder)}).start_training(10, [bag])
    standard = wsizoo.build(*MODEL, "aggregator.standardise=true", "encoder.name=made-up")
    standard.trained = True
    folder = wsizoo.save(standard, tmp_path / "standard")
    with pytest.raises(SpecError, match=r"trained with aggregator\.standardise=false"):
        made(AbmilScore, **{**options, "abmil": str(folder)}).start_training(10, [bag])


def test_a_trained_abmil_needs_no_warm_up():
    assert made(AbmilScore).warm_up == 0.5 and made(AbmilScore, abmil="x").warm_up == 0
    with pytest.raises(SpecError, match=r"selector\.warm_up is 0\.1, expected none: the abmil is"):
        made(AbmilScore, abmil="x", warm_up=0.1)


def test_a_saved_abmil_score_needs_its_abmil_no_more(trained, tmp_path):
    _, path = trained
    bag = bag_of(encoder=Fingerprint("made-up"))
    model = wsizoo.build(
        *MODEL, "encoder.name=made-up", "selector=abmil-score", f"selector.abmil={path}",
        "selector.hidden=4", "selector.embedding=[6]", "selector.k=5",
    )  # fmt: skip
    model.start_training(10, [bag])
    model.trained = True
    folder = wsizoo.save(model, tmp_path / "model")
    shutil.rmtree(path)
    again = wsizoo.load(folder)
    assert torch.equal(again(bag).kept, model(bag).kept)


def test_attention_learns_in_the_warm_up_and_rests_then():
    module, bag = made(AbmilScore, warm_up=0.5).train(), bag_of()
    module.start_training(10, [bag])
    warm = module(bag)
    torch.testing.assert_close(warm.weights.mean(), torch.tensor(1.0))
    assert warm.index is None and warm.weights.requires_grad and not module.ready
    module.after_step(5, 10)
    hard = module(bag)
    assert len(hard.index) == K and hard.weights is None and not hard.alone


@pytest.mark.parametrize("kind", [StraightThrough, GumbelTopk])
def test_weights_are_the_mask_forward_and_the_gates_backward(kind):
    module, bag = made(kind).train(), bag_of()
    selected = module.soft(bag, torch.Generator().manual_seed(2), temperature=0.5)
    weights = selected.weights.detach()
    assert set(weights.tolist()) == {0.0, 1.0} and float(weights.sum()) == K
    chosen = weights.nonzero()[:, 0].tolist()
    hard = module.eval()(bag).index.tolist()
    assert (chosen == hard) == (kind is StraightThrough)
    cotangent = torch.randn(40, generator=torch.Generator().manual_seed(3))
    (selected.weights * cotangent).sum().backward()
    own = [p.grad.clone() for p in module.scorer.parameters()]
    module.zero_grad()
    if kind is StraightThrough:
        gates = module.gates(module.score(bag), temperature=0.5).gates
        (gates * cotangent).sum().backward()
        for slope, parameter in zip(own, module.scorer.parameters(), strict=True):
            torch.testing.assert_close(slope, parameter.grad)


def test_gumbel_noise_shrinks_with_the_temperature():
    module, bag = made(GumbelTopk), bag_of()
    cold = module.soft(bag, torch.Generator().manual_seed(2), temperature=1e-4)
    assert cold.weights.nonzero()[:, 0].tolist() == module(bag).index.tolist()


def test_forced_gates_are_the_weights():
    gates = torch.linspace(0, 1, 40)
    assert torch.equal(made(StraightThrough).soft(bag_of(), gates=gates).weights, gates)


def test_an_abmil_attends_by_the_weights_and_others_multiply_features():
    bag = bag_of()
    for aggregator, field in (("abmil", "attention"), ("mean", "features")):
        model = wsizoo.build(
            "mean-uni", "encoder.dim=24", CLASSES, f"aggregator={aggregator}", "aggregator.dim=6",
            "selector=straight-through", "selector.k=8",
        ).train()  # fmt: skip
        if aggregator == "abmil":
            model.aggregator.embed[2].p = 0.0
        else:
            model.aggregator.eval()
        seen = []
        model.aggregator.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given))
        output = model(bag)
        (given,) = seen
        mask = torch.zeros(40).index_fill(0, model.selector.hard(bag).index, 1.0)
        if field == "attention":
            assert torch.equal(given[1], mask) and given[0].features is bag.features
            torch.testing.assert_close(output.scores, output.scores * mask)
            torch.testing.assert_close(output.scores.sum(), torch.tensor(1.0))
        else:
            assert len(given) == 1
            torch.testing.assert_close(given[0].features, bag.features * mask[:, None])
