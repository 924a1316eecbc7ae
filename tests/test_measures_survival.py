import csv
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wsizoo.errors import DataError
from wsizoo.measures.bootstrap import Resamples
from wsizoo.measures.intervals import measure_survival, survival_measures
from wsizoo.measures.metrics import concordance_index
from wsizoo.measures.survival import (
    auc_over_time,
    brier_over_time,
    integrated_brier,
    kaplan_meier,
    log_rank,
    mean_auc,
    risk_groups,
    survival_at,
    survival_curve,
    times_to_measure_at,
)

sksurv: Any = pytest.importorskip("sksurv.metrics")
Cohort = tuple[np.ndarray, np.ndarray]
NAN = math.nan
SLOW = settings(deadline=None)

# Times with many ties, some of events with censored ones; risks with ties.
COHORT = st.lists(
    st.tuples(st.integers(1, 12), st.booleans(), st.integers(-3, 3)), min_size=3, max_size=30
)


def columns(rows: list[tuple[int, bool, int]]) -> tuple[Cohort, np.ndarray]:
    times, events, risk = (np.array(column) for column in zip(*rows, strict=True))
    return (times.astype(float), events), risk.astype(float)


def structured(patients: Cohort) -> np.ndarray:
    return np.array(
        list(zip(*reversed(patients), strict=True)), dtype=[("event", bool), ("time", float)]
    )


def inner(patients: Cohort) -> np.ndarray:
    """Times that scikit-survival measures at: at or after the first, before the last."""
    distinct: np.ndarray = np.unique(patients[0])
    return np.sort(np.concatenate([distinct[:-1], (distinct[1:] + distinct[:-1]) / 2]))


def ones(patients: Cohort) -> np.ndarray:
    return np.ones((1, len(patients[0])))


@SLOW
@given(COHORT)
def test_concordance_is_that_of_scikit_survival(rows: list[tuple[int, bool, int]]) -> None:
    (times, events), risk = columns(rows)
    found = concordance_index(times, events, risk)
    if math.isnan(found):  # nobody outlived an event, for which the oracle has no answer
        later = (times[None] > times[:, None]) | ((times[None] == times[:, None]) & ~events)
        assert not (later & events[:, None]).any()
    else:
        expected = sksurv.concordance_index_censored(events, times, risk)[0]
        assert found == pytest.approx(expected, abs=1e-9)


@SLOW
@given(COHORT, st.integers(0, 9))
def test_brier_scores_are_those_of_scikit_survival(
    rows: list[tuple[int, bool, int]], seed: int
) -> None:
    patients, _ = columns(rows)
    at = inner(patients)
    assume(patients[1].any() and len(at) > 1)
    told = structured(patients)
    drops = np.random.default_rng(seed).uniform(0.5, 1, (len(rows), len(at)))
    forecast = np.cumprod(drops, 1)
    _, expected = sksurv.brier_score(told, told, forecast, at)
    found = brier_over_time(patients, forecast, at)(ones(patients))[0]
    assert found == pytest.approx(expected, abs=1e-9)
    total = sksurv.integrated_brier_score(told, told, forecast, at)
    found = integrated_brier(patients, forecast, at)(ones(patients))[0]
    assert found == pytest.approx(total, abs=1e-9)


@SLOW
@given(COHORT)
def test_aucs_over_time_are_those_of_scikit_survival(rows: list[tuple[int, bool, int]]) -> None:
    patients, risk = columns(rows)
    times, events = patients
    at = inner(patients)
    at = at[at >= times[events].min(initial=99)]  # before the first event there is nobody to rank
    last = times.max()
    assume(len(at) > 0 and not (events & (times == last)).any())  # where G may be 0, it refuses
    told = structured(patients)
    expected, mean = sksurv.cumulative_dynamic_auc(told, told, risk, at)
    assert auc_over_time(patients, risk, at)(ones(patients))[0] == pytest.approx(expected, abs=1e-9)
    assert mean_auc(patients, risk, at)(ones(patients))[0] == pytest.approx(mean, abs=1e-9)


@SLOW
@given(COHORT, COHORT)
def test_censoring_may_be_told_by_the_training_part(
    rows: list[tuple[int, bool, int]], train: list[tuple[int, bool, int]]
) -> None:
    patients, risk = columns(rows)
    others, _ = columns([*train, (13, False, 0)])
    at = inner(patients)
    assume(patients[1].any() and others[1].any() and len(at) > 1)
    told = structured(others), structured(patients)
    forecast = np.linspace(0.9, 0.2, len(at)) * np.ones((len(rows), 1))
    total = sksurv.integrated_brier_score(*told, forecast, at)
    found = integrated_brier(patients, forecast, at, others)(ones(patients))[0]
    assert found == pytest.approx(total, abs=1e-9)
    at = at[at >= patients[0][patients[1]].min()]
    assume(len(at) > 0)
    _, mean = sksurv.cumulative_dynamic_auc(*told, risk, at)
    found = mean_auc(patients, risk, at, others)(ones(patients))[0]
    assert found == pytest.approx(mean, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(COHORT)
def test_kaplan_meier_in_resamples_is_that_of_lifelines(rows: list[tuple[int, bool, int]]) -> None:
    lifelines = pytest.importorskip("lifelines")
    (times, events), _ = columns(rows)
    at = np.unique(times)
    for weights in next(Resamples(len(rows), None, 3, seed=len(rows)).weights()):
        picked = np.repeat(np.arange(len(rows)), weights.astype(int))
        fitter = lifelines.KaplanMeierFitter().fit(times[picked], events[picked])
        expected = fitter.survival_function_at_times(at).to_numpy()
        found = survival_curve(times, events)(weights[None], at)[0]
        assert found == pytest.approx(expected, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(COHORT)
def test_halves_of_a_cohort_have_curves_and_a_log_rank_test(
    rows: list[tuple[int, bool, int]],
) -> None:
    compare = pytest.importorskip("sksurv.compare")
    patients, risk = columns(rows)
    high = risk > np.median(risk)
    found = risk_groups(*patients, risk)
    assert found.median == np.median(risk)
    assert (found.high is None) == (not high.any())
    for half, rows_of in ((found.low, ~high), (found.high, high)):
        if half is not None:
            own = patients[0][rows_of], patients[1][rows_of]
            curve = survival_curve(*own)(ones(own), np.array(half.times))[0]
            assert half.survival == pytest.approx(curve.tolist(), abs=1e-9)
            assert (half.times[0], half.survival[0], half.at_risk[0]) == (0, 1, rows_of.sum())
            assert len(half.low) == len(half.high) == len(half.times)
    if not high.any() or not patients[1].any():
        assert math.isnan(found.p)
    elif math.isfinite(found.p) and found.p < 1:
        _, p = compare.compare_survival(structured(patients), high)
        assert found.p == pytest.approx(p, abs=1e-6)


def test_forecasts_of_bins_are_constant_between_their_ends() -> None:
    table = [[0.9, 0.5, 0.2], [1.0, 0.3, 0.1]]
    at = [0, 4.9, 5, 7, 9, 100]
    found = survival_at(table, [5, 9], at)
    assert found.tolist() == [[1, 1, 0.9, 0.9, 0.5, 0.5], [1, 1, 1, 1, 0.3, 0.3]]
    assert survival_at([[0.4]], [], [1, 2]).tolist() == [[1, 1]]  # one bin that never ends


def test_the_integrated_brier_of_bins_is_that_of_their_step_function() -> None:
    rng = np.random.default_rng(4)
    times, events = rng.integers(1, 40, 60), rng.random(60) < 0.6
    table = np.cumprod(rng.uniform(0.4, 1, (60, 4)), 1)
    patients = times.astype(float), events
    at = times_to_measure_at(*patients)
    told = structured(patients)
    steps = np.array(
        [[([1, *row][sum(t >= e for e in (6, 12, 24))]) for t in at] for row in table.tolist()]
    )
    expected = sksurv.integrated_brier_score(told, told, steps, at)
    found = measure_survival(times, events, -table.sum(1), survival=table, edges=[6, 12, 24])
    assert found["integrated_brier"].value == pytest.approx(expected, abs=1e-9)
    assert found["integrated_brier"].low < expected < found["integrated_brier"].high


def test_the_times_of_measures_are_those_of_events_and_never_the_last() -> None:
    times = np.array([1.0, 2, 3, 4, 5, 9, 9])
    assert times_to_measure_at(times, times < 6).tolist() == [1, 2, 3, 4, 5]
    assert times_to_measure_at(times, times > 5).tolist() == []
    assert times_to_measure_at(times, times > 99).tolist() == []
    many = np.arange(1000.0)
    assert len(times_to_measure_at(many, many >= 0)) == 17


def test_every_resample_is_measured_as_its_patients_are() -> None:
    rng = np.random.default_rng(2)
    times, events, risk = rng.integers(1, 9, 14), rng.random(14) < 0.6, rng.integers(0, 4, 14)
    table = np.cumprod(rng.uniform(0.3, 1, (14, 3)), 1)
    told: dict[str, Any] = {"edges": [3, 6], "at": [2, 3.5, 5, 6]}
    measures = survival_measures(times, events, risk, survival=table, **told)
    drawn = Resamples(14, np.repeat(np.arange(7), 2).tolist(), 40, seed=5)
    found = dict(zip(measures, drawn.values(*measures.values()), strict=True))
    undefined = 0
    for i, counts in enumerate(next(drawn.weights()).astype(int)):
        rows = np.repeat(np.arange(14), counts)
        own = measure_survival(
            times[rows], events[rows], risk[rows], survival=table[rows], resamples=0, **told
        )
        for name, one in own.items():
            assert found[name][i] == pytest.approx(one.value, nan_ok=True), (name, i)
            undefined += math.isnan(one.value)
    assert undefined < 40


def test_where_all_are_censored_nothing_is_defined_but_the_brier_score() -> None:
    table = np.full((4, 2), 0.5)
    found = measure_survival(
        [1, 2, 3, 4], [0] * 4, [1, 2, 3, 4], survival=table, edges=[2], at=[2, 3], resamples=30
    )
    assert math.isnan(found["c_index"].value) and found["c_index"].undefined == 30
    assert math.isnan(found["time_dependent_auc"].value)
    assert found["integrated_brier"].value == pytest.approx(0.25)
    alone = measure_survival([1, 2], [0, 0], [1, 2], survival=table[:2], edges=[2], resamples=0)
    assert math.isnan(alone["integrated_brier"].value)  # no times of events to measure at


def test_a_resample_without_an_early_death_keeps_its_auc() -> None:
    times, events = np.arange(1.0, 17), np.arange(16) < 10
    risk = np.random.default_rng(0).normal(size=16) - times / 8
    at = times_to_measure_at(times, events)
    assert at[0] == times[0]  # one death: a third of the resamples lack it
    weights = np.ones((1, 16))
    weights[0, 0] = 0
    found = mean_auc((times, events), risk, at)(weights)[0]
    left = (times[1:], events[1:])
    assert found == pytest.approx(mean_auc(left, risk[1:], at[1:])(np.ones((1, 15)))[0])
    measured = measure_survival(times, events, risk)["time_dependent_auc"]
    assert measured.undefined < 20  # of 2000


def test_a_training_part_without_anyone_left_defines_nothing() -> None:
    train = ([1, 2], [1, 0])  # G is 0 from 2 on
    found = measure_survival([1, 3, 4], [1, 1, 1], [3, 2, 1], at=[3], censoring=train, resamples=0)
    assert math.isnan(found["time_dependent_auc"].value) and found["c_index"].value == 1


def test_what_is_unknown_after_the_last_patient_left_is_nan() -> None:
    forecast, at = np.full((3, 2), 0.5), np.array([2.0, 4.0])
    left = np.array([1.0, 2, 3]), np.array([True, True, False])  # the third was censored at 3
    known, unknown = brier_over_time(left, forecast, at)(np.ones((1, 3)))[0]
    assert known == pytest.approx(0.25) and math.isnan(unknown)
    died = left[0], np.array([True, True, True])
    assert brier_over_time(died, forecast, at)(np.ones((1, 3)))[0].tolist() == [0.25, 0.25]


def survival_tables() -> list[Path]:
    folder = Path(os.environ.get("WSIZOO_DATA", "nowhere")) / "survival"
    return sorted(folder.glob("tcga_*_risk_fold*.csv"))


@pytest.mark.skipif(not survival_tables(), reason="WSIZOO_DATA holds no published risks")
def test_published_concordance_lies_in_its_interval() -> None:
    for path in survival_tables():
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        months, censored, risk = (
            [float(row[name]) for row in rows] for name in ("survival_months", "censorship", "risk")
        )
        cohort, _, fold = path.stem.rpartition("_risk_fold")
        with open(path.with_name(f"{cohort}_published_cindex.csv"), encoding="utf-8") as file:
            published = {row["folds"]: float(row["val_cindex"]) for row in csv.DictReader(file)}
        patients = [row["case_id"] for row in rows]
        found = measure_survival(months, [1 - c for c in censored], risk, groups=patients)
        one = found["c_index"]
        assert one.value == pytest.approx(published[fold], abs=1e-12)
        assert one.low < one.value < one.high and one.patients == len(rows)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: kaplan_meier([], []), "there are no patients to measure"),
        (lambda: kaplan_meier([1, -1], [1, 1]), r"time -1 \(row 1\), expected a number from 0 on"),
        (lambda: kaplan_meier([1, math.inf], [1, 1]), r"time inf \(row 1\)"),
        (lambda: kaplan_meier([1, 2], [1, 2]), r"events are \[1, 2\], expected 0 and 1"),
        (lambda: log_rank([1, 2], [1, 1], [True]), r"\(1,\) says who is in a group of 2 patients"),
        (lambda: risk_groups([1, 2], [1, 1], [1]), r"risks are \(1,\) for 2 times"),
        (lambda: survival_at([[1, 0.5]], [1, 2], [1]), r"survival is \(1, 2\) and edges \(2,\)"),
        (lambda: survival_at([[0.5, 0.6]], [1], [1]), r"do not rise .* row 0 is \[0\.5, 0\.6\]"),
        (lambda: survival_at([[0.5, NAN]], [1], [1]), r"probabilities that do not rise"),
        (lambda: survival_at([[0.5, 0.4, 0.3]], [2, 1], [1]), "at edges that ascend"),
    ],
)
def test_what_cannot_be_measured_is_named(measure: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        measure()


def test_without_lifelines_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lifelines", None)
    with pytest.raises(DataError, match=r"need lifelines, .*: pip install 'wsizoo\[train\]'"):
        kaplan_meier([1, 2], [1, 1])
