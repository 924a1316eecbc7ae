import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsizoo.errors import DataError
from wsizoo.train.metrics import bootstrap_interval, roc_auc, roc_curve

SLIDES = st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=1, max_size=30)
BOTH = SLIDES.filter(lambda slides: len({label for label, _ in slides}) == 2)


def columns(slides: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = zip(*slides, strict=True)
    return np.array(labels), np.array(scores, dtype=float)


@given(BOTH)
def test_auc_equals_counting_pairs_with_ties_half(slides: list[tuple[int, int]]) -> None:
    positive = [score for label, score in slides if label]
    negative = [score for label, score in slides if not label]
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    assert roc_auc(*columns(slides)) == pytest.approx(wins / len(positive) / len(negative))


@given(BOTH)
def test_the_area_under_the_curve_is_the_auc(slides: list[tuple[int, int]]) -> None:
    fpr, tpr = roc_curve(*columns(slides))
    area = float(((tpr[1:] + tpr[:-1]) / 2 * np.diff(fpr)).sum())
    assert area == pytest.approx(roc_auc(*columns(slides)))
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all() and (np.diff(tpr) >= 0).all()


@given(BOTH)
def test_turning_scores_around_turns_the_auc_around(slides: list[tuple[int, int]]) -> None:
    labels, scores = columns(slides)
    assert roc_auc(labels, -scores) == pytest.approx(1 - roc_auc(labels, scores))
    assert roc_auc(labels, np.exp(scores)) == pytest.approx(roc_auc(labels, scores))


def test_infinite_scores_are_ranked_and_tied() -> None:
    labels = np.array([0, 0, 1, 1])
    assert roc_auc(labels, np.array([-np.inf, np.inf, np.inf, np.inf])) == 0.75
    fpr, tpr = roc_curve(labels, np.array([-np.inf, np.inf, np.inf, np.inf]))
    assert (fpr.tolist(), tpr.tolist()) == ([0, 0.5, 1], [0, 1, 1])


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_has_no_auc(label: int) -> None:
    labels, scores = np.full(3, label), np.arange(3.0)
    assert math.isnan(roc_auc(labels, scores))
    assert all(math.isnan(edge) for edge in bootstrap_interval(labels, scores, samples=5))
    with pytest.raises(DataError, match="A ROC curve needs slides of both classes"):
        roc_curve(labels, scores)


@pytest.mark.parametrize("measure", [roc_auc, roc_curve, bootstrap_interval])
@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [0.1], r"labels are \(2,\) and scores \(1,\), expected \(n,\) both"),
        ([[0, 1]], [[0.1, 0.2]], r"labels are \(1, 2\)"),
        ([0, 1, 2], [1, 2, 3], r"labels are \[0, 1, 2\], expected 0 and 1"),
        ([0, 1], [0.5, math.nan], r"1 of 2 scores are NaN"),
    ],
)
def test_what_cannot_be_measured_is_an_error(
    measure: object, labels: list[int], scores: list[float], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        measure(np.array(labels), np.array(scores))  # type: ignore[operator]


def test_the_interval_is_seeded_and_holds_the_auc() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    scores = labels + rng.normal(size=40)
    low, high = bootstrap_interval(labels, scores, samples=200)
    assert (low, high) == bootstrap_interval(labels, scores, samples=200)
    assert (low, high) != bootstrap_interval(labels, scores, samples=200, seed=1)
    assert 0 < low < roc_auc(labels, scores) < high <= 1


def test_a_perfect_separation_has_an_interval_of_one_point() -> None:
    labels = np.array([0, 0, 1, 1])
    assert bootstrap_interval(labels, labels.astype(float), samples=20) == (1.0, 1.0)
