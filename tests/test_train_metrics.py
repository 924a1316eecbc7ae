import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsizoo.errors import DataError
from wsizoo.train.metrics import auc_interval, roc_auc, roc_curve

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
    assert all(math.isnan(edge) for edge in auc_interval(labels, scores))
    with pytest.raises(DataError, match="A ROC curve needs slides of both classes"):
        roc_curve(labels, scores)


@pytest.mark.parametrize("measure", [roc_auc, roc_curve, auc_interval])
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


def test_the_interval_of_a_perfect_score_is_that_of_newcombes_method_5() -> None:
    # Solved by hand for 8 and 8 slides: (1 - t)^2 = z^2 t (1 - t) (1 + 7 (...)) / 64.
    labels = np.repeat([0, 1], 8)
    low, high = auc_interval(labels, labels.astype(float))
    z2, t = 1.959964**2, low
    variance = t * (1 - t) * (1 + 7 * ((1 - t) / (2 - t) + t / (1 + t))) / 64
    assert (1 - t) ** 2 == pytest.approx(z2 * variance)
    assert 0.74 < low < 0.77
    assert high == 1.0


@given(BOTH)
def test_the_interval_holds_the_auc_and_mirrors_with_the_labels(
    slides: list[tuple[int, int]],
) -> None:
    labels, scores = columns(slides)
    low, high = auc_interval(labels, scores)
    assert 0 <= low <= roc_auc(labels, scores) <= high <= 1
    assert auc_interval(1 - labels, scores) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_more_slides_give_a_narrower_interval() -> None:
    widths = []
    for n in (8, 40, 200):
        labels, scores = np.arange(n) % 2, np.arange(n) % 8 / 8.0
        low, high = auc_interval(labels, scores)
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
