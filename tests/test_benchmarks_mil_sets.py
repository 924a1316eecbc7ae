"""The classic MIL sets: their tables, and the benchmark on a made-up one."""

import csv
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wsizoo
from benchmarks import mil_sets
from benchmarks._mil_sets import InstanceTable, read_table, write_cohort
from wsizoo.errors import DataError


def made_up(sizes: list[int], seed: int = 0, apart: float = 0.0) -> InstanceTable:
    """Bags of these sizes, instances in a mixed order; every second bag has a telling one."""
    random = np.random.default_rng(seed)
    bag = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.arange(len(sizes)) % 2
    features = random.integers(-300, 300, (len(bag), 4)).astype(np.float32)
    first = np.unique(bag, return_index=True)[1]
    features[first[labels == 1], 0] += apart
    order = random.permutation(len(bag))
    return InstanceTable("made-up", features[order], bag[order], labels)


def write_npz(table: InstanceTable, folder: Path) -> Path:
    path = folder / "made-up.npz"
    np.savez(path, X=table.features, bag=table.bag.astype(np.int32), y=table.labels)
    return path


def write_c45(table: InstanceTable, folder: Path) -> Path:
    """As the UCI's: of a positive bag one instance is said to be positive, by whatever rule."""
    path, lines, said = folder / "made-up.data", [], set[int]()
    for row, index in enumerate(table.bag.tolist()):
        positive = bool(table.labels[index]) and index not in said
        said.add(index)
        values = ",".join(f"{value:.0f}" for value in table.features[row])
        lines.append(f"MUSK-{index:03d},{index}_{row},{values},{int(positive)}.")
    path.write_text("\n".join(lines) + "\n")
    return path


@settings(deadline=None, max_examples=15)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_every_form_of_a_table_gives_the_same_bags(sizes: list[int], seed: int) -> None:
    table = made_up(sizes, seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cohort = write_cohort(table, folder)
        with cohort.open() as file:
            rows = list(csv.DictReader(file))
        written = [wsizoo.read_bag(folder / "features" / f"{row['slide']}.h5") for row in rows]
        npz, c45 = (read_table(w(table, folder)).bags() for w in (write_npz, write_c45))
    assert [len(bag) for bag in written] == sizes
    assert [int(row["label"]) for row in rows] == table.labels.tolist()
    for index, bag in enumerate(written):
        assert bag.encoder == wsizoo.Fingerprint(encoder="made-up", declared=True)
        assert npz[index].target == c45[index].target == {"label": int(rows[index]["label"])}
        for other in (npz, c45):
            assert other[index].slide_id == bag.slide_id
            assert other[index].features.equal(bag.features)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bag": np.array([0, 0])}, "has 3 instances and names the bag of 2"),
        ({"bag": np.array([0, 2, 2])}, "expected each of 0 to 1"),
        ({"labels": np.array([-1, 1])}, r"has labels \[-1  1\], expected 0 and 1"),
    ],
)
def test_a_table_that_does_not_fit_together_is_refused(
    change: dict[str, object], told: str
) -> None:
    columns = {"features": np.zeros((3, 2), np.float32), "bag": np.array([0, 1, 1])}
    columns |= {"labels": np.array([0, 1])}
    with pytest.raises(DataError, match=told):
        InstanceTable("toy", **{**columns, **change})  # type: ignore[arg-type]


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected \.npz or \.data"):
        read_table(tmp_path / "musk1.mat")
    np.savez(tmp_path / "half.npz", X=np.zeros((1, 2)))
    with pytest.raises(DataError, match=r"half\.npz' is no instance table"):
        read_table(tmp_path / "half.npz")
    (tmp_path / "short.data").write_text("MUSK-1,1_1,3,1.\nMUSK-1,1_2,1.\n")
    with pytest.raises(DataError, match=r"short\.data' is no instance table"):
        read_table(tmp_path / "short.data")
    (tmp_path / "empty.data").write_text("")
    with pytest.raises(DataError, match=r"empty\.data' is no instance table"):
        read_table(tmp_path / "empty.data")


def test_the_benchmark_learns_a_made_up_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lightning_fabric")
    (tmp_path / "mil_benchmark").mkdir()
    write_npz(made_up([3] * 40, apart=2000.0), tmp_path / "mil_benchmark")
    monkeypatch.setattr(mil_sets, "DATA", tmp_path)
    published = {"made-up": {"abmil": (1.0, 0.1)}, "absent": {"abmil": (0.5, 0.1)}}
    monkeypatch.setattr(mil_sets, "PUBLISHED", published)
    mil_sets.run(1, "split.folds=2", "split.repeats=2", "train.epochs=15", "optimiser.lr=0.003")
    told = capsys.readouterr().out
    found = re.search(r"made-up, abmil: ([\d.]+) \+- [\d.]+, published 100\.0 \+- 10\.0: ", told)
    assert found
    assert float(found[1]) > 90  # of 80 bags; 50 is chance
    assert "absent: left out, no absent.npz (X, bag, y) or absent.data in $WSIZOO_DATA" in told


def test_every_bag_tests_once_a_run_and_folds_are_stratified(tmp_path: Path) -> None:
    splits = mil_sets.splits_of(write_npz(made_up([1] * 20), tmp_path), 5, 2, 0)
    runs = splits[:5], splits[5:]
    assert [sorted(i for one in run for i in one.test) for run in runs] == [list(range(20))] * 2
    assert all(sum(index % 2 for index in one.test) == 2 for one in splits)
    assert all(sorted([*one.train, *one.test]) == list(range(20)) for one in splits)
    assert runs[0] != runs[1]


def test_figures_are_compared_with_the_published_ones() -> None:
    assert mil_sets.compared([0.80, 0.84], 0.85, 0.01) == (
        "82.0 +- 2.0, published 85.0 +- 1.0: -3.0 published standard errors, NOT within two"
    )
