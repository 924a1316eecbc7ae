import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsizoo.errors import DataError
from wsizoo.measures.bootstrap import of_rows
from wsizoo.measures.compare import delong, holm, mean_std, paired_bootstrap
from wsizoo.measures.metrics import accuracy, roc_auc
from wsizoo.measures.probabilities import classification_measures
from wsizoo.measures.weighted import mean_of

NAN = math.nan
PAIRS = st.lists(
    st.tuples(st.booleans(), st.integers(-3, 3), st.integers(-3, 3)), min_size=4, max_size=25
).filter(lambda rows: 2 <= sum(label for label, _, _ in rows) <= len(rows) - 2)


def wins(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """(m, n): 1, 1/2 or 0, whether a positive scores above a negative."""
    above = scores[positive][:, None] - scores[~positive]
    return (above > 0) + 0.5 * (above == 0)


@given(PAIRS)
def test_delong_is_the_variance_of_its_definition(rows: list[tuple[bool, int, int]]) -> None:
    positive, a, b = (np.array(column) for column in zip(*rows, strict=True))
    a, b = a.astype(float), b.astype(float)
    one, other = wins(a, positive), wins(b, positive)
    m, n = one.shape
    s10 = np.cov(one.mean(1), other.mean(1))  # structural components, pair by pair
    s01 = np.cov(one.mean(0), other.mean(0))
    contrast = np.array([1, -1])
    variance = float(contrast @ (s10 / m + s01 / n) @ contrast)
    found = delong(positive.astype(int), a, b)
    assert found.a == pytest.approx(roc_auc(positive, a))
    assert found.b == pytest.approx(roc_auc(positive, b))
    assert found.value == pytest.approx(one.mean() - other.mean())
    if variance > 1e-9:
        z = abs(one.mean() - other.mean()) / math.sqrt(variance)
        assert found.p == pytest.approx(math.erfc(z / math.sqrt(2)), abs=1e-9)
        reach = 1.959963984540054 * math.sqrt(variance)
        assert found.high - found.value == pytest.approx(reach)
        assert found.value - found.low == pytest.approx(reach)


@given(PAIRS)
def test_swapping_models_turns_the_difference_around(rows: list[tuple[bool, int, int]]) -> None:
    labels, a, b = (np.array(column, float) for column in zip(*rows, strict=True))
    one, other = delong(labels, a, b), delong(labels, b, a)
    assert one.value == pytest.approx(-other.value)
    assert one.p == pytest.approx(other.p, nan_ok=True)
    assert delong(labels, a, np.exp(a)).p == 1.0


def test_delong_finds_a_difference_as_often_as_its_level_says() -> None:
    rng = np.random.default_rng(0)
    labels, found = np.arange(80) % 2, 0
    for _ in range(200):
        a, b = labels + rng.normal(0, 1, (2, 80))  # equally good
        found += delong(labels, a, b).p < 0.05
    assert 2 <= found <= 20


def test_what_delong_does_not_define_is_nan() -> None:
    alone = delong([1, 1, 1], [1, 2, 3], [3, 2, 1])
    assert math.isnan(alone.a) and math.isnan(alone.p)
    single = delong([1, 0, 0], [1, 2, 3], [3, 2, 1])
    assert (single.a, single.b) == (0, 1) and math.isnan(single.p) and math.isnan(single.low)
    certain = delong([1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1])
    assert certain.value == 1 and math.isnan(certain.p)  # no variance to compare it with


def forecasts() -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    rng = np.random.default_rng(8)
    labels, patients = rng.integers(0, 2, 90), np.repeat(np.arange(30), 3).tolist()
    good, bad = (
        1 / (1 + np.exp(-(2 * labels - 1) * size - rng.normal(0, 1, 90))) for size in (2, 0.3)
    )
    return labels, good, bad, patients


def table(p: np.ndarray) -> np.ndarray:
    return np.stack([1 - p, p], 1)


def test_models_are_compared_in_the_same_resamples() -> None:
    labels, good, bad, patients = forecasts()
    one, other = (classification_measures(labels, table(p)) for p in (good, bad))
    found = paired_bootstrap(one["auc"], other["auc"], 90, patients)
    assert found.a == pytest.approx(roc_auc(labels, good))
    assert found.value == pytest.approx(roc_auc(labels, good) - roc_auc(labels, bad))
    assert 0 < found.low < found.value < found.high and found.p == pytest.approx(2 / 2001)
    same = paired_bootstrap(one["auc"], one["auc"], 90, patients)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    back = paired_bootstrap(other["auc"], one["auc"], 90, patients)
    assert (back.low, back.high, back.p) == pytest.approx((-found.high, -found.low, found.p))


def test_any_measure_is_compared_by_its_rows() -> None:
    labels, good, bad, patients = forecasts()
    slow = [
        of_rows(lambda rows, p=p: accuracy(labels[rows], p[rows] > 0.5))  # type: ignore[misc]
        for p in (good, bad)
    ]
    fast = [classification_measures(labels, table(p))["accuracy"] for p in (good, bad)]
    found, expected = (paired_bootstrap(*two, 90, patients, resamples=100) for two in (slow, fast))
    assert vars(found) == pytest.approx(vars(expected))


def test_the_p_value_of_equal_models_is_spread_evenly() -> None:
    rng, found = np.random.default_rng(3), []
    for seed in range(150):
        a, b = rng.normal(0, 1, (2, 50))
        found.append(paired_bootstrap(mean_of(a), mean_of(b), 50, resamples=300, seed=seed).p)
    assert 1 <= np.sum(np.array(found) < 0.05) <= 17
    assert 0.4 < np.mean(found) < 0.6


def test_resamples_that_define_one_model_only_are_left_out() -> None:
    every, some = mean_of(np.array([1.0, 2.0, 3.0])), mean_of(np.array([1.0, NAN, NAN]))
    found = paired_bootstrap(every, some, 3, resamples=200)
    assert 30 < found.undefined < 90  # (2/3)^3 of 200 lack the first row
    nothing = paired_bootstrap(every, mean_of(np.full(3, NAN)), 3, resamples=20)
    assert math.isnan(nothing.value) and math.isnan(nothing.p) and nothing.undefined == 20


def test_folds_are_reported_by_mean_and_sample_std() -> None:
    found = mean_std([0.8, 0.9, NAN, 0.7])
    assert (found.mean, found.std, found.n) == pytest.approx((0.8, 0.1, 3))
    assert str(found) == "0.800 ± 0.100"
    assert math.isnan(mean_std([0.5]).std) and mean_std([0.5]).mean == 0.5
    assert math.isnan(mean_std([]).mean) and mean_std([]).n == 0


def test_holms_p_values_are_those_of_his_procedure() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    found = holm([0.5, NAN, 0.9])
    assert found[[0, 2]].tolist() == [1.0, 1.0] and math.isnan(found[1])
    assert holm([]).tolist() == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.999))
def test_holm_rejects_what_stepping_down_rejects(p_values: list[float], level: float) -> None:
    rejected = set()
    for k, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[i] * (len(p_values) - k) > level:
            break
        rejected.add(i)
    assert set(np.flatnonzero(holm(p_values) <= level)) == rejected


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: delong([0, 1], [1, 2], [1]), r"labels are \(2,\) and scores \(1,\)"),
        (lambda: delong([0, 2], [1, 2], [1, 2]), r"labels are \[0, 2\], expected 0 and 1"),
        (lambda: delong([0, 1], [1, NAN], [1, 2]), "1 of 2 scores are NaN"),
        (lambda: mean_std([[1]]), r"values are \(1, 1\), expected one a seed or fold"),
        (lambda: holm([0.5, 1.5]), r"p-values are \[0\.5, 1\.5\], expected \(k,\) from 0 to 1"),
    ],
)
def test_what_cannot_be_compared_is_named(measure: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        measure()
