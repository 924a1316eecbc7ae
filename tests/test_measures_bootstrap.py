import inspect
import math

import numpy as np
import pytest

from wsizoo.benchmark.results import summarise
from wsizoo.measures import bootstrap
from wsizoo.measures.bootstrap import RESAMPLES, Resamples, interval, of_rows
from wsizoo.measures.compare import paired_bootstrap
from wsizoo.measures.intervals import measure_classification, measure_regression, measure_survival
from wsizoo.measures.weighted import mean_of
from wsizoo.train.measuring import measure_rows
from wsizoo.train.predicting import Measuring


def test_rows_of_a_patient_are_drawn_together_and_as_many_patients_as_there_are() -> None:
    patients = ["a", "b", "a", ("c", 1), "b", "a"]
    (weights,) = Resamples(6, patients, 500, seed=0).weights()
    assert (weights[:, [0, 0, 1]] == weights[:, [2, 5, 4]]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()
    assert weights[:, [0, 1, 3]].mean(0) == pytest.approx(np.ones(3), abs=0.1)


def test_the_seed_decides_and_the_blocks_do_not_change_the_shape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, again, other = (next(Resamples(7, None, 40, seed).weights()) for seed in (1, 1, 2))
    assert (one == again).all() and (one != other).any()
    monkeypatch.setattr(bootstrap, "ENTRIES", 7 * 15)
    blocks = list(Resamples(7, None, 40, 1).weights())
    assert [len(block) for block in blocks] == [15, 15, 10]
    assert (np.concatenate(blocks) == one).all()


def test_patients_that_differ_widen_the_interval_of_slides() -> None:
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(20) < 0.7, 10)  # all ten slides of a patient alike
    table = np.where(right[:, None], [[0.1, 0.9]], [[0.9, 0.1]])
    labels, patients = np.ones(200, int), np.repeat(np.arange(20), 10).tolist()
    by_slide = measure_classification(labels, table)["accuracy"]
    by_patient = measure_classification(labels, table, groups=patients)["accuracy"]
    assert (by_slide.n, by_slide.patients) == (200, 200)
    assert (by_patient.n, by_patient.patients) == (200, 20)
    assert by_patient.value == by_slide.value
    assert by_patient.high - by_patient.low > 2.5 * (by_slide.high - by_slide.low)


def test_the_interval_of_a_mean_is_near_the_one_of_theory_and_covers_it() -> None:
    rng = np.random.default_rng(1)
    covered, n = 0, 60
    for seed in range(100):
        errors = np.abs(rng.normal(0, 1, n))
        found = measure_regression(errors, np.zeros(n), resamples=400, seed=seed)["mae"]
        covered += found.low <= math.sqrt(2 / math.pi) <= found.high
    assert 88 <= covered <= 99  # 95 % nominal, 3 standard errors


def test_percentiles_are_of_the_resamples_that_define_the_measure() -> None:
    drawn = np.array([0.0, math.nan, 1.0, 2.0, 3.0, 4.0])
    assert interval(drawn, 0.5) == (1.0, 3.0, 1)
    low, high, left_out = interval(np.full(3, math.nan), 0.95)
    assert math.isnan(low) and math.isnan(high) and left_out == 3


def test_any_function_of_rows_is_measured_in_resamples() -> None:
    values = np.array([3.0, 1.0, 7.0])
    rows = Resamples(3, None, 50)
    slow, fast = rows.values(of_rows(lambda picked: float(values[picked].mean())), mean_of(values))
    assert slow == pytest.approx(fast)


def test_no_resamples_give_the_value_alone() -> None:
    found = measure_regression([1, 2, 4], [1, 2, 3], resamples=0)["mae"]
    assert found.value == pytest.approx(1 / 3) and math.isnan(found.low) and math.isnan(found.high)
    assert (found.resamples, found.undefined) == (0, 0)


def test_every_interval_is_of_as_many_resamples_by_default() -> None:
    asked = (measure_rows, Measuring.measure, summarise, paired_bootstrap, measure_survival)
    for function in asked:
        assert inspect.signature(function).parameters["resamples"].default == RESAMPLES == 2000
