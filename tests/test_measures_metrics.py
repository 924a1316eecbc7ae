import csv
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as reference

from wsizoo.errors import DataError
from wsizoo.measures.metrics import (
    Macro,
    accuracy,
    auc_interval,
    concordance_index,
    macro,
    one_vs_rest_auc,
    overlap,
    roc_auc,
    roc_curve,
    share_interval,
)

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


@pytest.mark.parametrize(("right", "n", "level"), [(0, 1, 0.95), (3, 7, 0.9), (40, 40, 0.95)])
def test_the_interval_of_a_share_is_the_exact_one(right: int, n: int, level: float) -> None:
    expected = binomtest(right, n).proportion_ci(level, method="exact")
    assert share_interval(right, n, level) == pytest.approx((expected.low, expected.high))


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


ANSWERS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=25)


@given(ANSWERS)
def test_accuracy_and_macro_means_are_those_of_scikit_learn(answers: list[tuple[int, int]]) -> None:
    labels, predicted = np.array(answers).T
    options = {"average": "macro", "zero_division": 0}
    expected = [
        getattr(reference, f"{name}_score")(labels, predicted, **options)
        for name in ("f1", "precision", "recall")
    ]
    found = macro(labels, predicted)
    assert [found.f1, found.precision, found.recall] == pytest.approx(expected, abs=1e-12)
    assert accuracy(labels, predicted) == pytest.approx((labels == predicted).mean())


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=25))
def test_overlap_is_that_of_scikit_learn(patches: list[tuple[int, int]]) -> None:
    labels, predicted = np.array(patches).T
    names = {"dice": "f1", "iou": "jaccard", "precision": "precision", "recall": "recall"}
    found = overlap(labels, predicted)
    for name, other in names.items():
        expected = getattr(reference, f"{other}_score")(labels, predicted, zero_division=0)
        assert getattr(found, name) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 4)), min_size=1))
def test_each_class_has_its_auc_against_the_others(slides: list[tuple[int, int, int]]) -> None:
    table = np.array([[a, b, a - b] for _, a, b in slides], dtype=float)
    labels = np.array([label for label, _, _ in slides])
    found = one_vs_rest_auc(labels, table)
    for c in range(3):
        expected = roc_auc((labels == c).astype(int), table[:, c])
        assert found[c] == expected or (math.isnan(found[c]) and math.isnan(expected))
    if (labels != 2).all():
        assert math.isnan(found[2])


PATIENTS = st.lists(
    st.tuples(st.integers(0, 5), st.booleans(), st.integers(-3, 3)), min_size=1, max_size=20
)


@given(PATIENTS)
def test_concordance_equals_counting_pairs(patients: list[tuple[int, bool, int]]) -> None:
    right, pairs = 0.0, 0
    for time, event, risk in patients:
        for other_time, other_event, other_risk in patients:
            if event and (time < other_time or (time == other_time and not other_event)):
                pairs += 1
                right += (risk > other_risk) + 0.5 * (risk == other_risk)
    found = concordance_index(*zip(*patients, strict=True))
    assert found == pytest.approx(right / pairs) if pairs else math.isnan(found)


def test_risks_that_differ_by_less_than_rounding_are_tied() -> None:
    assert concordance_index([1, 2], [1, 1], [0.5, 0.5 - 1e-9]) == 0.5
    assert concordance_index([1, 2], [1, 1], [0.5, 0.5 - 1e-7]) == 1.0


def survival_tables() -> list[Path]:
    folder = Path(os.environ.get("WSIZOO_DATA", "nowhere")) / "survival"
    return sorted(folder.glob("tcga_*_risk_fold*.csv"))


@pytest.mark.skipif(not survival_tables(), reason="WSIZOO_DATA holds no published risks")
def test_concordance_equals_what_was_published() -> None:
    for path in survival_tables():
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        months, censored, risk = (
            np.array([float(row[name]) for row in rows])
            for name in ("survival_months", "censorship", "risk")
        )
        cohort, _, fold = path.stem.rpartition("_risk_fold")
        with open(path.with_name(f"{cohort}_published_cindex.csv"), encoding="utf-8") as file:
            published = {row["folds"]: float(row["val_cindex"]) for row in csv.DictReader(file)}
        assert concordance_index(months, 1 - censored, risk) == pytest.approx(
            published[fold], abs=1e-12
        )


def test_measures_of_nothing_are_nan() -> None:
    none: list[int] = []
    assert math.isnan(accuracy(none, none)) and math.isnan(macro(none, none).f1)
    assert math.isnan(concordance_index(none, none, none))
    assert overlap(none, none).dice == 0
    assert macro([1, 1], [1, 1]) == Macro(1, 1, 1)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (
            lambda: accuracy([0, 1], [0]),
            r"labels are \(2,\) and predictions \(1,\), expected \(n,\)",
        ),
        (lambda: macro([0, 1], [0, 0.5]), "are class indices, expected whole numbers"),
        (lambda: overlap([0, 2], [0, 1]), "overlap is of labels and predictions that are 0 or 1"),
        (
            lambda: one_vs_rest_auc([0, 1], [0.1, 0.2]),
            r"probabilities are \(2,\), expected \(n, C\)",
        ),
        (lambda: one_vs_rest_auc([0, 2], np.eye(2)), "labels go from 0 to 2, of 2 classes"),
        (lambda: concordance_index([1], [1, 0], [1]), r"times are \(1,\) and events \(2,\)"),
        (lambda: concordance_index([1], [0.5], [1]), r"events are \[0\.5\], expected 0 and 1"),
        (lambda: concordance_index([1, 2], [1, 0], [1]), r"risks are \(1,\) for 2 times, expected"),
        (lambda: concordance_index([1], [1], [math.nan]), "expected as many, no NaN"),
    ],
)
def test_what_cannot_be_measured_is_named(measure: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        measure()
