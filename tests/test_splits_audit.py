"""wsizoo split: leaks that were planted are found and named, here and on the command line."""

import csv
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import wsizoo
from wsizoo.cli import cli
from wsizoo.errors import DataError
from wsizoo.splits.audit import audit_split
from wsizoo.splits.contents import read_contents, sizes_of
from wsizoo.splits.files import Assigned, read_assigned, split_digest, split_rows
from wsizoo.splits.tables import SlideColumns, numbers, read_columns
from wsizoo.tables import read_table
from wsizoo.train.cohort import read_cohort
from wsizoo.train.config import load_config
from wsizoo.train.run import splits_of

DATA = os.environ.get("WSIZOO_DATA")
real_tables = pytest.mark.skipif(not DATA, reason="needs the tables in WSIZOO_DATA")
SLIDES = [f"s{i}" for i in range(12)]
SIXTY = [f"s{i}" for i in range(60)]
PATIENTS = [f"p{i // 2}" for i in range(12)]
LABELS = ["a" if i // 2 % 2 else "b" for i in range(12)]
PARTS = ["train"] * 4 + ["val"] * 4 + ["test"] * 4
COLUMNS = SlideColumns(SLIDES, PATIENTS, {"label": LABELS})
CLEAN: Assigned = list(zip(SLIDES, PARTS, strict=True))


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["split", *map(str, arguments)], prog_name="wsizoo")


def write(file: Path, *rows: tuple[object, ...]) -> Path:
    with open(file, "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows(rows)
    return file


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = list(zip(SLIDES, PATIENTS, LABELS, strict=True))
    return write(tmp_path / "slides.csv", ("slide", "patient", "label"), *rows)


@pytest.fixture
def split(tmp_path: Path) -> Path:
    return write(tmp_path / "split.csv", ("slide", "part"), *CLEAN)


@pytest.fixture
def features(tmp_path: Path) -> Path:
    for i, slide in enumerate(SLIDES):
        write_features(tmp_path / "features" / f"{slide}.h5", i)
    return tmp_path / "features"


def write_features(file: Path, seed: int, noise: float = 0.0, turned: bool = False) -> None:
    """`noise` makes a near copy; `turned` puts the same patches into another order."""
    draws = torch.Generator().manual_seed(seed)
    values = torch.randn(20, 16, generator=draws) + torch.randn(16, generator=draws)
    values = values + noise * torch.randn(20, 16, generator=torch.Generator().manual_seed(99))
    cells = torch.stack([torch.arange(20) % 5, torch.arange(20) // 5], 1)
    bag = wsizoo.Bag(
        values.flip(0) if turned else values, cells * 256, spacing=256.0, slide_id=file.stem
    )
    wsizoo.write_bag(bag.replace(encoder=wsizoo.Fingerprint(encoder="uni", mpp=0.5)), file)


def kinds(audit) -> dict[str, list[tuple[str, ...]]]:
    found: dict[str, list[tuple[str, ...]]] = {}
    for finding in audit.findings:
        found.setdefault(finding.kind, []).append(finding.names)
    return found


def test_a_clean_split_has_no_findings() -> None:
    audit = audit_split([CLEAN], COLUMNS)
    assert audit.clean and audit.findings == []
    assert [(p.part, p.slides, p.patients, p.classes) for p in audit.parts] == [
        (part, 4, 2, {"a": 2, "b": 2}) for part in ("train", "val", "test")
    ]
    assert audit.parts[0].sites is None and len(audit.digests[0]) == 64


def test_a_slide_in_two_parts_is_named_with_its_patient() -> None:
    audit = audit_split([[*CLEAN, ("s0", "test")]], COLUMNS)
    assert kinds(audit) == {"slide-in-two-parts": [("s0",)], "patient-in-two-parts": [("p0",)]}
    assert audit.findings[0].told == "slide 's0' is in train and test"
    assert audit.findings[1].told == "patient 'p0' is in train (s0), test (s0)"


def test_a_patient_in_two_parts_is_named_in_the_fold_where_it_is() -> None:
    leak = [(slide, "test" if slide == "s1" else part) for slide, part in CLEAN]
    audit = audit_split([CLEAN, leak], COLUMNS)
    assert kinds(audit) == {"patient-in-two-parts": [("p0",)]}
    assert audit.findings[0].told == "patient 'p0' is in train (s0), test (s1)"
    assert audit.findings[0].fold == 1


def test_a_split_of_patients_is_held_to_their_slides() -> None:
    audit = audit_split([[(f"p{i}", PARTS[2 * i]) for i in range(6)]], COLUMNS)
    assert audit.clean and audit.digests == audit_split([CLEAN], COLUMNS).digests
    both = audit_split([[*((f"p{i}", PARTS[2 * i]) for i in range(6)), ("p0", "val")]], COLUMNS)
    assert kinds(both)["slide-in-two-parts"] == [("s0",), ("s1",)]


def test_labels_that_disagree_within_a_patient_are_shown() -> None:
    labels = {"label": ["a", *LABELS[1:]], "time": ["1"] * 11 + ["2"]}
    audit = audit_split([CLEAN], SlideColumns(SLIDES, PATIENTS, labels))
    assert [finding.told for finding in audit.findings] == [
        "patient 'p0' has in column label: a (s0), b (s1)",
        "patient 'p5' has in column time: 1 (s10), 2 (s11)",
    ]


def test_names_on_one_side_only_are_told() -> None:
    audit = audit_split([[*CLEAN[1:], ("other", "test")]], COLUMNS)
    assert kinds(audit) == {"not-in-table": [("other",)], "not-in-split": [("s0",)]}
    assert audit.findings[0].told == "named in the split, but not in the table: 'other'"


def test_parts_of_one_class_and_classes_that_are_not_trained_are_told() -> None:
    labels = ["a"] * 4 + ["a", "b", "a", "b"] + ["b"] * 4
    audit = audit_split([CLEAN], SlideColumns(SLIDES, SLIDES, {"label": labels}))
    assert kinds(audit) == {"one-class-part": [("train",), ("test",)]}
    labels = ["a", "b"] * 5 + ["c", "a"]
    audit = audit_split([CLEAN], SlideColumns(SLIDES, SLIDES, {"label": labels}))
    assert kinds(audit) == {"untrained-class": [("c",)]}


def test_a_slide_with_two_rows_is_told() -> None:
    columns = SlideColumns([*SLIDES, "s0"], [*PATIENTS, "p0"])
    assert kinds(audit_split([CLEAN], columns)) == {"slide-twice": [("s0",)]}


def test_sites_are_compared_as_scipy_does() -> None:
    from scipy.stats import contingency

    sites = ["x"] * 4 + ["y"] * 4 + ["x", "x", "y", "y"]
    audit = audit_split([CLEAN], SlideColumns(SLIDES, SLIDES, {}, sites))
    train, val, test = audit.parts
    for part, counts in ((train, [[4, 2], [0, 6]]), (test, [[2, 4], [2, 4]])):
        expected = contingency.association(np.array(counts), method="cramer", correction=False)
        assert part.site_bias == pytest.approx(expected)
    assert (train.sites, train.shared_sites, val.shared_sites, test.shared_sites) == (1, 1, 1, 2)
    assert test.site_p == pytest.approx(1) and train.site_p < 0.05
    apart = audit_split([CLEAN], SlideColumns(SLIDES, SLIDES, {}, PARTS))
    assert [(p.shared_sites, p.site_bias) for p in apart.parts] == [(0, pytest.approx(1))] * 3


def test_copies_are_found_whatever_their_order_and_near_ones_only_across_parts(
    features: Path,
) -> None:
    write_features(features / "s8.h5", 0, turned=True)  # s0 trains, s8 tests
    write_features(features / "s1.h5", 2)  # a copy of s2, both train
    write_features(features / "s9.h5", 3, noise=0.05)  # s3 trains, s9 tests
    write_features(features / "s5.h5", 4, noise=0.05)  # s4 and s5 are of one part
    audit = audit_split([CLEAN], COLUMNS, read_contents(features, SLIDES))
    assert kinds(audit) == {
        "same-content": [("s1", "s2"), ("s0", "s8")],
        "near-content": [("s3", "s9")],
    }
    told = [finding.told for finding in audit.findings]
    assert told[0] == "slides 's1' and 's2' have the same features"
    assert told[1] == "slides 's0' and 's8' have the same features, in train and test of fold 0"
    assert told[2].startswith("slides 's3' and 's9' have mean features of cosine 0.99")
    assert not read_contents(features, SLIDES, near=1).near


def test_features_that_are_missing_or_damaged_are_told(features: Path) -> None:
    (features / "s0.h5").unlink()
    (features / "s1.h5").write_bytes(b"no file")
    audit = audit_split([CLEAN], COLUMNS, read_contents(features, SLIDES))
    assert kinds(audit) == {"no-features": [("s0",), ("s1",)]}
    with pytest.raises(DataError, match=r"1 of 12 slides have no feature file in .*, such as 's0'"):
        sizes_of(features, SLIDES)
    assert sizes_of(features, SLIDES[2:]) == [20] * 10


def test_the_command_line_exits_with_0_and_1_and_2(table: Path, split: Path) -> None:
    clean = invoke("audit", split, "--table", table)
    assert clean.exit_code == 0 and "Nothing was found" in clean.stderr
    assert "a 50.0%, b 50.0%" in clean.stdout and "sha256" in clean.stdout
    with open(split, "a", encoding="utf-8") as handle:
        handle.write("s0,test\n")
    found = invoke("audit", split, "--table", table)
    assert found.exit_code == 1
    assert "PATIENT-IN-TWO-PARTS  fold 0: patient 'p0' is in train (s0), test (s0)" in found.stdout
    assert "Found: 1 slide-in-two-parts, 1 patient-in-two-parts" in found.stderr
    for wrong in (
        ["audit", split],
        ["audit", "--table", table],
        ["audit", "no.csv", "--table", table],
    ):
        assert invoke(*wrong).exit_code == 2
    both = invoke("audit", split, "--table", table, "--column", "label")
    assert both.exit_code == 2 and "one of the two" in both.stderr


def test_the_json_of_an_audit_has_every_finding(table: Path, split: Path, features: Path) -> None:
    write(split, ("slide", "part"), *((slide, "train") for slide in SLIDES), *CLEAN)
    result = invoke("audit", split, "--table", table, "--json", "--features", features)
    told = json.loads(result.stdout)
    assert result.exit_code == 1 and told["clean"] is False and told["split"] == str(split)
    assert Counter(f["kind"] for f in told["findings"])["slide-in-two-parts"] == 8


def test_what_is_found_often_is_counted(table: Path, split: Path) -> None:
    write(
        split, ("slide", "part"), *((slide, part) for slide in SLIDES for part in ("val", "test"))
    )
    shown = invoke("audit", split, "--table", table).stdout
    assert "SLIDE-IN-TWO-PARTS    2 more; --json names all" in shown
    assert shown.count("SLIDE-IN-TWO-PARTS    fold 0: slide 's") == 10


def test_the_real_command_ends_with_the_exit_code(table: Path, split: Path) -> None:
    write(split, ("slide", "part"), *CLEAN[:-1], ("s11", "train"))
    command = [sys.executable, "-m", "wsizoo", "split", "audit", str(split), "--table", str(table)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "patient 'p5' is in train (s11), test (s10)" in result.stdout


def test_make_writes_a_split_that_its_audit_finds_clean(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "made.csv"
    made = invoke("make", table, "-o", out, "--fractions", "1/3", "1/3", "1/3", "--json")
    told = json.loads(made.stdout)
    assert made.exit_code == 0 and [p["slides"] for p in told["parts"]] == [4, 4, 4]
    audited = json.loads(invoke("audit", out, "--table", table, "--json").stdout)
    assert audited["clean"] and audited["digests"] == told["digests"]
    two = ["--kind", "kfold", "--folds", 2, "--val-fraction", 0, "--overwrite"]
    folds = invoke("make", table, "-o", out, *two)
    assert folds.exit_code == 0 and "fold 1" in folds.stdout
    assert len(read_assigned(out)) == 2


def test_make_goes_by_survival_size_column_and_file(
    table: Path, tmp_path: Path, split: Path, features: Path
) -> None:
    rows = [
        (s, p, i, i % 2, part)
        for i, (s, p, part) in enumerate(zip(SLIDES, SLIDES, PARTS, strict=True))
    ]
    survival = write(tmp_path / "t.csv", ("slide", "patient", "months", "dead", "role"), *rows)
    out = tmp_path / "made.csv"
    thirds = ["--fractions", "1/3", "1/3", "1/3"]
    for options in (
        ["--time", "months", "--event", "dead"],
        ["--time", "months", "--censorship", "dead"],
        ["--kind", "extrapolation", "--features", features],
        ["--kind", "column", "--column", "role"],
        ["--kind", "file", "--file", split],
    ):
        own = thirds if "extrapolation" not in options and "--time" in options else []
        result = invoke("make", survival, "-o", out, "--overwrite", *options, *own)
        assert result.exit_code == 0, result.output
    assert sorted(read_assigned(out)[0]) == sorted(CLEAN)


def test_make_takes_times_as_train_does_where_there_is_no_label(tmp_path: Path) -> None:
    rows = [(slide, f"p{i}", i * 7 % 60, i % 2) for i, slide in enumerate(SIXTY)]
    table = write(tmp_path / "t.csv", ("slide", "patient", "time", "event"), *rows)
    result = invoke("make", table, "-o", tmp_path / "out.csv", "--json")
    assert result.stderr == ""
    data = {"table": str(table), "features": str(tmp_path)}
    config = load_config({"model": "abmil-demo", "data": data})
    (split,) = splits_of(config, read_cohort(config.data, task="survival", bags=False))
    assert json.loads(result.stdout)["digests"] == [split_digest(split_rows(split, SIXTY))]
    told = invoke("make", table, "-o", tmp_path / "told.csv", "--time", "time", "--event", "event")
    assert told.exit_code == 0
    assert (tmp_path / "told.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()


def test_make_says_that_there_is_nothing_to_stratify_by(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", ("slide", "grade"), *((s, "a") for s in SLIDES))
    assert (
        "t.csv' has no column label, nor time and event"
        in invoke("make", table, "-o", tmp_path / "out.csv").stderr
    )
    for more in (["--no-stratify"], ["--label", "grade"]):
        assert invoke("make", table, "-o", tmp_path / "out.csv", *more).stderr == ""


def test_make_stratifies_unless_told_not_to(table: Path, tmp_path: Path) -> None:
    rows = [(f"s{i}", "ab"[i % 2]) for i in range(40)]
    write(table, ("slide", "label"), *rows)
    made = {}
    for name, options in (("on", []), ("off", ["--no-stratify"])):
        result = invoke("make", table, "-o", tmp_path / f"{name}.csv", "--json", *options)
        made[name] = [set(part["classes"].values()) for part in json.loads(result.stdout)["parts"]]
    assert made["on"] == [{14}, {3}, {3}] and made["off"] != made["on"]
    write(table, ("slide", "label"), *rows, ("s40", "NA"))
    empty = invoke("make", table, "-o", tmp_path / "out.csv")
    assert isinstance(empty.exception, DataError)
    assert re.search(r"line 42: column label is empty\. Fill it in", str(empty.exception))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "column"], "--kind column and --column go together"),
        (["--kind", "extrapolation"], "--kind extrapolation and --features go together"),
        (["--time", "label"], "--time goes with --event or with --censorship"),
        (["--fractions", "1/0", "0", "0"], "1/0"),
        (["--fractions", "x", "0", "0"], "x"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(table, tmp_path, options, message) -> None:
    result = invoke("make", table, "-o", tmp_path / "out.csv", *options)
    assert result.exit_code == 2 and message in result.stderr


def test_a_cell_that_is_no_number_is_told_with_its_line(table: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: label is 'b', expected a number"):
        numbers(read_table(table), "label", "--time")


@real_tables
def test_the_audit_of_real_splits_finds_what_is_there() -> None:
    folder = Path(str(DATA))
    _, columns = read_columns(folder / "label_tables" / "camelyon16.csv")
    audit = audit_split(read_assigned(folder / "label_tables" / "camelyon16_split_1.json"), columns)
    found = kinds(audit)
    assert {kind: len(names) for kind, names in found.items()} == {
        "labels-disagree": 10,
        "patient-in-two-parts": 4,
        "not-in-split": 1,
    }
    assert found["not-in-split"] == [("normal_027",)]
    clinical = read_columns(folder / "survival" / "tcga_blca_clinical.csv", labels=["censorship"])[
        1
    ]
    for fold in range(5):
        file = folder / "survival" / f"tcga_blca_splits_{fold}.csv"
        audit = audit_split(read_assigned(file), clinical)
        assert audit.clean and all(part.shared_sites > 0 for part in audit.parts)


def test_leaks_are_told_before_anything_else() -> None:
    disagree = SlideColumns(SLIDES, PATIENTS, {"label": ["c", *LABELS[1:]]})
    leak = [(slide, "test" if slide == "s2" else part) for slide, part in CLEAN]
    assert list(kinds(audit_split([leak], disagree)))[:2] == [
        "patient-in-two-parts",
        "labels-disagree",
    ]


def test_sites_kept_together_are_no_alarm(tmp_path: Path) -> None:
    rows = [(f"s{i}", f"p{i}", "ab"[i % 2], f"h{i // 4}") for i in range(24)]
    table = write(tmp_path / "t.csv", ("slide", "patient", "label", "site"), *rows)
    told = "No site is in two parts, so each part is biased by site as far as can be"
    assert told in invoke("make", table, "-o", tmp_path / "a.csv", "--sites", "preserve").output
    assert told not in invoke("make", table, "-o", tmp_path / "b.csv").output


def test_another_split_is_replaced_on_request_only(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    made = ["make", table, "-o", out, "--fractions", "1/3", "1/3", "1/3"]
    assert invoke(*made).exit_code == 0
    kept = out.read_bytes()
    assert invoke(*made).exit_code == 0
    other = [*made, "--seed", "1"]
    with pytest.raises(DataError, match=r"out.csv' holds another split \(sha256 .* --overwrite"):
        CliRunner().invoke(cli, ["split", *map(str, other)], catch_exceptions=False)
    assert out.read_bytes() == kept
    assert invoke(*other, "--overwrite").exit_code == 0 and out.read_bytes() != kept
    out.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="holds something else, this one is sha256"):
        CliRunner().invoke(cli, ["split", *map(str, made)], catch_exceptions=False)
