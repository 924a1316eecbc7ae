import pytest
import torch

from wsizoo.errors import DataError
from wsizoo.interfaces import Head, SlideOutput
from wsizoo.mil.heads import (
    ClassificationHead,
    CoxHead,
    RegressionHead,
    SegmentationHead,
    SurvivalHead,
)
from wsizoo.mil.pooling import MeanPooling
from wsizoo.model import SlideModel
from wsizoo.spec import ModelSpec
from wsizoo.viz.classes import classes_of_patches, read_classes


def model(classes: list[str], threshold: float | None = None) -> SlideModel:
    named = {"name": "segmentation", "classes": classes}
    spec = ModelSpec(summary="s", licence="MIT", source="x", head=named)
    head = None
    if threshold is not None:
        head = SegmentationHead(4, classes, one_logit=True, threshold=threshold)
    return SlideModel("toy", spec, 4, aggregator=MeanPooling(4, dim=4), head=head)


def test_several_logits_are_softmax_and_the_likeliest_class() -> None:
    logits = torch.randn(5, 3)
    found = read_classes(model(["a", "b", "c"]), logits)
    assert found.names == ["a", "b", "c"]
    assert torch.equal(found.probabilities, logits.softmax(-1))
    assert torch.equal(found.called, logits.argmax(-1))


def test_one_question_a_class_is_answered_as_it_was_trained() -> None:
    asked, names = model(["a", "b", "c"]), ["a", "b", "c"]
    asked.head = ClassificationHead(4, names, one_vs_rest=True)
    logits = torch.tensor([[-30.0, -31.0, -40.0], [9.0, 8.0, -9.0]])
    found = read_classes(asked, logits)
    each = torch.sigmoid(logits.double())
    expected = each / each.sum(-1, keepdim=True)
    torch.testing.assert_close(found.probabilities, expected.float())
    assert found.called.tolist() == [0, 0]


@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_one_logit_is_sigmoid_and_a_threshold(threshold: float) -> None:
    positive = torch.tensor([0.1, 0.3, 0.6])
    found = read_classes(model(["normal", "tumour"], threshold), torch.logit(positive)[:, None])
    assert torch.allclose(found.probabilities, torch.stack([1 - positive, positive], 1))
    assert found.called.tolist() == (positive >= threshold).long().tolist()


def test_one_logit_of_a_slide_is_called_at_one_half() -> None:
    found = read_classes(model(["no", "yes"]), torch.tensor([0.0]))
    assert (found.probabilities.tolist(), int(found.called)) == ([0.5, 0.5], 1)


@pytest.mark.parametrize(
    ("count", "names"), [(1, ["0", "1"]), (2, ["0", "1"]), (3, ["0", "1", "2"])]
)
def test_classes_that_nobody_names_are_numbered(count: int, names: list[str]) -> None:
    assert read_classes(model([]), torch.zeros(4, count)).names == names


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (1, r"'toy' gives 1 logits and names 3 classes .*; expected two for one logit"),
        (2, r"'toy' gives 2 logits and names 3 classes .*; expected one name each"),
    ],
)
def test_another_number_of_names_is_never_guessed(count: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_classes(model(["a", "b", "c"]), torch.zeros(4, count))


@pytest.mark.parametrize("head", [CoxHead(4), SurvivalHead(4, 3), RegressionHead(4)])
def test_numbers_that_are_no_classes_are_not_read_as_some(head: Head) -> None:
    other = model([])
    other.head = head
    with pytest.raises(DataError, match=f"'toy' has a {head.task} head, whose logits are no class"):
        read_classes(other, torch.zeros(4, 2))
    assert classes_of_patches(other, SlideOutput(instance_logits=torch.zeros(4, 2))) is None


def test_classes_of_patches_are_there_where_a_model_gives_some() -> None:
    logits = torch.randn(5, 2)
    found = classes_of_patches(model(["a", "b"]), SlideOutput(instance_logits=logits))
    assert found is not None and torch.equal(found.probabilities, logits.softmax(-1))
    assert classes_of_patches(model(["a", "b"]), SlideOutput(logits=logits[0])) is None
