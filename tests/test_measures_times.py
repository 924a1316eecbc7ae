import csv
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsizoo.errors import DataError
from wsizoo.measures.times import time_bins, time_edges, whole_cohort_targets
from wsizoo.mil.heads import SurvivalHead

NAN = math.nan


@given(
    st.lists(st.integers(0, 1000), min_size=6, max_size=40, unique=True),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_the_events_fall_into_bins_of_one_size(times: list[int], bins: int, random: Any) -> None:
    random.shuffle(times)
    edges = time_edges(times, np.ones(len(times)), bins)
    counts = np.bincount(time_bins(times, edges), minlength=bins)
    assert len(edges) == bins - 1 and len(counts) == bins
    assert counts.max() - counts.min() <= 1 + (len(times) % bins > 0)
    assert SurvivalHead(4, edges=edges.tolist()).n_outputs == bins


def test_a_bin_holds_its_right_end_and_the_outer_ones_hold_the_rest() -> None:
    assert time_bins([-1, 0, 5, 5.1, 9, 1e9], [5, 9]).tolist() == [0, 0, 0, 1, 1, 2]


def test_censored_and_missing_times_do_not_move_the_edges() -> None:
    edges = time_edges([1, 2, 3, 4, 99, NAN], [1, 1, 1, 1, 0, 1], 2)
    assert edges.tolist() == [2.5]


def test_targets_of_a_whole_cohort() -> None:
    found = whole_cohort_targets(
        times=[4, 1, 2, 3, 9, 9, 0, NAN, 7],
        events=[1, 1, 1, 1, 1, 0, 1, 1, 0],
        patients=["a", "b", "c", "d", "e", "e", "f", "g", "h"],
        bins=2,
    )
    assert found.rows.tolist() == [0, 1, 2, 3, 8]  # without e (twice), f (0 months), g (missing)
    assert found.edges.tolist() == [2.0]  # of 0, 1, 2, 3, 4: f counts here
    assert found.bins.tolist() == [1, 0, 0, 1, 1]
    assert found.events.tolist() == [True, True, True, True, False]
    assert found.times.tolist() == [4, 1, 2, 3, 7]


def tables() -> Path:
    return Path(os.environ.get("WSIZOO_DATA", "nowhere")) / "survival"


@pytest.mark.skipif(not tables().is_dir(), reason="WSIZOO_DATA holds no survival tables")
def test_the_edges_of_a_real_cohort_are_the_published_ones() -> None:
    with open(tables() / "tcga_blca_clinical.csv", newline="", encoding="utf-8") as file:
        rows = {row["case_id"]: row for row in csv.DictReader(file)}  # one a patient
    months = [float(row["survival_months"]) for row in rows.values()]
    events = [1 - int(float(row["censorship"])) for row in rows.values()]
    edges = time_edges(months, events, 4)
    assert edges.tolist() == pytest.approx([7.62, 13.57, 21.85])
    checked = 0
    for path in tables().glob("tcga_blca_risk_fold*.csv"):
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                month = float(row["survival_months"])
                if month not in edges:  # that code counts an edge to the later bin
                    assert time_bins([month], edges)[0] == int(row["disc_label"])
                    checked += 1
    assert checked > 300


@pytest.mark.parametrize(
    ("times", "events", "bins", "message"),
    [
        ([1, 2], [0, 0], 4, "no event was seen, so there are no quantiles"),
        ([1, 2], [1], 4, r"times are \(2,\) and events \(1,\), expected \(n,\) both"),
        ([1, 2], [1, 2], 4, r"events are \[1, 2\], expected 0 and 1"),
        ([1, 1, 1, 2], [1, 1, 1, 1], 4, r"4 bins of 4 times of events have no width, .*fewer bins"),
        ([1, 2], [1, 1], 0, "0 time bins, expected at least 1"),
    ],
)
def test_what_cannot_be_binned_is_named(times: Any, events: Any, bins: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        time_edges(times, events, bins)


def test_missing_times_have_no_bin() -> None:
    with pytest.raises(DataError, match=r"1 of 2 times are missing \(NaN\)"):
        time_bins([1, NAN], [2])


def test_a_table_names_a_patient_a_row() -> None:
    with pytest.raises(DataError, match="1 patients for 2 times, expected one a row"):
        whole_cohort_targets([1, 2], [1, 1], ["a"])
