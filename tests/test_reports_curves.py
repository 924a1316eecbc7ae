"""Curves for drawing against other people's definitions of them."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import auc as auc_of
from sklearn.metrics import average_precision_score, roc_auc_score

from wsizoo.measures.intervals import measure_classification
from wsizoo.reports.curves import (
    above_median,
    calibration,
    confusion,
    precision_recall_points,
    roc_points,
    survivors,
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


def test_bins_of_calibration_are_those_of_the_measure():
    rng = np.random.default_rng(0)
    table = rng.dirichlet(np.ones(4), 300)
    labels = rng.integers(0, 4, 300)
    bins = calibration(labels, table, range(300))
    assert sum(one.n for one in bins) == 300
    gap = sum(one.n * abs(one.seen - one.predicted) for one in bins) / 300
    measured = measure_classification(labels, table, resamples=10)["ece"]
    assert gap == pytest.approx(measured.value, abs=1e-12)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (3, 7), (7, 7), (40, 50)])
def test_the_interval_of_a_bin_is_wilsons(hits, n):
    labels, table = [1] * hits + [0] * (n - hits), [[0.4, 0.6]] * n
    (one,) = calibration(labels, table, range(n))
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert (one.low, one.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    (thrice,) = calibration(labels * 3, table * 3, [*range(n)] * 3)
    assert (thrice.low, thrice.high) == pytest.approx((one.low, one.high)), "no patient is new"
    assert thrice.n == 3 * n


def test_kaplan_meier_of_a_few_patients_by_hand():
    found = survivors("all", [2, 3, 5, 7], [1, 0, 1, 0])
    assert dict(zip(found.times, found.survival, strict=True)) == pytest.approx(
        {0: 1, 2: 0.75, 3: 0.75, 5: 0.375, 7: 0.375}
    )
    assert found.seen == [True, False, True, False]


def test_each_run_is_split_at_its_own_median():
    high = above_median([1, 2, 3, 101, 102, 103], ["a"] * 3 + ["b"] * 3)
    assert high.tolist() == [False, False, True, False, False, True]
