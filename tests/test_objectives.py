from typing import Any

import pytest
import torch
from torch import Tensor

from wsizoo.bag import Bag, BagBatch
from wsizoo.errors import DataError, PluginError
from wsizoo.interfaces import Prediction, SlideOutput
from wsizoo.losses import discrete_time_nll
from wsizoo.mil.heads import ClassificationHead, CoxHead, SegmentationHead, SurvivalHead
from wsizoo.objectives import collate, merged, training_losses
from wsizoo.outputs import stacked


def slide(target: dict[str, Any] | None, n: int = 3) -> Bag:
    return Bag(torch.zeros(n, 2), slide_id="A1", target=target)


def label(value: int) -> Bag:
    return slide({"label": value})


def terms(head: Any, output: SlideOutput, *slides: Bag) -> dict[str, Tensor]:
    return training_losses(head, output, slides)


CLASSES = ("a", "b", "c")


def test_a_batch_has_the_mean_loss_of_its_slides() -> None:
    head = ClassificationHead(None, CLASSES)
    logits = torch.randn(2, 3)
    both = terms(head, SlideOutput(logits=logits), label(0), label(2))
    each = [
        terms(head, SlideOutput(logits=logits[0]), label(0))["task"],
        terms(head, SlideOutput(logits=logits[1]), label(2))["task"],
    ]
    assert float(both["task"]) == pytest.approx(float(sum(each)) / 2)


def test_further_predictions_get_the_task_s_own_loss() -> None:
    head = ClassificationHead(None, CLASSES)
    one, two = torch.randn(3), torch.randn(4, 3)
    chosen = torch.tensor([1, 2, -1, 0])
    predictions = {
        "bag": Prediction(one),
        "pseudo": Prediction(two, weight=0.5),
        "chosen": Prediction(two, chosen, 2.0),
    }
    found = terms(head, SlideOutput(logits=one, predictions=predictions), label(1))
    of = torch.nn.functional.cross_entropy
    assert float(found["bag"]) == pytest.approx(float(found["task"]))
    assert float(found["pseudo"]) == pytest.approx(float(0.5 * of(two, torch.tensor([1] * 4))))
    expected = 2 * of(two[[0, 1, 3]], chosen[[0, 1, 3]])
    assert float(found["chosen"]) == pytest.approx(float(expected))


def test_a_method_may_weigh_the_task_s_loss_against_its_own_terms() -> None:
    head, logits = ClassificationHead(None, CLASSES), torch.randn(3)
    plain = terms(head, SlideOutput(logits=logits), label(1))["task"]
    own = {"own": torch.tensor(2.0)}
    weighed = terms(head, SlideOutput(logits=logits, losses=own, task_weight=0.25), label(1))
    assert float(weighed["task"]) == pytest.approx(float(plain) / 4)
    assert float(weighed["own"]) == 2.0
    joined = stacked([SlideOutput(logits=logits, task_weight=0.25)], BagBatch.pack([label(1)]))
    assert joined.task_weight == 0.25


def test_further_predictions_of_a_batch_belong_to_their_slides() -> None:
    head = ClassificationHead(None, CLASSES)
    logits = torch.randn(3)
    packed = SlideOutput(
        logits=torch.randn(2, 3), predictions={"second": Prediction(logits, slide=1)}
    )
    found = terms(head, packed, label(0), label(2))
    alone = torch.nn.functional.cross_entropy(logits[None], torch.tensor([2]))
    assert float(found["second"]) == pytest.approx(float(alone) / 2)


def test_further_predictions_work_for_survival() -> None:
    head = SurvivalHead(None, bins=4)
    rows = torch.randn(5, 4)
    output = SlideOutput(logits=torch.randn(4), predictions={"tier1": Prediction(rows)})
    found = terms(head, output, slide({"time": 2, "event": True}))
    times, events = torch.tensor([2] * 5), torch.tensor([True] * 5)
    assert float(found["tier1"]) == pytest.approx(float(discrete_time_nll(rows, times, events)))


def test_further_predictions_of_patches_are_compared_patch_by_patch() -> None:
    head = SegmentationHead(None, CLASSES)
    rows, chosen = torch.randn(3, 3), torch.tensor([2, 2, 2])
    predictions = {"same": Prediction(rows), "chosen": Prediction(rows, chosen)}
    output = SlideOutput(instance_logits=rows, predictions=predictions)
    found = terms(head, output, slide({"instances": [0, 1, 2]}))
    assert float(found["same"]) == pytest.approx(float(found["task"]))
    expected = torch.nn.functional.cross_entropy(rows, chosen)
    assert float(found["chosen"]) == pytest.approx(float(expected))


def test_dropped_patches_teach_a_per_patch_head_nothing() -> None:
    head = SegmentationHead(None, CLASSES)
    rows = torch.randn(3, 3)
    kept = torch.tensor([0, 2])
    output = SlideOutput(instance_logits=rows, kept=kept)
    found = terms(head, output, slide({"instances": torch.tensor([0, 1, 2])}))
    expected = torch.nn.functional.cross_entropy(rows[kept], kept)
    assert float(found["task"]) == pytest.approx(float(expected))


def test_the_loss_of_a_batch_is_one_call_with_everything_that_all_slides_state() -> None:
    calls: list[tuple[Tensor, dict[str, Tensor]]] = []

    def loss(raw: Tensor, targets: Any) -> Tensor:
        calls.append((raw, dict(targets)))
        return raw.sum()

    slides = [
        slide({"label": 1, "time": 2.5, "instances": [0, 1, 2]}),
        slide({"label": torch.tensor([2]), "time": 7, "event": True, "instances": [2, 1, 0]}),
    ]
    logits = torch.randn(2, 3)
    found = training_losses(ClassificationHead(None, CLASSES), SlideOutput(logits), slides, loss)
    ((raw, targets),) = calls
    assert torch.equal(raw, logits) and set(found) == {"task"}
    assert {name: value.tolist() for name, value in targets.items()} == {
        "label": [1, 2],
        "time": [2.5, 7.0],
    }
    calls.clear()
    rows = SlideOutput(instance_logits=torch.randn(6, 3))
    training_losses(SegmentationHead(None, CLASSES), rows, slides, loss)
    assert {k: v.tolist() for k, v in calls[0][1].items()} == {"instances": [0, 1, 2, 2, 1, 0]}


def test_a_loss_may_be_several_terms_by_name() -> None:
    def loss(raw: Tensor, targets: Any) -> dict[str, Tensor]:
        return {"a": raw.sum(), "b": raw.square().sum()}

    one = torch.randn(3)
    output = SlideOutput(one, predictions={"again": Prediction(one, weight=0.5)})
    found = training_losses(ClassificationHead(None, CLASSES), output, [label(0)], loss)
    assert set(found) == {"a", "b", "again"}
    assert float(found["again"]) == pytest.approx(float(found["a"] + found["b"]) / 2)


def test_a_prediction_may_choose_whole_targets() -> None:
    head, rows = SurvivalHead(None, bins=4), torch.randn(2, 4)
    chosen = {"time": torch.tensor([0, 3]), "event": torch.tensor([1, 0])}
    output = SlideOutput(torch.randn(4), predictions={"mixed": Prediction(rows, chosen)})
    found = terms(head, output, slide({"time": 2, "event": True}))
    expected = discrete_time_nll(rows, chosen["time"], chosen["event"])
    assert float(found["mixed"]) == pytest.approx(float(expected))


def test_a_prediction_of_kept_patches_is_compared_with_their_labels() -> None:
    head, rows = SegmentationHead(None, CLASSES), torch.randn(6, 3)
    kept = torch.tensor([0, 2, 4])
    first = Prediction(rows[[0, 2]])
    output = SlideOutput(instance_logits=rows, kept=kept, predictions={"kept": first})
    labels = slide({"instances": [0, 1, 2]})
    found = terms(head, output, labels, labels)
    expected = torch.nn.functional.cross_entropy(rows[[0, 2]], torch.tensor([0, 2])) / 2
    assert float(found["kept"]) == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([{"label": "b"}], r"slide 'A1': target 'label' is 'b', expected a number"),
        ([{"instances": [0, 1]}], r"'instances' is \(2,\), expected \(3,\), one label a patch"),
        (
            [{"label": 0}, {"label": [0, 1]}],
            r"'label' has several shapes in one batch: \[\(\), \(2",
        ),
    ],
)
def test_targets_that_do_not_make_a_batch_are_named(targets: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        collate([slide(target) for target in targets])


def test_a_model_without_a_head_needs_a_loss() -> None:
    with pytest.raises(DataError, match="a model without a head has no loss of its own"):
        training_losses(None, SlideOutput(torch.zeros(3)), [label(0)])


def test_a_slide_without_a_target_is_named() -> None:
    with pytest.raises(DataError, match=r"slide 'A1' has no target: Bag\(\.\.\., target=\{'label"):
        terms(ClassificationHead(None, CLASSES), SlideOutput(logits=torch.zeros(3)), slide(None))


def test_a_per_patch_head_without_patch_labels_is_an_error() -> None:
    output = SlideOutput(instance_logits=torch.zeros(3, 3))
    with pytest.raises(DataError, match=r"trains on target\['instances'\], one label a patch"):
        terms(SegmentationHead(None, CLASSES), output, label(0))


@pytest.mark.parametrize("head", [ClassificationHead, SegmentationHead])
def test_a_head_that_fills_nothing_to_compare_is_an_error(head: Any) -> None:
    made = head(None, CLASSES)
    with pytest.raises(PluginError, match=f"the {made.task} head left '.*logits' None"):
        terms(made, SlideOutput(), slide({"label": 0, "instances": [0, 0, 0]}))


def test_two_terms_of_one_name_are_an_error() -> None:
    one = torch.ones(())
    assert merged({"a": one}, {"b": one}) == {"a": one, "b": one}
    with pytest.raises(PluginError, match="two losses of one model are called 'a': rename one"):
        merged({"a": one}, {"a": one})


@pytest.mark.parametrize("field", ["losses", "predictions"])
def test_a_term_that_is_called_task_is_an_error(field: str) -> None:
    value = torch.ones(()) if field == "losses" else Prediction(torch.zeros(3))
    fields: dict[str, Any] = {"logits": torch.zeros(3), field: {"task": value}}
    output = SlideOutput(**fields)
    with pytest.raises(PluginError, match="called 'task'"):
        terms(ClassificationHead(None, CLASSES), output, label(0))


def test_predictions_of_a_head_that_compares_slides_are_compared_with_one_another() -> None:
    head, rows = CoxHead(None), torch.randn(3, 2, 1)
    slides = [slide({"time": time, "event": 1}) for time in (3.0, 1.0, 2.0)]
    predictions = {f"{k}/{i}": Prediction(rows[i, k], slide=i) for i in range(3) for k in (0, 1)}
    both = {f"both/{i}": Prediction(rows[i], weight=0.5, slide=i) for i in range(3)}
    output = SlideOutput(logits=torch.zeros(3, 1), predictions=predictions | both)
    found = terms(head, output, *slides)
    stated = collate(slides)
    expected = {
        **{f"{k}/0": head.loss(rows[:, k], stated) for k in (0, 1)},
        "both/0": 0.5 * (head.loss(rows[:, 0], stated) + head.loss(rows[:, 1], stated)) / 2,
    }
    assert set(found) == {"task", *expected}
    for name, value in expected.items():
        assert float(value) > 0
        torch.testing.assert_close(found[name], value)


def test_rows_of_one_slide_are_not_compared_with_each_other() -> None:
    head, rows = CoxHead(None), torch.randn(5, 1)
    bag = slide({"time": 3.0, "event": 1})
    output = SlideOutput(logits=torch.zeros(1), predictions={"tiers": Prediction(rows)})
    assert float(terms(head, output, bag)["tiers"]) == 0


def test_slides_of_fewer_rows_are_compared_where_they_have_some() -> None:
    head, rows = CoxHead(None), torch.randn(3, 3, 1)
    slides = [slide({"time": time, "event": 1}) for time in (3.0, 1.0, 2.0)]
    lengths = 3, 1, 2
    predictions = {f"t/{i}": Prediction(rows[i, :n], slide=i) for i, n in enumerate(lengths)}
    found = terms(head, SlideOutput(torch.zeros(3, 1), predictions=predictions), *slides)
    two = collate([slides[0], slides[2]])
    expected = 3 * head.loss(rows[:, 0], collate(slides)) + 2 * head.loss(rows[[0, 2], 1], two)
    torch.testing.assert_close(found["t/0"], expected / 6)  # the third row of one slide alone: 0
