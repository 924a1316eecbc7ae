import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from wsizoo.errors import DataError, SpecError
from wsizoo.losses import (
    bce_dice,
    binary_cross_entropy,
    ce_dice,
    cox_partial_likelihood,
    cross_entropy,
    discrete_time_nll,
    inverse_frequencies,
    mean_squared_error,
    positive_weight,
    smooth_l1,
    soft_dice,
)

PATIENTS = st.integers(1, 5).flatmap(
    lambda bins: st.lists(
        st.tuples(
            st.lists(st.floats(-8, 8), min_size=bins, max_size=bins),
            st.integers(0, bins - 1),
            st.booleans(),
        ),
        min_size=1,
        max_size=5,
    )
)


def slow_nll(patients: list[tuple[list[float], int, bool]]) -> float:
    """The definition, patient by patient and bin by bin."""
    total = 0.0
    for logits, time_bin, event in patients:
        hazards = [1 / (1 + math.exp(-logit)) for logit in logits]
        survived = math.prod(1 - h for h in hazards[:time_bin])
        total -= math.log(survived)
        total -= math.log(hazards[time_bin] if event else 1 - hazards[time_bin])
    return total / len(patients)


@given(PATIENTS)
def test_survival_loss_equals_a_slow_loop(patients: list[tuple[list[float], int, bool]]) -> None:
    logits, times, events = (list(column) for column in zip(*patients, strict=True))
    loss = discrete_time_nll(
        torch.tensor(logits, dtype=torch.float64), torch.tensor(times), torch.tensor(events)
    )
    assert float(loss) == pytest.approx(slow_nll(patients), rel=1e-9, abs=1e-12)


def test_survival_loss_vanishes_for_a_certain_and_right_forecast() -> None:
    event_in_second = torch.tensor([[-100.0, 100.0, 0.0]])
    assert float(discrete_time_nll(event_in_second, torch.tensor([1]), torch.tensor([True]))) < 1e-6
    never = torch.full((1, 3), -100.0)
    assert float(discrete_time_nll(never, torch.tensor([2]), torch.tensor([False]))) < 1e-6


def test_survival_loss_of_what_comes_after_is_nothing() -> None:
    logits = torch.zeros(1, 4, requires_grad=True)
    torch.autograd.backward(discrete_time_nll(logits, torch.tensor([1]), torch.tensor([True])))
    assert logits.grad is not None and logits.grad[0, 2:].tolist() == [0, 0]


@pytest.mark.parametrize("scale", [-100.0, 100.0])
@pytest.mark.parametrize("event", [True, False])
def test_survival_gradients_are_finite_for_extreme_logits(scale: float, event: bool) -> None:
    logits = torch.full((2, 4), scale, requires_grad=True)
    loss = discrete_time_nll(logits, torch.tensor([0, 3]), torch.tensor([event, not event]))
    torch.autograd.backward(loss)
    assert logits.grad is not None
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_survival_loss_has_the_right_gradient() -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    times, events = torch.tensor([0, 2, 3]), torch.tensor([True, False, True])
    assert torch.autograd.gradcheck(lambda x: discrete_time_nll(x, times, events), logits)


def test_cross_entropy_leaves_unknown_rows_out() -> None:
    logits = torch.randn(4, 3)
    label = torch.tensor([0, -1, 2, -1])
    known = label >= 0
    expected = torch.nn.functional.cross_entropy(logits[known], label[known])
    assert float(cross_entropy(logits, label)) == pytest.approx(float(expected))


def test_cross_entropy_of_no_labels_is_zero_with_zero_gradient() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([-1, -1]))
    torch.autograd.backward(loss)
    assert loss.item() == 0.0
    assert logits.grad is not None and float(logits.grad.abs().sum()) == 0.0


def test_mean_squared_error_is_the_mean_of_squares() -> None:
    assert float(mean_squared_error(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0]))) == 2.5


def patches(n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n,) float64 and labels (n,), a third of them unknown."""
    logits = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    return logits, torch.arange(n) % 3 - 1


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_alpha_takes_weight_from_the_censored(scale: float) -> None:
    logits = scale * torch.randn(4, 3, dtype=torch.float64)
    times, events = torch.tensor([0, 1, 2, 2]), torch.tensor([True, False, True, False])

    def loss(alpha: float, rows: torch.Tensor) -> float:
        return float(discrete_time_nll(logits[rows], times[rows], events[rows], alpha))

    for alpha in (0.15, 1.0):
        each = loss(0.0, events) + (1 - alpha) * loss(0.0, ~events)
        assert loss(alpha, torch.ones(4).bool()) == pytest.approx(each / 2)


def test_a_floor_bounds_the_loss_and_stops_the_gradient() -> None:
    logits = torch.tensor([[40.0, 0.0], [-40.0, 0.0], [1.0, 1.0]], requires_grad=True)
    times, events = torch.tensor([1, 0, 0]), torch.tensor([True, True, False])
    loss = discrete_time_nll(logits, times, events, floor=1e-7)
    torch.autograd.backward(loss)
    floor = -math.log(1e-7)
    alone = -math.log(1 - 1 / (1 + math.exp(-1)))
    assert float(loss.detach()) == pytest.approx(
        (floor + math.log(2) + floor + alone) / 3, rel=1e-6
    )
    assert logits.grad is not None
    assert logits.grad[0, 0] == logits.grad[1, 0] == 0 and logits.grad[2, 0] > 0


def test_the_options_of_the_survival_loss_have_the_right_gradient() -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    times, events = torch.tensor([0, 2, 3]), torch.tensor([True, False, True])
    assert torch.autograd.gradcheck(
        lambda x: discrete_time_nll(x, times, events, 0.4, 1e-7), logits
    )


def test_class_weights_are_divided_out_again() -> None:
    logits, label = torch.randn(5, 3), torch.tensor([0, 2, -1, 1, 2])
    weights, known = torch.tensor([0.2, 1.3, 1.5]), label >= 0
    expected = F.cross_entropy(logits[known], label[known], weights)
    assert float(cross_entropy(logits, label, weights)) == pytest.approx(float(expected))
    one = logits[:1], label[:1]
    assert float(cross_entropy(*one, weights)) == pytest.approx(float(cross_entropy(*one)))
    assert float(cross_entropy(logits[:1], torch.tensor([-1]), weights)) == 0.0


def test_class_weights_are_inverse_frequencies_that_sum_to_the_class_count() -> None:
    weights = inverse_frequencies(torch.tensor([0, 0, 0, 2, -1]), 4)
    assert float(weights.sum()) == pytest.approx(4)
    assert (weights / weights[2]).tolist() == pytest.approx([1 / 3, 1, 1, 1])
    with pytest.raises(DataError, match="label 4 is no index of 4 classes"):
        inverse_frequencies(torch.tensor([0, 4]), 4)
    assert inverse_frequencies(torch.tensor([-1]), 2).tolist() == [1, 1]


def test_binary_cross_entropy_is_the_mean_over_labelled_rows() -> None:
    logits, label = patches()
    known = label >= 0
    weight = torch.tensor(4.2, dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(
        logits[known], label[known].double(), pos_weight=weight
    )
    assert float(binary_cross_entropy(logits, label, 4.2)) == pytest.approx(float(expected))
    assert float(binary_cross_entropy(logits, label, weight)) == pytest.approx(float(expected))
    assert float(binary_cross_entropy(logits, -torch.ones(12))) == 0.0


def test_the_weight_of_positives_is_how_many_negatives_there_are_for_each() -> None:
    assert positive_weight(torch.tensor([0, 0, 0, 1, 1, -1])) == 1.5
    assert positive_weight(torch.tensor([0.0, 0.0])) == 2.0


def test_soft_dice_is_one_minus_the_overlap_of_probabilities_and_labels() -> None:
    logits, label = patches()
    known = label >= 0
    p, y = torch.sigmoid(logits[known]), label[known]
    expected = 1 - (2 * (p * y).sum() + 1e-6) / (p.sum() + y.sum() + 1e-6)
    assert float(soft_dice(logits, label)) == pytest.approx(expected)
    sure = torch.where(label == 1, 60.0, -60.0)
    assert float(soft_dice(sure, label)) == pytest.approx(0, abs=1e-6)
    assert float(soft_dice(-sure, label)) == pytest.approx(1, abs=1e-6)
    assert float(soft_dice(torch.full((3,), -90.0), torch.zeros(3))) == pytest.approx(0, abs=1e-6)


def test_bce_and_dice_are_mixed_unless_nothing_is_positive() -> None:
    logits, label = patches()
    bce, dice = binary_cross_entropy(logits, label, 3.0), soft_dice(logits, label)
    assert float(bce_dice(logits, label, 3.0)) == pytest.approx(float(0.25 * bce + 0.75 * dice))
    assert float(bce_dice(logits, label, 3.0, 0.0)) == pytest.approx(float(bce))
    none = label.clamp(max=0)
    alone = float(binary_cross_entropy(logits, none, 3.0))
    assert float(bce_dice(logits, none, 3.0)) == pytest.approx(alone)


def test_ce_and_dice_of_classes_that_occur_are_mixed() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64)
    label = torch.tensor([0, 2, -1, 2, 0, 3])  # class 1 does not occur
    p = logits.softmax(1)[label >= 0]
    y = F.one_hot(label[label >= 0], 4)
    dice = 1 - (2 * (p * y).sum(0) + 1e-6) / (p.sum(0) + y.sum(0) + 1e-6)
    expected = 0.4 * dice[[0, 2, 3]].mean() + 0.6 * cross_entropy(logits, label)
    assert float(ce_dice(logits, label, 0.4)) == pytest.approx(float(expected))
    unknown = torch.full((6,), -1)
    assert float(ce_dice(logits, unknown)) == 0.0


def test_losses_of_patches_have_the_right_gradients_and_none_where_unknown() -> None:
    logits, label = patches()
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: bce_dice(x, label, 2.0), logits)
    torch.autograd.backward(bce_dice(logits, label))
    assert logits.grad is not None and ((logits.grad != 0) == (label >= 0)).all()
    many = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ce_dice(x, label), many)


@pytest.mark.parametrize("scale", [-1e4, 1e4])
def test_losses_of_patches_are_finite_for_extreme_logits(scale: float) -> None:
    for label in (torch.tensor([0, 1, -1]), torch.tensor([0, 0, -1]), torch.tensor([-1, -1, -1])):
        logits = torch.full((3,), scale, requires_grad=True)
        loss = bce_dice(logits, label)
        torch.autograd.backward(loss)
        assert logits.grad is not None
        assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


@given(PATIENTS, st.floats(0, 1))
def test_alpha_of_the_survival_loss_is_that_of_zadeh_and_schmid(
    patients: list[tuple[list[float], int, bool]], alpha: float
) -> None:
    logits, times, events = (list(column) for column in zip(*patients, strict=True))
    given_ = torch.tensor(logits, dtype=torch.float64), torch.tensor(times), torch.tensor(events)
    hazards = 1 / (1 + np.exp(-np.array(logits)))
    survival = np.cumprod(np.pad(1 - hazards, ((0, 0), (1, 0)), constant_values=1.0), 1)
    rows, t, seen = np.arange(len(times)), np.array(times), np.array(events)
    density = survival[rows, t] * hazards[rows, t]  # of the event in that bin
    uncensored = -np.log(np.where(seen, density, 1.0))
    censored = -np.log(np.where(seen, 1.0, survival[rows, t + 1]))
    expected = (1 - alpha) * (uncensored + censored) + alpha * uncensored
    found = float(discrete_time_nll(*given_, alpha=alpha))
    assert found == pytest.approx(expected.mean(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("smoothing", [0.1, 1.0])
@pytest.mark.parametrize("weights", [None, [0.2, 1.3, 1.5]])
def test_smoothed_labels_are_those_of_torch(smoothing: float, weights: list[float] | None) -> None:
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    label = torch.tensor([0, 2, -1, 1, 2])
    factors = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    expected = F.cross_entropy(logits, label, factors, ignore_index=-1, label_smoothing=smoothing)
    found = cross_entropy(logits, label, factors, smoothing)
    assert found.item() == pytest.approx(expected.item())
    (slope,), (other,) = (torch.autograd.grad(loss, logits) for loss in (found, expected))
    assert torch.allclose(slope, other, atol=1e-12)
    assert cross_entropy(logits, torch.full((5,), -1), factors, smoothing).item() == 0.0


def test_smooth_l1_is_quadratic_near_zero_and_linear_far_away() -> None:
    value, target = torch.tensor([0.5, 5.0, -3.0]), torch.zeros(3)
    assert float(smooth_l1(value, target)) == pytest.approx((0.125 + 4.5 + 2.5) / 3)
    assert float(smooth_l1(value, target, beta=2.0)) == pytest.approx((0.0625 + 4 + 2) / 3)


COHORT = st.lists(
    st.tuples(st.integers(0, 6), st.booleans(), st.floats(-4, 4)), min_size=1, max_size=20
)


@settings(deadline=None)
@given(COHORT, st.sampled_from(["efron", "breslow"]))
def test_cox_likelihood_and_its_gradient_are_those_of_scikit_survival(
    rows: list[tuple[int, bool, float]], ties: str
) -> None:
    coxph = pytest.importorskip("sksurv.linear_model.coxph")
    times, events, risks = (np.array(column) for column in zip(*rows, strict=True))
    n, n_events = len(rows), max(1, int(events.sum()))
    oracle = coxph.CoxPHOptimizer(np.eye(n), events, times.astype(float), np.zeros(n), ties)
    risk = torch.tensor(risks, dtype=torch.float64, requires_grad=True)
    found = cox_partial_likelihood(risk, torch.tensor(times), torch.tensor(events), ties)
    torch.autograd.backward(found)
    expected = oracle.nlog_likelihood(risks) * n / n_events
    assert found.item() == pytest.approx(expected, abs=1e-9)
    oracle.update(risks)
    # Rows of the oracle are sorted, its coefficients are not.
    assert risk.grad is not None
    assert risk.grad.numpy() == pytest.approx(oracle.gradient * n / n_events, abs=1e-9)


def test_the_cox_model_of_lifelines_is_where_the_likelihood_is_flat() -> None:
    lifelines, pandas = (pytest.importorskip(name) for name in ("lifelines", "pandas"))
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (80, 2))
    times = np.ceil(rng.exponential(np.exp(-x @ [0.8, -0.5]), 80) * 8)  # many ties
    events = rng.random(80) < 0.7
    table = pandas.DataFrame({"a": x[:, 0], "b": x[:, 1], "t": times, "e": events})
    fit = lifelines.CoxPHFitter().fit(table, "t", "e", fit_options={"precision": 1e-10})
    weights = torch.tensor(fit.params_.to_numpy(), requires_grad=True)
    loss = cox_partial_likelihood(
        torch.tensor(x) @ weights, torch.tensor(times), torch.tensor(events)
    )
    (slope,) = torch.autograd.grad(loss, weights)
    assert loss.item() * events.sum() == pytest.approx(-fit.log_likelihood_, abs=1e-6)
    assert slope.abs().max() < 1e-6


def test_a_batch_that_compares_nobody_has_a_cox_loss_of_zero() -> None:
    for event in ([False, False], [True, False]):
        risk = torch.randn(2, requires_grad=True)
        loss = cox_partial_likelihood(risk, torch.tensor([5.0, 2.0]), torch.tensor(event))
        torch.autograd.backward(loss)
        assert loss.item() == 0.0 and risk.grad is not None and risk.grad.abs().sum() == 0.0


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_cox_gradients_are_finite_for_extreme_risks(scale: float, ties: str) -> None:
    risk = (scale * torch.linspace(0, 1, 6)).requires_grad_()
    times, events = torch.tensor([1, 1, 2, 2, 3, 3]), torch.tensor([1, 1, 0, 1, 1, 0])
    loss = cox_partial_likelihood(risk, times, events, ties)
    torch.autograd.backward(loss)
    assert risk.grad is not None
    assert torch.isfinite(loss) and torch.isfinite(risk.grad).all()


def test_the_cox_loss_does_not_depend_on_the_scale_of_hazards_or_times() -> None:
    risk, times = torch.randn(9, dtype=torch.float64), torch.tensor([1, 2, 2, 2, 3, 4, 4, 5, 6])
    events = torch.tensor([1, 1, 0, 1, 0, 1, 1, 0, 1])
    expected = float(cox_partial_likelihood(risk, times, events))
    assert float(cox_partial_likelihood(risk + 7, times**3, events)) == pytest.approx(expected)


def test_an_unknown_way_of_ties_is_named() -> None:
    with pytest.raises(SpecError, match="ties are handled as 'efron' or 'breslow', not as 'exact'"):
        cox_partial_likelihood(torch.zeros(1), torch.zeros(1), torch.ones(1), "exact")
