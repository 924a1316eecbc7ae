"""Budgets, phases and temperatures of selectors; what they hand on in a model; epochs chosen."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.toy_training import ToySlides
from wsizoo.bag import Bag
from wsizoo.errors import BagError, PluginError, SpecError
from wsizoo.interfaces import Aggregated, Aggregator, Selected, Selector
from wsizoo.mil.abmil import ABMIL
from wsizoo.mil.heads import ClassificationHead
from wsizoo.model import SlideModel
from wsizoo.ops import hard_topk
from wsizoo.selection import (
    SOFT,
    TUNE,
    WARM_UP,
    PhasedSelector,
    ScoredSelector,
    SoftSelector,
    annealed,
    given_gates,
    kept_count,
    own_generator,
    resting,
    standard_scores,
)
from wsizoo.spec import ModelSpec
from wsizoo.train.loop import fit
from wsizoo.train.settings import TrainSettings
from wsizoo.train.trainer import train_model

SPEC = ModelSpec(summary="s", licence="MIT", source="x")
DIM = 6


class Scaled(SoftSelector):
    """Learns softly: each patch times its gate."""

    def __init__(self, in_dim: int = DIM, k: int | float = 3, **options: Any) -> None:
        super().__init__(in_dim, k, **options)
        self.scorer = nn.Linear(in_dim, 1)

    def score(self, bag: Bag) -> Tensor:
        return self.scorer(bag.features)[:, 0].float()

    def soft(
        self,
        bag: Bag,
        generator: torch.Generator | None = None,
        temperature: float | None = None,
        gates: Tensor | None = None,
    ) -> Selected:
        found = self.gates(self.finite_scores(bag), temperature)
        return Selected(bag.replace(features=bag.features * found.gates[:, None]), None)


def model_of(selector: Selector, aggregator: Aggregator | None = None) -> SlideModel:
    torch.manual_seed(0)
    body = aggregator or ABMIL(DIM, dim=5, attention=3)
    head = ClassificationHead(5, ("a", "b"))
    return SlideModel("toy", SPEC, DIM, aggregator=body, head=head, selector=selector)


def bag_of(n: int = 9, seed: int = 0) -> Bag:
    features = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))
    return Bag(features, target={"label": seed % 2}, slide_id=f"S{seed}")


@pytest.mark.parametrize(
    ("k", "n", "kept"),
    [(1, 5, 1), (8, 5, 5), (1.0, 5, 5), (0.1, 30, 3), (0.1, 31, 4), (0.001, 30, 1), (1e-7, 9, 1)],
)
def test_a_budget_is_a_number_or_a_share_by_its_type(k: int | float, n: int, kept: int) -> None:
    assert kept_count(k, n) == kept


@given(st.floats(0, 1, exclude_min=True), st.integers(1, 10**6))
def test_a_share_keeps_at_least_one_and_at_most_all(k: float, n: int) -> None:
    assert 1 <= kept_count(k, n) <= n


@pytest.mark.parametrize("k", [0, -3, 1.5, 0.0, -0.1, math.nan, True, "32", None])
def test_no_other_budget_is_taken(k: Any) -> None:
    with pytest.raises(SpecError, match=r"selector\.k is .*in \(0, 1\]"):
        kept_count(k, 9)


def test_half_a_cosine_leads_to_the_end_and_stays() -> None:
    steps = [annealed(step, 2.0, 0.1, 100) for step in (0, 50, 100, 300)]
    assert steps == pytest.approx([2.0, 1.05, 0.1, 0.1])
    assert annealed(0, 2.0, 0.1, 0) == 0.1


def test_standard_scores_have_mean_0_and_variance_1() -> None:
    found = standard_scores(torch.tensor([1.0, 5.0, 9.0, 700.0]))
    assert float(found.mean()) == pytest.approx(0, abs=1e-6)
    assert float(found.square().mean()) == pytest.approx(1, abs=1e-4)
    assert standard_scores(torch.full((4,), 3.0)).tolist() == [0.0] * 4


def test_the_phases_of_a_training_follow_each_other() -> None:
    selector = Scaled(warm_up=0.3, tune=0.2, start_temperature=2.0, end_temperature=0.1)
    selector.train().start_training(20, [])
    phases, temperatures, ready = [], [], []
    for step in range(20):
        phases.append(selector.phase)
        temperatures.append(selector.temperature)
        ready.append(selector.ready)
        selector.after_step(step + 1, 20)
    assert phases == [WARM_UP] * 6 + [SOFT] * 10 + [TUNE] * 4
    assert temperatures[6] == 2.0 and temperatures[14] == pytest.approx(0.1)
    assert sorted(temperatures, reverse=True) == temperatures
    assert ready == [False] * 7 + [True] * 13


def test_what_passes_in_each_phase() -> None:
    selector, bag = Scaled(warm_up=0.3, tune=0.2).train(), bag_of()
    before = selector(bag)
    assert before.bag is not bag and not before.alone  # outside of a trainer all learns
    selector.start_training(10, [])
    assert selector(bag).bag is bag
    selector.after_step(3, 10)
    assert selector(bag).alone
    assert not Scaled(freeze_rest=False, warm_up=0.0).train()(bag).alone
    selector.after_step(8, 10)
    assert torch.equal(selector(bag).index, hard_topk(selector.score(bag), 3))
    selector.eval().after_step(1, 10)
    assert len(selector(bag).index) == 3  # eval is the same in all phases


def test_a_short_training_has_a_soft_step() -> None:
    selector = Scaled(warm_up=0.9)
    for total in (1, 2, 3):
        selector.start_training(total, [])
        selector.after_step(total - 1, total)
        assert selector.phase == SOFT
        selector.after_step(total, total)
        assert selector.ready


def test_a_base_class_says_what_is_not_written() -> None:
    with pytest.raises(NotImplementedError):
        ScoredSelector(DIM).score(bag_of())
    with pytest.raises(NotImplementedError):
        PhasedSelector(DIM).soft(bag_of())


def test_its_group_has_the_factor_of_its_rate() -> None:
    (group,) = Scaled(lr_factor=3.0).param_groups(0.1)
    assert group["lr"] == pytest.approx(0.3)


def test_steps_are_not_published() -> None:
    selector = Scaled()
    assert {*selector.inference_state()} == {"scorer.weight", "scorer.bias"}
    assert {"step", "total"} < {*selector.state_dict()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anneal": -1}, r"selector\.anneal is -1, expected a share from 0 to 1"),
        ({"form": "tanh"}, r"selector\.form is 'tanh', expected one of sigmoid, laplace"),
        ({"warmup": 0.1}, r"the selector has no argument 'warmup'\. Did you mean 'warm_up'\?"),
        ({"quux": 0.1}, r"the selector has no argument 'quux'\. It takes: "),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Scaled(**options)


def test_alone_only_the_selector_gets_a_gradient_and_the_rest_is_in_eval() -> None:
    selector = Scaled(warm_up=0.0)
    model, bag = model_of(selector).train(), bag_of()
    model.start_training(10, [])
    modes: list[bool] = []
    assert model.aggregator is not None
    model.aggregator.register_forward_hook(lambda module, *_: modes.append(module.training))
    torch.stack(list(model.losses(model(bag), bag).values())).sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {"selector.scorer.weight", "selector.scorer.bias"}
    assert modes == [False]
    assert model.aggregator.training and all(p.requires_grad for p in model.parameters())


def test_resting_gives_back_the_modes_and_what_was_frozen_also_after_an_error() -> None:
    module = ABMIL(DIM, dim=5)
    module.embed.eval()
    module.score.requires_grad_(False)
    with resting((module, None)):
        assert not any(m.training for m in module.modules())
        assert not any(p.requires_grad for p in module.parameters())
    with pytest.raises(BagError, match="of width 6"), resting((module, None)):
        raise BagError("of width 6")
    assert module.training and not module.embed.training
    frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
    assert frozen == ["score.weight", "score.bias"]


def test_a_selector_trains_in_its_phases() -> None:
    bags = [bag_of(seed=i) for i in range(4)]
    bags = [b.replace(features=b.features + 2 * (i % 2)) for i, b in enumerate(bags)]
    model = model_of(Scaled(warm_up=0.5))
    first = {k: v.clone() for k, v in model.state_dict().items()}
    seen: list[dict[str, Tensor]] = []
    fit(
        model, bags, epochs=8, lr=0.02,
        after_epoch=lambda *_: seen.append({k: v.clone() for k, v in model.state_dict().items()}),
    )  # fmt: skip
    halfway, last = seen[3], seen[-1]
    scorer, body = "selector.scorer.weight", "aggregator.embed.0.weight"
    assert torch.equal(halfway[scorer], first[scorer])
    assert not torch.equal(last[scorer], first[scorer])
    assert not torch.equal(halfway[body], first[body]) and torch.equal(halfway[body], last[body])


class Weighed(Selector):
    def __init__(self, weights: Tensor) -> None:
        super().__init__(DIM)
        self.given = weights

    def forward(self, bag: Bag) -> Selected:
        return Selected(bag, weights=self.given)


class Listed(Scaled):
    """Has an option of its own."""

    def __init__(self, in_dim: int = DIM, k: int | float = 3, *, depth: int = 1, **options: Any):
        super().__init__(in_dim, k, **options)


def test_an_unknown_option_of_a_method_is_told_with_all_that_it_takes() -> None:
    with pytest.raises(SpecError, match=r"no argument 'dept'\. Did you mean 'depth'\?"):
        Listed(dept=2)
    with pytest.raises(SpecError, match=r"'quux'\. It takes: anneal, depth, .*, warm_up\."):
        Listed(quux=2)


class Wide(ScoredSelector):
    def score(self, bag: Bag) -> Tensor:
        return bag.features


def test_scores_of_another_shape_are_the_selector_s_fault() -> None:
    told = r"the selector Wide gives scores \(9, 6\) for slide 'S0', expected \(9,\)"
    with pytest.raises(PluginError, match=told):
        Wide(DIM, 3).eval()(bag_of())


def test_weights_of_the_wrong_number_are_refused() -> None:
    with pytest.raises(
        PluginError, match=r"hands on 9 patches and weights \(4,\), expected \(9,\)"
    ):
        model_of(Weighed(torch.ones(4))).train()(bag_of())


def test_abmil_attends_by_weights_and_survives_none_left() -> None:
    torch.manual_seed(0)
    module, bag = ABMIL(DIM, dim=5, attention=3).eval(), bag_of()
    mask = torch.tensor([0.0, 1.0, 0.5] * 3)
    found: Aggregated = module(bag, mask)
    logits = module.attend(bag.features)[1]
    raw = torch.exp(logits) * mask
    torch.testing.assert_close(found.scores, raw / raw.sum())
    assert module(bag, torch.zeros(9)).slide.tolist() == [0.0] * 5


def test_given_gates_have_roots_with_gradients_of_0_at_the_ends() -> None:
    gates = torch.tensor([0.0, 0.25, 1.0]).requires_grad_()
    found = given_gates(gates)
    assert found.root.tolist() == [0.0, 0.5, 1.0] and found.rest.tolist() == [1.0, 0.75, 0.0]
    (found.root.sum() + found.rest_root.sum()).backward()
    assert gates.grad is not None
    assert gates.grad.tolist() == pytest.approx([-0.5, 1 - 0.5 / 0.75**0.5, 0.5])


def test_a_generator_of_its_own_follows_the_global_seed() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        drawn.append(torch.rand(5, generator=own_generator(torch.device("cpu"))))
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], torch.rand(5, generator=own_generator(torch.device("cpu"))))


@pytest.mark.parametrize("warm_up", [0.0, 0.5])
def test_no_epoch_of_a_warm_up_is_the_best(tmp_path: Path, warm_up: float) -> None:
    pytest.importorskip("lightning_fabric")
    model = model_of(Scaled(warm_up=warm_up, freeze_rest=False))
    settings = TrainSettings(epochs=4, lr=1e-2, metric="logit", checkpoint="best")
    values = iter([9.0, 8.0, 1.0, 2.0])
    trained = train_model(
        model, ToySlides(5), ToySlides(3, seed=1), settings, tmp_path,
        measure=lambda *_: {"logit": next(values)},
    )  # fmt: skip
    assert trained.best_epoch == (1 if warm_up == 0 else 4)
