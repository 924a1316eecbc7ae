"""Curves for drawing against other people's definitions of them."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import auc as auc_of
from sklearn.metrics import average_precision_score, roc_auc_score

from wsizoo.errors import BackendError
from wsizoo.train.curves import (
    above_median,
    calibration,
    confusion,
    kaplan_meier,
    library,
    log_rank_p,
    precision_recall_points,
    roc_points,
)


def tied_scores(seed, n=200):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    return labels, np.round(rng.normal(size=n) + labels, 1)


@pytest.mark.parametrize("seed", range(5))
def test_areas_under_the_drawn_lines_are_the_measures(seed):
    labels, scores = tied_scores(seed)
    fpr, tpr, auc = roc_points(labels, scores)
    assert auc == pytest.approx(roc_auc_score(labels, scores))
    assert auc_of(fpr, tpr) == pytest.approx(auc)
    recall, precision, area = precision_recall_points(labels, scores)
    assert area == pytest.approx(average_precision_score(labels, scores))
    assert auc_of(recall, precision) == pytest.approx(area)


def test_one_class_has_no_curve():
    assert roc_points([1, 1], [0.2, 0.8]) is None
    assert precision_recall_points([0, 0], [0.2, 0.8]) is None


def test_confusion_counts_labels_by_row():
    assert confusion(["a", "a", "b"], ["a", "b", "b"], ["a", "b"]) == [[1, 1], [0, 1]]


def test_bins_of_calibration_hold_everything_once():
    told = np.array([0.0, 0.1, 0.1000001, 0.55, 1.0, 1.0])
    bins = calibration(told, [0, 0, 1, 1, 1, 0], bins=10)
    assert [b.n for b in bins] == [2, 1, 1, 2]
    assert bins[0].predicted == pytest.approx(0.05)
    assert [b.seen for b in bins] == [0, 1, 1, 0.5]


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (3, 7), (7, 7), (40, 50)])
def test_the_interval_of_a_bin_is_wilsons(hits, n):
    (one,) = calibration([0.5] * n, [1] * hits + [0] * (n - hits))
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert (one.low, one.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_kaplan_meier_of_a_few_patients_by_hand():
    found = kaplan_meier("all", [2, 3, 5, 7], [1, 0, 1, 0])
    assert dict(zip(found.times, found.survival, strict=True)) == pytest.approx(
        {0: 1, 2: 0.75, 3: 0.75, 5: 0.375, 7: 0.375}
    )
    assert found.seen == [True, False, True, False]


def test_log_rank_of_a_textbook_example():
    # Remission of leukaemia, 6-MP against placebo: Freireich et al. 1963, chi-square 16.79.
    treated = [6, 6, 6, 7, 10, 13, 16, 22, 23, 6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    placebo = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]
    events = [1] * 9 + [0] * 12 + [1] * 21
    p = log_rank_p(treated + placebo, events, [True] * 21 + [False] * 21)
    assert p == pytest.approx(4.17e-5, rel=0.01)


def test_each_run_is_split_at_its_own_median():
    high = above_median([1, 2, 3, 101, 102, 103], ["a"] * 3 + ["b"] * 3)
    assert high.tolist() == [False, False, True, False, False, True]


def test_a_library_that_is_not_there_is_asked_for():
    with pytest.raises(BackendError, match=r"need no_such_library.*pip install 'wsizoo\[train\]'"):
        library("no_such_library.part")
