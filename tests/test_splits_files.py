"""Files of splits: ours and those of other tools, real ones where they are at hand."""

import hashlib
import json
import os
import re
from pathlib import Path

import pytest

from wsizoo.errors import DataError, NotFoundError
from wsizoo.splits.files import (
    locate,
    read_assigned,
    read_split,
    split_digest,
    split_rows,
    write_split,
)
from wsizoo.splits.making import make_splits
from wsizoo.splits.parts import Split
from wsizoo.splits.tables import read_columns

DATA = os.environ.get("WSIZOO_DATA")
real_tables = pytest.mark.skipif(not DATA, reason="needs the tables in WSIZOO_DATA")
SLIDES = ["A.1", "A.2", "B.1", "C.1"]
PATIENTS = ["A", "A", "B", "C"]
SPLIT = Split([0, 1], [2], [3])


def written(tmp_path: Path, text: str, name: str = "split.csv") -> Path:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return file


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "split.csv"
    (digest,) = write_split(file, SPLIT, SLIDES, PATIENTS, ["x", "x", "y", "y"])
    assert file.read_text() == (
        "slide,patient,part,site\nA.1,A,train,x\nA.2,A,train,x\nB.1,B,val,y\nC.1,C,test,y\n"
    )
    assert read_split(file, SLIDES, PATIENTS) == [SPLIT]
    assert digest == split_digest(split_rows(SPLIT, SLIDES))
    assert read_split(file, SLIDES[::-1], PATIENTS[::-1]) == [Split([3, 2], [1], [0])]


def test_the_digest_is_of_sorted_lines_and_of_nothing_else() -> None:
    expected = hashlib.sha256(b"a,train\nb,test\n").hexdigest()
    assert split_digest([("b", "test"), ("a", "train")]) == expected
    assert split_digest([("b", "val"), ("a", "train")]) != expected


def test_folds_share_one_file(tmp_path: Path) -> None:
    slides = [f"s{i}" for i in range(12)]
    splits = make_splits(slides, kind="kfold", folds=3)
    digests = write_split(tmp_path / "folds.csv", splits, slides)
    assert (tmp_path / "folds.csv").read_text().startswith("slide,patient,fold_0,fold_1,fold_2\n")
    assert [sorted(s.test) for s in read_split(tmp_path / "folds.csv", slides)] == [
        sorted(s.test) for s in splits
    ]
    assert len(set(digests)) == 3


def test_a_slide_of_no_part_is_left_out_and_one_of_some_folds_has_an_empty_cell(
    tmp_path: Path,
) -> None:
    file = tmp_path / "folds.csv"
    write_split(file, [Split([0], [1]), Split([1], [2])], SLIDES)
    assert "C.1" not in file.read_text() and "A.1,A.1,train,\n" in file.read_text()
    assert read_split(file, SLIDES) == [Split([0], [1], []), Split([1], [2], [])]


FILES = {
    "CLAM": ("split.csv", ",train,val,test\n0,A.1,B.1,C.1\n1,A.2,,\n"),
    "CLAM by patient": ("split.csv", ",train,val,test\n0,A,B,C\n"),
    "CLAM bool": (
        "split.csv",
        ",train,val,test\nA.1,True,False,False\nA.2,True,False,False\n"
        "B.1,False,True,False\nC.1,False,False,True\n",
    ),
    "Patho-Bench": (
        "k=all.tsv",
        "case_id\tslide_id\tlabel\tfold_0\nA\tA.1\t0\ttrain\nA\tA.2\t0\ttrain\nB\tB.1\t1\tval\n"
        "C\tC.1\t1\ttest\n",
    ),
    "ACMIL": (
        "split.json",
        json.dumps({"train_names": ["A.1", "A.2"], "val_names": ["B.1"], "test_names": ["C.1"]}),
    ),
    "slide,part": ("split.csv", "slide,part\nA.1,training\nA.2,Train\nB.1,validation\nC.1,test\n"),
    "names of files": (
        "split.csv",
        "slide_id,part\nx/A.1.svs,train\nA.2.h5,train\nB.1.tiff,val\nC.1.pt,test\n",
    ),
    "patient,part": ("split.csv", "case_id,part\nA,train\nB,val\nC,test\n"),
}


@pytest.mark.parametrize(("name", "text"), FILES.values(), ids=FILES)
def test_files_of_each_tool_are_read(tmp_path: Path, name: str, text: str) -> None:
    assert read_split(written(tmp_path, text, name), SLIDES, PATIENTS) == [SPLIT]


def test_folds_of_patho_bench_have_no_validation_part_until_one_is_carved(tmp_path: Path) -> None:
    slides = [f"s{i}" for i in range(12)]
    lines = ["case_id\tslide_id\tfold_0\tfold_1"]
    lines += [
        f"c{i}\ts{i}\t{'test' if i < 6 else 'train'}\t{'train' if i < 6 else 'test'}"
        for i in range(12)
    ]
    file = written(tmp_path, "\n".join(lines), "k=all.tsv")
    plain = read_split(file, slides)
    assert [len(split.val) for split in plain] == [0, 0]
    carved = make_splits(slides, kind="file", file=file, val_fraction=0.5)
    assert [(len(s.train), len(s.val), len(s.test)) for s in carved] == [(3, 3, 6)] * 2
    assert [s.test for s in carved] == [s.test for s in plain]


def test_a_uuid_after_a_barcode_may_be_left_out(tmp_path: Path) -> None:
    slides = ["TCGA-2F-A9KO-01Z-00-DX1.195576CF-B739-4BD9-B15B-4A70AE287D3E.svs"]
    file = written(tmp_path, "slide,part\nTCGA-2F-A9KO-01Z-00-DX1,train\n")
    assert read_split(file, slides) == [Split([0], [], [])]


def test_another_name_after_a_dot_is_another_slide() -> None:
    with pytest.raises(DataError, match=r"'f' names 1 of 1 slides or patients that the table does"):
        locate("f", ["A.3"], SLIDES, PATIENTS)


def test_the_split_of_another_table_is_counted_and_named(tmp_path: Path) -> None:
    file = written(tmp_path, "slide,part\nA.1,train\nX,val\nY,test\n")
    with pytest.raises(
        DataError, match=r"names 2 of 3 slides or patients .* 'X', 'Y'; the table ha"
    ):
        read_split(file, SLIDES, PATIENTS)


WRONG = [
    (
        "s.csv",
        "slide,part\nA.1,train\nA.1,test\n",
        r"has slide 'A\.1' in train and in test, expect",
    ),
    (
        "s.csv",
        "slide,part\nA.1,left\n",
        r"column part: 'left' names no part, expected train, val o",
    ),
    (
        "s.csv",
        "slide,label\nA.1,0\n",
        r"is no split that is known, it has the columns slide, label",
    ),
    ("s.json", '{"folds": []}', r"is no split that is known, expected lists of names under train,"),
    ("s.json", "{", r"s\.json' cannot be read as JSON: Expecting property"),
]


@pytest.mark.parametrize(("name", "text", "message"), WRONG)
def test_a_file_that_is_no_split_says_why(tmp_path: Path, name, text, message) -> None:
    with pytest.raises(DataError, match=message):
        read_split(written(tmp_path, text, name), SLIDES, PATIENTS)
    with pytest.raises(NotFoundError, match="No table at"):
        read_assigned(tmp_path / "none.csv")


TABLES = {
    "camelyon16": ("label_tables/camelyon16.csv", "label_tables/camelyon16_split_1.json"),
    "clam": ("label_tables/clam/tumor_vs_normal_dummy_clean.csv", "label_tables/clam/splits_0.csv"),
    "ucec": ("survival/tcga_ucec_all_clean.csv.zip", "survival/tcga_ucec_splits_3.csv"),
    "blca": ("survival/tcga_blca_clinical.csv", "survival/tcga_blca_splits_3.csv"),
}
COUNTS = {
    "camelyon16": (242, 27, 129),
    "clam": (300, 51, 48),
    "ucec": (427, 112, 0),
    "blca": (345, 92, 0),
}


@real_tables
@pytest.mark.parametrize("name", TABLES)
def test_real_splits_are_those_of_their_tables(name: str) -> None:
    table, file = (Path(str(DATA)) / path for path in TABLES[name])
    _, columns = read_columns(table)
    (split,) = read_split(file, columns.slides, columns.patients)
    assert tuple(len(rows) for rows in split.parts().values()) == COUNTS[name]


@real_tables
def test_both_files_of_clam_say_the_same_and_its_counts_are_no_split() -> None:
    folder = Path(str(DATA)) / "label_tables" / "clam"
    _, columns = read_columns(folder / "tumor_vs_normal_dummy_clean.csv")
    names, flags = (
        read_split(folder / f, columns.slides) for f in ("splits_0.csv", "splits_0_bool.csv")
    )
    assert names == flags
    with pytest.raises(DataError, match="such as '211'"):
        read_split(folder / "splits_0_descriptor.csv", columns.slides)


def test_columns_have_their_usual_names_or_those_that_are_told(tmp_path: Path) -> None:
    table = written(tmp_path, "slide_id,Case_ID,hospital,label\ns1,p1,H,a\ns2,p2,K,b\n")
    _, columns = read_columns(table)
    assert (columns.slides, columns.patients) == (["s1", "s2"], ["p1", "p2"])
    assert columns.sites == ["H", "K"] and columns.labels == {"label": ["a", "b"]}
    _, told = read_columns(table, patient="hospital", labels=["Case_ID"])
    assert told.patients == ["H", "K"] and told.labels == {"Case_ID": ["p1", "p2"]}


def test_barcodes_tell_patients_and_sites_where_columns_do_not(tmp_path: Path) -> None:
    text = "slide\nTCGA-2F-A9KO-01Z-00-DX1\nTCGA-2F-A9KO-01Z-00-DX2\nTCGA-4Z-AA7O-01Z\n"
    _, columns = read_columns(written(tmp_path, text))
    assert columns.patients == ["TCGA-2F-A9KO", "TCGA-2F-A9KO", "TCGA-4Z-AA7O"]
    assert columns.sites == ["2F", "2F", "4Z"]
    assert columns.sources == {"patients": "TCGA barcodes", "sites": "TCGA barcodes"}
    _, plain = read_columns(written(tmp_path, text + "normal_1\n"))
    assert plain.patients == [*columns.patients, "normal_1"] and plain.sites is None


@pytest.mark.parametrize(
    ("text", "told", "message"),
    [
        (
            "image,label\ns1,a\n",
            {},
            r"has no column slide or slide_id\. It has image, label\. Say --",
        ),
        ("slide\ns1\n", {"site": "hospitl"}, r"has no column 'hospitl'"),
        (
            "slide,patient\ns1,\n",
            {},
            r"line 2: column patient is empty\. Fill it in, or leave the line out",
        ),
    ],
)
def test_a_table_without_what_it_needs_says_so(tmp_path: Path, text, told, message) -> None:
    with pytest.raises(DataError, match=message):
        read_columns(written(tmp_path, text), **told)


def test_read_assigned_lets_contradictions_through(tmp_path: Path) -> None:
    file = written(tmp_path, "slide,part\nA.1,train\nA.1,test\n")
    assert read_assigned(file) == [[("A.1", "train"), ("A.1", "test")]]
    assert re.fullmatch(r"[0-9a-f]{64}", split_digest(read_assigned(file)[0]))
