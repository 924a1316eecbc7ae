"""Splits by patient, site and size: whole, without leaks, the same for any order of the table."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsizoo.errors import DataError
from wsizoo.splits.dealing import deal, deal_sites
from wsizoo.splits.grouping import check_classes
from wsizoo.splits.making import FRACTIONS, make_splits
from wsizoo.splits.parts import PARTS, Split
from wsizoo.tables import read_table

DATA = os.environ.get("WSIZOO_DATA")
real_tables = pytest.mark.skipif(not DATA, reason="needs the tables in WSIZOO_DATA")
Cohort = dict[str, list[str]]


def cohort_of(labels: list[int], slides_each: list[int]) -> Cohort:
    """Patients p0, p1, ... of one label each, with one slide or more."""
    rows = [
        (f"p{i}-s{k}", f"p{i}", "ab"[label])
        for i, (label, count) in enumerate(zip(labels, slides_each, strict=True))
        for k in range(count)
    ]
    names = ("slides", "patients", "labels")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


@st.composite
def cohorts(draw: st.DrawFn) -> Cohort:
    few = draw(st.lists(st.just(1), min_size=10, max_size=30))
    many = draw(st.lists(st.just(0), min_size=10, max_size=60))
    labels = draw(st.permutations(few + many))
    counts = st.lists(st.integers(1, 3), min_size=len(labels), max_size=len(labels))
    return cohort_of(labels, draw(counts))


def names_of(split: Split, slides: list[str]) -> dict[str, list[str]]:
    return {part: [slides[i] for i in rows] for part, rows in split.parts().items()}


def check_partition(splits: list[Split], cohort: Cohort) -> None:
    for split in splits:
        rows = [i for part in split.parts().values() for i in part]
        assert sorted(rows) == list(range(len(cohort["slides"])))
        sides = [{cohort["patients"][i] for i in part} for part in split.parts().values()]
        assert sum(map(len, sides)) == len(set(cohort["patients"]))


def patients_of(rows: list[int], cohort: Cohort, label: str) -> int:
    return len({cohort["patients"][i] for i in rows if cohort["labels"][i] == label})


@settings(deadline=None, max_examples=60)
@given(cohorts(), st.integers(0, 99), st.sampled_from(["holdout", "kfold"]))
def test_patients_are_whole_and_labels_shared_within_one(
    cohort: Cohort, seed: int, kind: str
) -> None:
    splits = make_splits(**cohort, kind=kind, seed=seed, folds=4)
    check_partition(splits, cohort)
    for label in "ab":
        n = len(
            {p for p, v in zip(cohort["patients"], cohort["labels"], strict=True) if v == label}
        )
        for split in splits:
            if kind == "kfold":
                assert abs(patients_of(split.test, cohort, label) - n / 4) < 1
                rest = n - patients_of(split.test, cohort, label)
                assert abs(patients_of(split.val, cohort, label) - 0.15 * rest) < 1
            else:
                for part, share in zip(PARTS, FRACTIONS[kind], strict=True):
                    assert abs(patients_of(split.parts()[part], cohort, label) - share * n) < 1
    if kind == "kfold":
        assert sorted(i for split in splits for i in split.test) == list(
            range(len(cohort["slides"]))
        )


@settings(deadline=None, max_examples=40)
@given(
    cohorts(),
    st.randoms(use_true_random=False),
    st.sampled_from(["holdout", "kfold", "extrapolation"]),
    st.sampled_from(["mix", "preserve"]),
)
def test_the_order_of_the_table_changes_nothing(cohort, random, kind, site) -> None:
    rows = list(zip(*cohort.values(), strict=True))
    mixed = random.sample(rows, len(rows))
    if kind == "extrapolation":
        site = "mix"

    def names(table):
        slides, patients, labels = map(list, zip(*table, strict=True))
        try:
            splits = make_splits(
                slides,
                patients,
                labels,
                sites=[f"site{int(p[1:]) % 12}" for p in patients],
                sizes=[len(p) * 100 + int(p[1:]) for p in patients],
                kind=kind,
                site=site,
                repeats=2,
            )
        except DataError as error:  # sites of one class, or too large ones
            return str(error)
        return [names_of(split, slides) for split in splits]

    assert names(mixed) == names(rows)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from("abcde"), min_size=1, max_size=120),
    st.lists(st.integers(0, 9), min_size=2, max_size=8).filter(any),
    st.text(max_size=3),
)
def test_a_deal_is_within_one_in_each_stratum_and_near_in_all(strata, weights, key) -> None:
    shares = np.array(weights) / sum(weights)
    parts = deal([f"n{i}" for i in range(len(strata))], strata, shares, key)
    for stratum in set(strata):
        counts = np.bincount(parts[np.array(strata) == stratum], minlength=len(shares))
        assert (np.abs(counts - strata.count(stratum) * shares) < 1).all()
    counts = np.bincount(parts, minlength=len(shares))
    assert (np.abs(counts - len(strata) * shares) < 2).all()
    assert (counts[shares == 0] == 0).all()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 11), min_size=30, max_size=200), st.integers(0, 9))
def test_a_site_is_in_one_part_and_no_part_is_empty(of_sites, seed) -> None:
    sites = [f"site{i}" for i in of_sites]
    strata = ["ab"[(i * 7 + seed) % 3 == 0] for i in range(len(sites))]
    shares = (0.7, 0.15, 0.15)
    if len(set(sites)) < 3:
        return
    parts = deal_sites(sites, strata, shares, str(seed))
    assert len(set(zip(sites, parts, strict=True))) == len(set(sites))
    assert set(parts) == {0, 1, 2}


def error_of(parts: np.ndarray, sites: list[str], shares: tuple[float, ...]) -> float:
    have = np.bincount(parts, minlength=len(shares)) / len(sites)
    return float(((have - shares) ** 2).sum())


def test_the_search_over_sites_finds_the_best_of_all_where_they_can_be_counted() -> None:
    sizes = [13, 11, 7, 7, 5, 3, 2, 2]
    sites = [f"s{i}" for i, size in enumerate(sizes) for _ in range(size)]
    shares = (0.6, 0.2, 0.2)
    found = error_of(deal_sites(sites, ["x"] * len(sites), shares, "0"), sites, shares)
    every = (
        np.repeat([(code // 3**i) % 3 for i in range(len(sizes))], sizes)
        for code in range(3 ** len(sizes))
    )
    best = min(error_of(parts, sites, shares) for parts in every)
    assert found == pytest.approx(best, abs=1e-9)


def test_a_seed_is_a_split_that_no_version_changes() -> None:
    cohort = cohort_of([0, 1] * 10, [1] * 20)
    split = make_splits(**cohort, seed=3)[0]
    assert [cohort["slides"][i] for i in split.test] == ["p10-s0", "p15-s0", "p5-s0"]
    again, other = make_splits(**cohort, seed=3, repeats=2)
    assert again == split != other == make_splits(**cohort, seed=4)[0]


def test_a_patient_whose_slides_differ_counts_as_the_rarer_class() -> None:
    patients = [f"p{i // 2}" for i in range(80)]
    labels = ["tumour" if i % 2 and i < 20 else "normal" for i in range(80)]
    splits = make_splits([f"s{i}" for i in range(80)], patients, labels, kind="kfold")
    tumour = [sum(labels[i] == "tumour" for i in split.test) for split in splits]
    assert tumour == [2] * 5


def test_survival_is_stratified_by_event_and_time() -> None:
    rng = np.random.default_rng(0)
    times, events = rng.exponential(30, 200), rng.random(200) < 0.3
    slides = [f"s{i}" for i in range(200)]
    for split in make_splits(slides, times=times, events=events, kind="kfold"):
        for event in (False, True):
            edges = np.quantile(times[events == event], [0.25, 0.5, 0.75])
            mine = times[split.test][events[split.test] == event]
            counts = np.bincount(np.searchsorted(edges, mine), minlength=4)
            assert np.ptp(counts) <= 2 and abs(counts.sum() - (events == event).sum() / 5) < 4
    plain = make_splits(slides, times=times, events=events, kind="kfold", stratify=False)
    assert np.ptp([events[split.test].sum() for split in plain]) > 4


def test_values_of_a_regression_are_stratified_too() -> None:
    values = np.arange(100.0)
    for split in make_splits([f"s{i}" for i in range(100)], times=values, kind="kfold"):
        assert [int((values[split.test] // 25 == q).sum()) for q in range(4)] == [5] * 4


def test_large_slides_test_and_small_ones_train() -> None:
    cohort = cohort_of([0, 1] * 15, [2] * 30)
    sizes = [
        100 + 10 * int(p[1:]) + 500 * s.endswith("s1")
        for s, p, _ in zip(*cohort.values(), strict=True)
    ]
    split, other = make_splits(**cohort, sizes=sizes, kind="extrapolation", repeats=2)
    check_partition([split, other], cohort)
    assert split.train == other.train and split.test != other.test
    assert {cohort["patients"][i] for i in split.train} == {f"p{i}" for i in range(18)}
    assert len(split.val) == len(split.test) == 12


def test_a_column_of_folds_lets_each_test_once() -> None:
    cohort = cohort_of([0, 1] * 20, [1] * 40)
    column = [str(float(i // 2 % 4)) for i in range(39)] + [""]
    splits = make_splits(**cohort, kind="column", column=column)
    assert len(splits) == 4
    for fold, split in enumerate(splits):
        assert {column[i] for i in split.test} == {str(float(fold))}
        assert 39 not in split.train + split.val + split.test
        assert 4 <= len(split.val) <= 5
    kept = make_splits(**cohort, kind="column", column=column, val_fraction=0)
    assert [split.val for split in kept] == [[]] * 4


def test_a_column_of_parts_is_taken_as_it_is() -> None:
    cohort = cohort_of([0, 1] * 6, [1] * 12)
    column = ["Train"] * 4 + ["validation"] * 4 + ["test"] * 4
    (split,) = make_splits(**cohort, kind="column", column=column)
    parts = names_of(split, cohort["slides"])
    assert parts["val"] == sorted(cohort["slides"][4:8])


COHORT = cohort_of([0, 1] * 10, [1] * 20)
WRONG = [
    ({"kind": "shuffle"}, r"no kind of split is called 'shuffle', expected one of holdout, kfold"),
    ({"site": "apart"}, r"site is 'apart', expected mix or preserve"),
    ({"folds": 1}, r"there are to be 1 folds and 1 repeats, expected 2 and 1 at least"),
    ({"val_fraction": 1.0}, r"val_fraction is 1\.0, expected at least 0 and less than 1"),
    (
        {"fractions": (0.7, 0.2)},
        r"fractions are \(0\.7, 0\.2\), expected those of train, val and t",
    ),
    ({"fractions": (0.7, 0.2, 0.2)}, r"expected those of train, val and test, 1 together"),
    ({"fractions": (70, 15, 15)}, r"of train, val and test, 1 together: 0\.7 0\.15 0\.15"),
    ({"fractions": (0.7, 0.2, -0.2)}, r"1 together: 0\.7 0\.15 0\.15"),
    ({"fractions": (0, 0.5, 0.5)}, r"which leave nobody to train on"),
    ({"fractions": (0.98, 0.01, 0.01), "stratify": False}, r"20 patients leave a part empty that"),
    ({"kind": "kfold", "folds": 21}, r"20 patients cannot make 21 folds: ask for 20 at most"),
    ({"kind": "kfold", "folds": 20}, r"the test part of split 0 \(1 slides\) is of one class"),
    ({"site": "preserve"}, r"there are no sites for 20 slides, expected one each: name the"),
    (
        {"site": "preserve", "sites": ["A"] * 20},
        r"1 sites \(A\) cannot fill 3 parts that share none",
    ),
    (
        {"kind": "extrapolation", "site": "preserve"},
        r"site=preserve cannot be held by kind 'extrap",
    ),
    ({"kind": "extrapolation"}, r"there are no sizes for 20 slides"),
    ({"kind": "extrapolation", "sizes": range(20), "fractions": (1, 0, 0)}, r"none that are large"),
    ({"kind": "column"}, r"there are no values of the column for 20 slides"),
    (
        {"kind": "column", "column": [1] * 20},
        r"column of the split holds \[1\.0\], expected numbers",
    ),
    ({"kind": "column", "column": ["left"] * 20}, r"'left' names no part, expected train, val or"),
    ({"labels": ["a"] * 19}, r"there are 19 labels for 20 slides, expected one each: name the"),
    ({"labels": ["a"] * 20}, r"the train part of split 0 \(14 slides\) is of one class, 'a': ask"),
    ({"slides": ["s"] * 20}, r"slide 's' stands in 20 rows, expected one"),
    ({"slides": [], "patients": [], "labels": []}, r"there are no slides to split"),
    ({"times": [np.nan] * 20, "events": [1] * 20}, r"slide 'p0-s0' has no time \(NaN\): leave out"),
    (
        {"times": range(20), "events": [1] + [0] * 19, "labels": None},
        r"has no patient whose event was se",
    ),
    (
        {"times": range(20), "events": [0] * 20, "labels": None},
        r"no patient of the table has had the event .* data\.censorship=COLUMN, or",
    ),
    (
        {"times": range(20), "events": [1] * 20, "patients": ["p", "p", *"abcdefghijklmnoqrs"]},
        r"patient 'p' has the time and event \(0\.0, True\) and \(1\.0, True\), expected one: mend",
    ),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_what_cannot_be_split_says_why(options, message) -> None:
    with pytest.raises(DataError, match=message):
        make_splits(**COHORT | options)


def test_a_class_that_is_tested_but_not_trained_is_refused() -> None:
    labels = ["a"] * 10 + ["b"] * 9 + ["c"]
    with pytest.raises(
        DataError, match=r"train part of split \d .* has no slide of class 'c', whi"
    ):
        make_splits(COHORT["slides"], labels=labels, kind="kfold", folds=2, val_fraction=0)
    check_classes([Split([0, 10, 19], [], [])], labels)
    check_classes([Split([0], [], [])])


@real_tables
@pytest.mark.parametrize("site", ["mix", "preserve"])
def test_real_tables_split_without_hand_work(site: str) -> None:
    rows = read_table(Path(str(DATA)) / "survival" / "tcga_blca_clinical.csv").rows
    cohort = {"slides": [r["slide_id"] for r in rows], "patients": [r["case_id"] for r in rows]}
    sites, events = [r["site"] for r in rows], [1 - int(r["censorship"]) for r in rows]
    times = [float(r["survival_months"]) for r in rows]
    splits = make_splits(
        **cohort, times=times, events=events, sites=sites, kind="kfold", site=site, repeats=2
    )
    check_partition(splits, cohort)
    n = len(set(cohort["patients"]))
    for split in splits:
        tests = {cohort["patients"][i] for i in split.test}
        assert abs(len(tests) - n / 5) < (1 if site == "mix" else 0.02 * n)
        if site == "preserve":
            parts = [{sites[i] for i in part} for part in split.parts().values()]
            assert sum(map(len, parts)) == len(set(sites))
    assert Counter(i for s in splits for i in s.test) == dict.fromkeys(range(len(rows)), 2)
