import json
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference

from wsizoo.errors import DataError
from wsizoo.measures.bootstrap import Resamples
from wsizoo.measures.intervals import (
    measure_classification,
    measure_regression,
    measure_segmentation,
    measure_survival,
    regression_measures,
    segmentation_measures,
)
from wsizoo.measures.measured import Measured, from_json, to_json, with_intervals
from wsizoo.measures.metrics import auc_interval, overlap
from wsizoo.measures.probabilities import classification_measures

NAN = math.nan


def values(measures: dict[str, Measured]) -> dict[str, float]:
    return {name: one.value for name, one in measures.items()}


def alike(found: float, expected: float) -> bool:
    return found == pytest.approx(expected, abs=1e-9, nan_ok=True)


def expected_of_classes(labels: np.ndarray, table: np.ndarray) -> dict[str, float]:
    """By scikit-learn, with its warnings of classes that do not occur."""
    n_classes = table.shape[1]
    every, predicted = np.arange(n_classes), table.argmax(1)
    alone = len(np.unique(np.concatenate([labels, predicted]))) == 1
    kinds = np.eye(n_classes, dtype=int)[labels]
    rest = [1] if n_classes == 2 else [c for c in every if c in labels]
    told = {"labels": every, "zero_division": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kappas = [
            reference.cohen_kappa_score(labels, predicted, labels=every, weights=w)
            for w in (None, "quadratic")
        ]
        recalls = reference.recall_score(labels, predicted, average=None, **told)
        found = {
            "accuracy": reference.accuracy_score(labels, predicted),
            "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
            "macro_f1": reference.f1_score(labels, predicted, average="macro", zero_division=0),
            "weighted_f1": reference.f1_score(
                labels, predicted, average="weighted", zero_division=0
            ),
            "kappa": NAN if alone else kappas[0],
            "quadratic_kappa": NAN if alone else kappas[1],
            "brier": reference.brier_score_loss(labels, table, labels=every)
            if n_classes > 2
            else reference.brier_score_loss(labels, table[:, 1], pos_label=1),
            "log_loss": reference.log_loss(labels, table, labels=every),
        }
    for c in every:
        found[f"recall_of_{c}"] = recalls[c] if c in labels else NAN
    defined = len(np.unique(labels)) > 1
    scores = {"auc": reference.roc_auc_score, "auprc": reference.average_precision_score}
    for name, score in scores.items():
        each = [score(kinds[:, c], table[:, c]) for c in rest] if defined else [NAN]
        found[name] = float(np.mean(each))
    return found


@st.composite
def forecasts(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and probabilities (n, C) with ties; classes may not occur."""
    n_classes, n = draw(st.integers(2, 4)), draw(st.integers(1, 25))
    rows = st.lists(st.integers(0, 4), min_size=n_classes, max_size=n_classes).filter(any)
    table = np.array(draw(st.lists(rows, min_size=n, max_size=n)), float)
    labels = draw(st.lists(st.integers(0, n_classes - 1), min_size=n, max_size=n))
    return np.array(labels), table / table.sum(1, keepdims=True)


@settings(max_examples=50, deadline=None)
@given(forecasts())
def test_measures_of_classes_are_those_of_scikit_learn(
    given_: tuple[np.ndarray, np.ndarray],
) -> None:
    labels, table = given_
    found = values(measure_classification(labels, table, resamples=0))
    expected = expected_of_classes(labels, table)
    assert set(found) == {*expected, "ece"}
    for name, value in expected.items():
        assert alike(found[name], value), (name, found[name], value)


@given(forecasts())
def test_the_calibration_error_is_that_of_its_definition(
    given_: tuple[np.ndarray, np.ndarray],
) -> None:
    labels, table = given_
    error, n = 0.0, len(labels)
    for b in range(15):
        rows = [i for i in range(n) if b / 15 < table[i].max() <= (b + 1) / 15]
        right = sum(int(table[i].argmax()) == labels[i] for i in rows)
        error += abs(right - sum(table[i].max() for i in rows)) / n
    assert alike(measure_classification(labels, table, resamples=0)["ece"].value, error)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_every_resample_is_measured_as_scikit_learn_would(n_classes: int) -> None:
    rng = np.random.default_rng(n_classes)
    labels = rng.integers(0, n_classes, 12)
    table = (rng.integers(1, 4, (12, n_classes)) + 2 * np.eye(n_classes)[labels]).astype(float)
    table /= table.sum(1, keepdims=True)
    patients = [i // 2 for i in range(12)]
    drawn = Resamples(12, patients, 60, seed=3)
    (weights,) = drawn.weights()
    measures = classification_measures(labels, table)
    found = dict(zip(measures, drawn.values(*measures.values()), strict=True))
    defined = 0
    for i, counts in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(12), counts)
        expected = expected_of_classes(labels[rows], table[rows])
        if len(np.unique(labels[rows])) < n_classes:  # classes that the whole part has are missing
            expected["auc"] = expected["auprc"] = NAN
        defined += expected["auc"] == expected["auc"]
        for name, value in expected.items():
            assert alike(found[name][i], value), (name, i)
    assert 30 < defined <= 60


NUMBERS = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=1, max_size=25)


def expected_of_numbers(y: np.ndarray, p: np.ndarray) -> dict[str, float]:
    flat = len(set(y)) < 2
    constant = flat or len(set(p)) < 2
    return {
        "mae": reference.mean_absolute_error(y, p),
        "rmse": math.sqrt(reference.mean_squared_error(y, p)),
        "r2": NAN if flat else reference.r2_score(y, p),
        "pearson": NAN if constant else stats.pearsonr(y, p).statistic,
        "spearman": NAN if constant else stats.spearmanr(y, p).statistic,
    }


@given(NUMBERS, st.floats(-1e3, 1e3), st.floats(0.1, 10))
def test_measures_of_numbers_are_those_of_scikit_learn_and_scipy(
    pairs: list[tuple[int, int]], shift: float, scale: float
) -> None:
    y, p = scale * np.array(pairs, float).T + shift
    found = values(measure_regression(y, p, resamples=0))
    for name, value in expected_of_numbers(y, p).items():
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-6, nan_ok=True), name


def test_every_resample_of_numbers_is_measured_as_its_rows_are() -> None:
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 3, (2, 6)).astype(float)
    drawn = Resamples(6, None, 80, seed=1)
    measures = regression_measures(y, p)
    found = dict(zip(measures, drawn.values(*measures.values()), strict=True))
    undefined = 0
    for i, counts in enumerate(next(drawn.weights()).astype(int)):
        rows = np.repeat(np.arange(6), counts)
        expected = expected_of_numbers(y[rows], p[rows])
        undefined += math.isnan(expected["pearson"])
        for name, value in expected.items():
            assert alike(found[name][i], value), (name, i)
    measured = measure_regression(y, p, resamples=80, seed=1)["pearson"]
    assert measured.undefined == undefined > 0


def test_overlap_is_a_mean_over_slides_and_one_of_all_patches() -> None:
    rng = np.random.default_rng(5)
    slides = [rng.integers(0, 2, (2, n)) for n in (4, 30, 11)]
    slides.append(np.zeros((2, 9), int))  # nothing there, nothing called: no Dice
    counts = np.array([[(y & p).sum(), (~y & p & 1).sum(), (y & (1 - p)).sum()] for y, p in slides])
    found = measure_segmentation(*counts.T)
    each = [overlap(y, p) for y, p in slides[:3]]
    pooled = overlap(*np.concatenate(slides, 1))
    assert found["dice_per_slide"].value == pytest.approx(np.mean([one.dice for one in each]))
    assert found["iou_per_slide"].value == pytest.approx(np.mean([one.iou for one in each]))
    assert found["dice_pooled"].value == pytest.approx(pooled.dice)
    assert found["iou_pooled"].value == pytest.approx(pooled.iou)
    assert (found["dice_per_slide"].n, found["dice_pooled"].n) == (3, 4)


def test_overlap_of_several_classes_is_their_mean() -> None:
    tp, fp, fn = np.array([[3, 0], [2, 5]]), np.array([[1, 0], [0, 5]]), np.array([[2, 0], [1, 0]])
    found = values(measure_segmentation(tp, fp, fn, resamples=0))
    assert found["dice_pooled"] == pytest.approx((10 / 14 + 10 / 15) / 2)
    assert found["iou_per_slide"] == pytest.approx((3 / 6 + (2 / 3 + 5 / 10) / 2) / 2)
    only = values(measure_segmentation(tp[:, 0], fp[:, 0], fn[:, 0], resamples=0))
    assert only["dice_pooled"] == pytest.approx(10 / 14)
    assert set(segmentation_measures(tp, fp, fn)) == set(found)


def test_a_part_of_one_class_has_no_ranking_and_keeps_the_rest() -> None:
    found = measure_classification([1, 1, 1], [[0.2, 0.8], [0.6, 0.4], [0.1, 0.9]], resamples=50)
    assert found["accuracy"].value == pytest.approx(2 / 3)
    for name in ("auc", "auprc"):
        one = found[name]
        assert all(math.isnan(x) for x in (one.value, one.low, one.high)), name
    assert math.isnan(found["recall_of_0"].value) and found["recall_of_1"].value < 1


def test_what_is_not_defined_has_no_interval_either() -> None:
    rows = Resamples(3, None, 100, seed=0)
    odd = {"odd": lambda weights: np.where((weights == 1).all(1), NAN, 1.0)}
    found = with_intervals(odd, rows)["odd"]
    assert all(math.isnan(x) for x in (found.value, found.low, found.high))
    assert 5 < found.undefined < 50  # 2 of 9 resamples


def test_a_tuned_threshold_says_so_in_every_name() -> None:
    table = np.array([[0.7, 0.3], [0.8, 0.2], [0.65, 0.35], [0.1, 0.9]])
    plain = measure_classification([0, 0, 1, 1], table, classes=["normal", "tumour"], resamples=0)
    both = measure_classification(
        [0, 0, 1, 1], table, classes=["normal", "tumour"], threshold=0.35, resamples=0
    )
    more = set(both) - set(plain)
    assert more and all(name.endswith("_at_tuned_threshold") for name in more)
    assert plain["accuracy"].value == both["accuracy"].value == 0.75
    assert both["accuracy_at_tuned_threshold"].value == 1
    assert both["recall_of_tumour_at_tuned_threshold"].value == 1
    assert plain["recall_of_tumour"].value == 0.5


def test_measures_go_through_a_json_file_and_nan_with_them() -> None:
    found = measure_classification([1, 1], [[0.5, 0.5], [0.2, 0.8]], resamples=10)
    text = json.dumps(to_json(found), allow_nan=False)
    assert json.loads(text)["auc"]["value"] is None
    again = from_json(json.loads(text))
    assert repr(again) == repr(found) and again["accuracy"] == found["accuracy"]
    assert str(Measured(0.9125, 0.87, 0.95, 10, 5)) == "0.912 (0.870-0.950)"


def test_a_time_dependent_and_a_concordance_measure_come_without_a_survival_function() -> None:
    rng = np.random.default_rng(0)
    times, events = rng.permutation(40), rng.integers(0, 2, 40)
    found = measure_survival(times, events, -times, resamples=20)
    assert set(found) == {"c_index", "time_dependent_auc"}
    assert found["c_index"].value == 1.0


TWO = np.full((2, 2), 0.5)
ONE = [0.5, 0.5]


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: measure_classification([], np.empty((0, 2))), r"probabilities are \(0, 2\), exp"),
        (lambda: measure_classification([0], [0.5]), r"probabilities are \(1,\), expected \(n, C"),
        (lambda: measure_classification([0, 2], TWO), "labels go from 0 to 2, of 2 classes"),
        (lambda: measure_classification([0, -1], TWO), "labels go from -1 to 0, of 2 classes"),
        (lambda: measure_classification([0, 1], [ONE, [NAN, 1]]), r"row 1 is \[nan, 1\.0\], expec"),
        (lambda: measure_classification([0], [[0.9, 0.9]]), "row 0 is .* that sum to 1"),
        (lambda: measure_classification([0, 1, 1], TWO), r"labels are \(3,\) and predictions"),
        (
            lambda: measure_classification([0, 1], TWO, classes=["a"]),
            "2 probabilities a row for 1 classes",
        ),
        (
            lambda: measure_classification([0], [[0.2, 0.3, 0.5]], threshold=0.5),
            "a threshold is between two classes, these are 3",
        ),
        (
            lambda: measure_classification([0, 1], TWO, groups=["a"]),
            "1 groups for 2 rows, expected the patient of each",
        ),
        (
            lambda: measure_classification([0, 1], TWO, resamples=-1),
            "-1 resamples, expected 0 or more",
        ),
        (
            lambda: measure_classification([0, 1], TWO, level=95),
            r"the level of an interval is 95, expected a share such as 0\.95",
        ),
        (lambda: measure_regression([], []), r"values are \(0,\) and predictions \(0,\)"),
        (lambda: measure_regression([1, 2], [1, NAN]), "row 1 is 2, predicted nan: not finite"),
        (lambda: measure_segmentation([1], [1, 2], [1]), r"tp, fp and fn are .*, expected three"),
        (lambda: measure_segmentation([1], [-1], [1]), "count patches, expected whole numbers"),
        (lambda: measure_survival([], [], []), "there are no patients to measure"),
        (lambda: measure_survival([1, NAN], [1, 1], [1, 2]), r"time nan \(row 1\), expected a num"),
        (lambda: measure_survival([1, 2], [1, 1], [1, NAN]), "expected as many, no NaN"),
        (
            lambda: measure_survival([1, 2], [1, 1], [1, 2], survival=TWO),
            "survival per bin and the edges of the bins go together",
        ),
        (
            lambda: measure_survival([1, 2, 3], [1, 1, 1], [1, 2, 3], survival=TWO, edges=[1]),
            "survival is of 2 patients, risks are of 3",
        ),
        (lambda: from_json({"auc": {"value": 1}}), "'auc' is no measure with an interval"),
    ],
)
def test_what_cannot_be_measured_is_named(measure: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        measure()


def test_the_page_on_measures_has_all_of_them() -> None:
    page = (Path(__file__).parent.parent / "docs" / "measures.md").read_text(encoding="utf-8")
    table = [[0.9, 0.1], [0.8, 0.2]]
    names = {
        *measure_classification([0, 1], table, resamples=0),
        *measure_survival([1, 2], [1, 1], [2, 1], survival=table, edges=[1], resamples=0),
        *measure_regression([1, 2], [1, 2], resamples=0),
        *measure_segmentation([1], [1], [1], resamples=0),
    }
    found = {re.sub(r"^recall_of_\d$", "recall_of_CLASS", name) for name in names}
    assert len(found) == 24
    for name in found:
        assert f"`{name}`" in page


def test_an_auc_of_one_is_not_certain() -> None:
    labels, scores = [0] * 8 + [1] * 8, np.linspace(0, 1, 16)
    table = np.stack([1 - scores, scores], 1)
    auc = measure_classification(labels, table)["auc"]
    assert (auc.value, auc.high) == (1, 1)
    assert auc.low == pytest.approx(auc_interval(np.array(labels), scores)[0])
    assert auc.low < 0.8
    assert (auc.method, auc.resamples) == ("Newcombe", 0)


def test_an_auc_of_one_of_patients_with_several_slides_counts_patients() -> None:
    labels, scores = [0] * 8 + [1] * 8, np.linspace(0, 1, 16)
    table = np.stack([1 - scores, scores], 1)
    of_pairs = measure_classification(labels, table, groups=[i // 2 for i in range(16)])["auc"]
    alone = measure_classification([0] * 4 + [1] * 4, table[::2])["auc"]
    assert (of_pairs.low, of_pairs.patients) == (pytest.approx(alone.low), 8)
    both_labels = measure_classification(labels, table, groups=[i % 8 for i in range(16)])["auc"]
    assert both_labels.method == "all resamples alike" and math.isnan(both_labels.low)


def test_a_share_of_zero_or_one_has_the_exact_interval_of_its_patients() -> None:
    """Of three patients' slides, two a patient, all right or all wrong: p ** n = 0.025."""
    labels, groups = [0, 0, 0, 0, 1, 1], list("aabbcc")
    right = np.eye(2)[labels]
    found = measure_classification(labels, right, groups=groups)
    assert (found["accuracy"].low, found["accuracy"].high) == pytest.approx((0.025 ** (1 / 3), 1))
    assert found["recall_of_0"].low == pytest.approx(0.025**0.5), "two patients have that label"
    assert found["accuracy"].method == "Clopper-Pearson"
    wrong = measure_classification(labels, 1 - right, groups=groups, level=0.9)["accuracy"]
    assert (wrong.low, wrong.high) == pytest.approx((0, 1 - 0.05 ** (1 / 3)))
    tuned = measure_classification(labels, right, groups=groups, threshold=0.5)
    assert tuned["accuracy_at_tuned_threshold"].low == found["accuracy"].low


def test_what_no_resample_changes_has_no_interval() -> None:
    labels = [0, 0, 0, 1, 1, 1]
    found = measure_classification(labels, np.eye(2)[labels])
    for name in ("balanced_accuracy", "macro_f1", "kappa", "auprc", "brier", "log_loss"):
        assert math.isnan(found[name].low) and math.isnan(found[name].high), name
        assert found[name].method == "all resamples alike"
    assert str(found["macro_f1"]) == "1.000 (all resamples alike)"
    assert to_json(found)["macro_f1"]["low"] is None
    dice = measure_segmentation([4, 2], [0, 0], [0, 0])["dice_pooled"]
    assert (dice.value, dice.method) == (1, "all resamples alike")
    one_patient = measure_classification([0, 1], [[0.9, 0.1]] * 2, groups=["a", "a"])["accuracy"]
    assert (one_patient.value, one_patient.method) == (0.5, "all resamples alike")


def test_what_resamples_change_keeps_the_bootstrap() -> None:
    found = measure_classification([0] * 10 + [1] * 10, [[0.9, 0.1]] * 9 + [[0.1, 0.9]] * 11)
    assert {one.method for one in found.values() if one.value not in (0, 1)} == {"bootstrap"}
    assert found["accuracy"].low < 0.95 <= found["accuracy"].high
