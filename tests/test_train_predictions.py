"""wsizoo.train.predictions: rows of what a model says, and their means by patient."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from wsizoo.errors import DataError
from wsizoo.interfaces import SlideOutput
from wsizoo.train.predictions import by_patient, one_target_each, prediction


def model(task: str, classes: tuple[str, ...] = (), threshold: float | None = None) -> Any:
    head = SimpleNamespace(task=task, threshold=threshold)
    return SimpleNamespace(name="toy", classes=list(classes), head=head)


def row(task: str, output: SlideOutput, target: dict[str, Any], **more: Any) -> dict[str, Any]:
    return prediction(task, model(task, **more), output, target)


def test_a_class_has_its_probabilities() -> None:
    found = row(
        "classification",
        SlideOutput(logits=torch.tensor([0.0, 1.0])),
        {"label": 0},
        classes=("a", "b"),
    )
    assert found == {"label": "a", "predicted": "b", "p_a": 0.2689414, "p_b": 0.7310586}


def test_survival_is_the_product_over_the_bins() -> None:
    output = SlideOutput(hazards=torch.tensor([0.5, 0.5]), risk=torch.tensor(-0.75))
    assert row("survival", output, {"time": 7.5, "event": 1}) == {
        "time": 7.5, "event": 1, "risk": -0.75, "s_0": 0.5, "s_1": 0.25,
    }  # fmt: skip
    alone = row("survival", SlideOutput(value=torch.tensor(2.0)), {"time": 1, "event": 0})
    assert alone == {"time": 1.0, "event": 0, "risk": 2.0}


def test_patches_are_counted_and_unknown_ones_left_out() -> None:
    logits = torch.tensor([[2.0], [-2.0], [2.0], [2.0]])
    target = {"instances": torch.tensor([0.9, 0.8, 0.1, -1.0])}
    output = SlideOutput(instance_logits=logits)
    found = row("segmentation", output, target, classes=("no", "yes"), threshold=0.5)
    assert found == {"dice": 0.5, "iou": 0.3333333, "tp": 1, "fp": 1, "fn": 1}


def test_each_of_several_classes_is_counted() -> None:
    logits = torch.eye(3)[[0, 1, 2, 2]]
    target = {"instances": torch.tensor([0, 1, 1, 2])}
    found = row(
        "segmentation", SlideOutput(instance_logits=logits), target, classes=("o", "a", "b")
    )
    assert {k: found[k] for k in ("tp", "fp", "fn")} == {"tp": 2, "fp": 1, "fn": 1}
    assert (found["tp_a"], found["fn_a"], found["tp_b"], found["fp_b"]) == (1, 1, 1, 1)


def test_patches_that_a_selector_left_out_are_of_the_first_class() -> None:
    output = SlideOutput(instance_logits=torch.tensor([[9.0]] * 4), kept=torch.tensor([0, 1]))
    target = {"instances": torch.tensor([1, 1, 1, 0])}
    found = row("segmentation", output, target, classes=("no", "yes"), threshold=0.5)
    assert (found["tp"], found["fp"], found["fn"]) == (2, 0, 1)


def test_no_patch_to_find_has_no_dice() -> None:
    output = SlideOutput(instance_logits=torch.tensor([[-9.0]] * 4))
    found = row(
        "segmentation", output, {"instances": torch.zeros(4)}, classes=("n", "y"), threshold=0.5
    )
    assert (found["dice"], found["iou"]) == (None, None)


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("classification", "'toy' gives no logits of a slide"),
        ("survival", "'toy' gives neither risk nor value: give it head=survival"),
        ("regression", "'toy' gives no value: give it head=regression"),
        ("segmentation", "'toy' gives no class a patch: give it head=segmentation"),
    ],
)
def test_a_model_of_another_task_is_told(task: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        row(task, SlideOutput(), {})


def rows(*labels: str) -> list[dict[str, Any]]:
    return [
        {"slide": f"s{i}", "patient": "P", "part": "test", "label": label, "predicted": "a",
         "p_a": 0.9 - 0.6 * i, "p_b": 0.1 + 0.6 * i}
        for i, label in enumerate(labels)
    ]  # fmt: skip


def test_a_patient_is_the_mean_of_its_slides() -> None:
    (found,) = by_patient(rows("b", "b"), "classification")
    assert found == {
        "patient": "P", "part": "test", "label": "b", "predicted": "a", "p_a": 0.6, "p_b": 0.4,
        "slides": 2,
    }  # fmt: skip


def test_counts_of_a_patient_are_added() -> None:
    slide = {
        "slide": "s",
        "patient": "P",
        "part": "val",
        "dice": 1.0,
        "iou": 1.0,
        "tp": 2,
        "fp": 0,
        "fn": 0,
    }
    other = {**slide, "tp": 0, "fp": 2, "fn": 2, "dice": 0.0, "iou": 0.0}
    (found,) = by_patient([slide, other], "segmentation")
    assert (found["tp"], found["fp"], found["fn"], found["dice"]) == (2, 2, 2, 0.5)


def test_a_patient_of_several_targets_is_none() -> None:
    assert one_target_each(rows("a", "a"), "classification")
    assert not one_target_each(rows("a", "b"), "classification")
    with pytest.raises(
        DataError,
        match=r"slides of patient 'P' have several values of label: a, b. A patient needs",
    ):
        by_patient(rows("a", "b"), "classification")
