from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsizoo.errors import DataError, PluginError, SpecError
from wsizoo.interfaces import Aggregated, Head
from wsizoo.losses import bce_dice, ce_dice, cox_partial_likelihood, discrete_time_nll
from wsizoo.mil.heads import (
    ClassificationHead,
    CoxHead,
    RegressionHead,
    SegmentationHead,
    SurvivalHead,
)
from wsizoo.testing import check_component

LOGITS = st.lists(st.floats(-20, 20), min_size=1, max_size=6)


def survival(logits: Any) -> dict[str, torch.Tensor]:
    raw = torch.as_tensor(logits, dtype=torch.float64)
    return SurvivalHead(None, bins=raw.shape[-1]).outputs(raw)


@given(LOGITS)
def test_risk_is_minus_the_expected_number_of_bins_survived(logits: list[float]) -> None:
    found = survival(logits)
    alive, expected = 1.0, 0.0
    for hazard in found["hazards"].tolist():
        alive *= 1 - hazard
        expected -= alive
    assert float(found["risk"]) == pytest.approx(expected)
    assert -len(logits) <= float(found["risk"]) <= 0


@given(LOGITS, st.integers(0, 5), st.floats(0.01, 10))
def test_a_larger_hazard_in_any_bin_is_a_larger_risk(
    logits: list[float], which: int, more: float
) -> None:
    raised = list(logits)
    raised[which % len(logits)] += more
    before, after = survival(logits), survival(raised)
    assert (after["hazards"] >= before["hazards"]).all()
    assert float(after["risk"]) >= float(before["risk"]) - 1e-12


def test_an_event_in_an_earlier_bin_is_a_larger_risk() -> None:
    forecasts = ([9.0, -9.0, -9.0], [-9.0, 9.0, -9.0], [-9.0, -9.0, -9.0])
    early, late, never = (float(survival(logits)["risk"]) for logits in forecasts)
    assert early > late > never


@pytest.mark.parametrize(
    ("head", "fields"),
    [
        (ClassificationHead(6, ("a", "b", "c")), {"logits": (3,)}),
        (SurvivalHead(6, bins=4), {"logits": (4,), "hazards": (4,), "risk": ()}),
        (SegmentationHead(6, ("a", "b")), {"instance_logits": (5, 2)}),
        (RegressionHead(6), {"logits": (1,), "value": ()}),
        (CoxHead(6), {"logits": (1,), "risk": ()}),
    ],
)
def test_each_head_names_its_fields(head: Head, fields: dict[str, tuple[int, ...]]) -> None:
    found = head(Aggregated(torch.randn(6), instances=torch.randn(5, 6)))
    assert {name: tuple(value.shape) for name, value in found.items()} == fields


def test_a_head_without_width_names_the_aggregator_s_own_logits() -> None:
    logits = torch.randn(3)
    assert ClassificationHead(None, ("a", "b", "c"))(Aggregated(logits=logits))["logits"] is logits


@pytest.mark.parametrize(
    ("head", "field"),
    [
        (ClassificationHead(6, ("a", "b")), "slide"),
        (ClassificationHead(None, ("a", "b")), "logits"),
        (SegmentationHead(6, ("a", "b")), "instances"),
    ],
)
def test_an_aggregator_that_does_not_fill_what_a_head_reads_is_named(
    head: Head, field: str
) -> None:
    with pytest.raises(PluginError, match=f"head reads '{field}', which the aggregator left None"):
        head(Aggregated())


@pytest.mark.parametrize("classes", [[], ["one"], "normal"])
@pytest.mark.parametrize("head", [ClassificationHead, SegmentationHead])
def test_fewer_than_two_classes_are_refused(head: Any, classes: Any) -> None:
    with pytest.raises(
        SpecError, match=r"head\.classes is .*, expected two or more names: head\.c"
    ):
        head(4, classes)


@pytest.mark.parametrize("bins", [0, -1, 2.5, "4"])
def test_a_number_of_bins_that_makes_no_sense_is_refused(bins: Any) -> None:
    with pytest.raises(SpecError, match=r"head\.bins is .*, expected at least 1 time bin"):
        SurvivalHead(4, bins)


def test_edges_say_what_the_bins_mean() -> None:
    head = SurvivalHead(4, edges=[12, 24.5, 36])
    assert (head.n_outputs, head.edges) == (4, (12.0, 24.5, 36.0))
    assert SurvivalHead(4, bins=3, edges=(1, 2)).n_outputs == 3
    assert (SurvivalHead(4).n_outputs, SurvivalHead(4).edges) == (4, None)


def test_edges_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SpecError, match=r"head\.edges has 2 numbers for 5 bins, expected 4"):
        SurvivalHead(4, bins=5, edges=[1, 2])
    for edges in ([2, 1], [1, 1], [1, float("inf")], ["a"], "soon", 3):
        with pytest.raises(SpecError, match=r"head\.edges is .*, expected ascending times"):
            SurvivalHead(4, edges=edges)  # type: ignore[arg-type]


CLASSIFY, SURVIVE = ClassificationHead(None, ("a", "b")), SurvivalHead(None, bins=3)
SEGMENT, REGRESS = SegmentationHead(None, ("a", "b")), RegressionHead(None)


@pytest.mark.parametrize(
    ("head", "target", "message"),
    [
        (
            CLASSIFY,
            {"time": [1, 1]},
            r"a classification head trains on target\['label'\], .*\['time'\]",
        ),
        (
            CLASSIFY,
            {"label": [0, 2]},
            r"'label' holds 2 \(row 1\), expected a whole number from 0 to 1 .* head of 2",
        ),
        (CLASSIFY, {"label": [-2, 0]}, r"'label' holds -2 .*, or -1 for unknown"),
        (CLASSIFY, {"label": [0.7, 0]}, r"target 'label' holds 0\.7 .* a whole number from 0 to 1"),
        (CLASSIFY, {"label": [0, 1, 1]}, r"target 'label' is \(3,\), expected \(2,\), one number"),
        (SURVIVE, {"time": [1, 1]}, r"a survival head trains on target\['event'\]"),
        (SURVIVE, {"event": [1, 0]}, r"a survival head trains on target\['time'\]"),
        (SURVIVE, {"time": [0, 1], "event": [1, 2]}, r"'event' holds 2 .* from 0 to 1"),
        (SURVIVE, {"time": [0, 1], "event": [0.5, 1]}, r"'event' holds 0\.5 .* from 0 to 1"),
        (SURVIVE, {"time": [3, 0], "event": [1, 0]}, r"'time' holds 3 .*to 2 .* given .* as bins"),
        (SURVIVE, {"time": [-1, 0], "event": [1, 0]}, r"'time' holds -1"),
        (SURVIVE, {"time": [12.5, 0], "event": [1, 0]}, r"'time' holds 12\.5 .* whole number"),
        (REGRESS, {}, r"a regression head trains on target\['value'\], this target has \[\]"),
    ],
)
def test_a_target_that_does_not_fit_is_named(
    head: Head, target: dict[str, Any], message: str
) -> None:
    rows = {name: torch.tensor(value) for name, value in target.items()}
    with pytest.raises(DataError, match=message):
        head.loss(torch.zeros(2, head.n_outputs), rows)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(4).long(), r"is \(4,\), expected \(3,\), one number a patch"),
        (torch.tensor([0, 1, 2]), r"'instances' holds 2 \(row 2\), .* for a segmentation head"),
    ],
)
def test_patch_labels_that_do_not_fit_are_named(labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        SEGMENT.loss(torch.zeros(3, 2), {"instances": labels})


@pytest.mark.parametrize("label", [1, 1.0, True])
def test_a_label_may_be_a_number_of_any_kind(label: Any) -> None:
    loss = CLASSIFY.loss(torch.tensor([[0.0, 2.0]]), {"label": torch.tensor([label])})
    assert float(loss) == pytest.approx(0.126928, abs=1e-6)


def test_values_are_compared_in_squares() -> None:
    raw = torch.tensor([[3.0], [1.0]])
    assert float(REGRESS.loss(raw, {"value": torch.tensor([1, 1])})) == 2.0


def one_logit(**options: Any) -> SegmentationHead:
    return SegmentationHead(6, ("normal", "tumour"), one_logit=True, **options)


def test_two_classes_may_share_one_logit() -> None:
    head = one_logit()
    found = head(Aggregated(torch.randn(6), instances=torch.randn(5, 6)))
    assert found["instance_logits"].shape == (5, 1)
    assert (head.n_outputs, head.classes, head.threshold) == (1, ("normal", "tumour"), 0.5)


def test_classes_may_be_asked_about_one_by_one() -> None:
    head = ClassificationHead(None, ("a", "b", "c"), one_vs_rest=True)
    raw, label = torch.randn(3, 3), torch.tensor([2, -1, 0])
    target = torch.nn.functional.one_hot(label[[0, 2]], 3).float()
    of = torch.nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(head.loss(raw, {"label": label}), of(raw[[0, 2]], target))
    assert float(head.loss(raw, {"label": torch.full((3,), -1)})) == 0


def test_two_classes_of_slides_may_share_one_logit() -> None:
    head = ClassificationHead(None, ("normal", "tumour"), one_logit=True, threshold=0.2)
    raw, label = torch.tensor([[0.3], [-2.0]]), torch.tensor([1, 0])
    of = torch.nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(head.loss(raw, {"label": label}), of(raw[:, 0], label.float()))
    assert (head.n_outputs, head.threshold) == (1, 0.2)
    with pytest.raises(SpecError, match=r"head\.threshold needs head\.one_logit=true"):
        ClassificationHead(None, ("normal", "tumour"), threshold=0.2)
    with pytest.raises(SpecError, match=r"tells two classes apart, head\.classes names 3"):
        ClassificationHead(None, ("a", "b", "c"), one_logit=True)


@pytest.mark.parametrize(
    ("head", "options"),
    [
        (ClassificationHead, {"classes": ("a", "b"), "one_logit": True, "threshold": 0.2}),
        (ClassificationHead, {"one_vs_rest": True}),
        (SegmentationHead, {"classes": ("a", "b"), "one_logit": True, "threshold": 0.2}),
        (SurvivalHead, {"alpha": 0.3, "floor": 1e-7}),
    ],
)
def test_heads_conform_with_their_options(head: Any, options: dict[str, Any]) -> None:
    failed = [
        f"{r.check}: {r.reason}" for r in check_component(head, "head", **options) if not r.passed
    ]
    assert failed == []


def test_shares_of_a_patch_become_labels_at_the_threshold() -> None:
    head = one_logit(threshold=0.2, dice_weight=0.75, pos_weight=3.0)
    raw, ratios = torch.randn(5, 1), torch.tensor([0.0, 0.19, 0.2, 1.0, -1.0])
    expected = bce_dice(raw[:, 0], torch.tensor([0, 0, 1, 1, -1]), 3.0, 0.75)
    assert float(head.loss(raw, {"instances": ratios})) == pytest.approx(float(expected))
    whole = torch.tensor([0, 0, 1, 1, -1])
    assert float(head.loss(raw, {"instances": whole})) == pytest.approx(float(expected))


def test_one_logit_without_options_is_plain_binary_cross_entropy() -> None:
    raw, label = torch.randn(4, 1), torch.tensor([0, 1, 1, 0])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(raw[:, 0], label.float())
    assert float(one_logit().loss(raw, {"instances": label})) == pytest.approx(float(expected))


def test_dice_may_be_mixed_into_the_loss_of_several_classes() -> None:
    raw, label = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, -1, 0])
    head = SegmentationHead(None, ("a", "b", "c"), dice_weight=0.5)
    expected = ce_dice(raw, label, 0.5)
    assert float(head.loss(raw, {"instances": label})) == pytest.approx(float(expected))


@pytest.mark.parametrize("share", [1.01, -0.5, float("nan"), 2])
def test_a_share_that_is_none_is_named(share: float) -> None:
    ratios = torch.tensor([0.5, share])
    with pytest.raises(
        DataError, match=r"'instances' holds .* \(row 1\), expected the share of a p"
    ):
        one_logit().loss(torch.zeros(2, 1), {"instances": ratios})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"one_logit": True}, "one_logit tells two classes apart, head.classes names 3"),
        ({"threshold": 0.2}, r"head\.threshold and head\.pos_weight need head\.one_logit=true"),
        ({"pos_weight": 2.0}, "need head.one_logit=true"),
        ({"threshold": 1.5}, r"head\.threshold is 1\.5, expected a number from 0 to 1"),
        ({"dice_weight": "much"}, r"head\.dice_weight is 'much', expected a number from 0 to 1"),
        ({"pos_weight": -1}, r"head\.pos_weight is -1, expected a number from 0 to inf"),
    ],
)
def test_options_of_segmentation_that_do_not_fit_are_refused(options: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        SegmentationHead(None, ("a", "b", "c"), **options)


def test_the_survival_loss_takes_alpha_and_a_floor() -> None:
    raw = torch.tensor([[40.0, 0.0, 0.0], [0.5, -0.5, 1.0]])
    targets = {"time": torch.tensor([1, 2]), "event": torch.tensor([1, 0])}
    head = SurvivalHead(None, bins=3, alpha=0.4, floor=1e-7)
    expected = discrete_time_nll(raw, targets["time"], targets["event"], 0.4, 1e-7)
    assert float(head.loss(raw, targets)) == pytest.approx(float(expected))
    assert float(SurvivalHead(None, bins=3).loss(raw, targets)) > float(expected)


@pytest.mark.parametrize("options", [{"alpha": 2}, {"alpha": True}, {"floor": 0.9}, {"floor": -1}])
def test_options_of_the_survival_loss_that_make_no_sense_are_refused(options: Any) -> None:
    with pytest.raises(SpecError, match=r"head\.(alpha|floor) is .*, expected a number from 0 to"):
        SurvivalHead(4, **options)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_the_cox_head_compares_the_slides_of_a_batch_by_their_times(ties: str) -> None:
    raw = torch.randn(4, 1)
    targets = {"time": torch.tensor([7.5, 2.0, 2.0, 11.0]), "event": torch.tensor([1, 1, 1, 0])}
    expected = cox_partial_likelihood(raw[:, 0], targets["time"], targets["event"] > 0, ties)
    head = CoxHead(None, ties=ties)
    assert float(head.loss(raw, targets)) == pytest.approx(float(expected))
    assert torch.equal(head.outputs(raw)["risk"], raw[:, 0])


def test_what_does_not_fit_a_cox_head_is_named() -> None:
    head, raw = CoxHead(None), torch.zeros(2, 1)
    for time in (float("nan"), -1.0):
        targets = {"time": torch.tensor([1.0, time]), "event": torch.tensor([1, 0])}
        with pytest.raises(DataError, match=r"'time' holds (nan|-1) \(row 1\), expected a time fr"):
            head.loss(raw, targets)
    with pytest.raises(DataError, match=r"a survival head trains on target\['event'\]"):
        head.loss(raw, {"time": torch.ones(2)})
    with pytest.raises(SpecError, match="ties are handled as 'efron' or 'breslow', not as 'mean'"):
        CoxHead(4, ties="mean")


def test_a_value_may_be_learnt_by_smooth_l1() -> None:
    head = RegressionHead(3, smooth_l1=2.0)
    raw, targets = torch.tensor([[1.0], [9.0]]), {"value": torch.tensor([2.0, 0.0])}
    assert float(head.loss(raw, targets)) == pytest.approx((1 / 4 + 8) / 2)
    with pytest.raises(SpecError, match=r"head.smooth_l1 is -1"):
        RegressionHead(3, smooth_l1=-1)
