"""wsizoo.measures.runs: the mean over runs in resamples of the patients of all of them."""

import math

import numpy as np
import pytest

from wsizoo.errors import DataError
from wsizoo.measures.bootstrap import Resamples
from wsizoo.measures.intervals import measure_regression, regression_measures
from wsizoo.measures.probabilities import classification_measures
from wsizoo.measures.runs import Run, mean_measures, measure_runs, patients_of


def run_of(patients: list[str], seed: int) -> tuple[Run, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=len(patients))
    predicted = values + rng.normal(size=len(patients))
    return Run(patients, regression_measures(values, predicted)), values, predicted


def test_a_resample_draws_patients_for_all_runs_at_once() -> None:
    """Against a loop that repeats rows and measures each run anew."""
    names = [list("abcdef"), list("abcdefa"), list("ghij")]
    told = [run_of(each, seed) for seed, each in enumerate(names)]
    runs = [run for run, _, _ in told]
    patients = patients_of(runs)
    drawn = Resamples(17, patients, 50, seed=0)
    expected = []
    for weights in next(drawn.weights()).astype(int):
        assert (weights[:6] == weights[6:12]).all(), "the same patients in each run"
        maes, start = [], 0
        for run, values, predicted in told:
            own = weights[start : start + len(run.patients)]
            start += len(run.patients)
            if own.sum():
                given = np.repeat(values, own), np.repeat(predicted, own)
                maes.append(measure_regression(*given, resamples=0)["mae"].value)
        expected.append(np.mean(maes))
    found = measure_runs(runs, resamples=50)["mae"]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])))
    points = [measure_regression(v, p, resamples=0)["mae"].value for _, v, p in told]
    assert found.value == pytest.approx(np.mean(points))
    assert (found.n, found.patients) == (17, 10)


def test_a_run_without_the_measure_does_not_count() -> None:
    one, values, predicted = run_of(list("abcd"), 0)
    flat = Run(list("efg"), regression_measures([1, 1, 1], [1, 2, 3]))  # no R2
    assert math.isnan(mean_measures([flat])["r2"](np.ones((1, 3)))[0])
    alone = measure_regression(values, predicted, resamples=0)["r2"].value
    assert measure_runs([one, flat], resamples=0)["r2"].value == pytest.approx(alone)
    without = Run(list("efg"), {"mae": flat.measures["mae"]})
    assert measure_runs([one, without], resamples=0)["r2"].value == pytest.approx(alone)


def test_a_mean_auc_of_1_has_an_interval_with_width_where_classes_are_told() -> None:
    labels, table = [0, 1, 0, 1], [[0.9, 0.1], [0.2, 0.8]] * 2
    runs = [Run(list("abcd"), classification_measures(labels, table)) for _ in range(2)]
    of_patients = dict(zip("abcd", labels, strict=True))
    assert math.isnan(measure_runs(runs, resamples=50)["auc"].low)
    told = measure_runs(runs, labels=of_patients, resamples=50)["auc"]
    assert told.value == 1 and told.low < 0.9
    assert (told.resamples, told.undefined) == (0, 0), "Newcombe's interval is of none"
    accuracy = measure_runs(runs, resamples=50)["accuracy"]
    assert accuracy.low == pytest.approx(0.025**0.25), "four patients, however many runs"


def test_no_runs_have_no_mean() -> None:
    with pytest.raises(DataError, match="no run to measure"):
        measure_runs([])
