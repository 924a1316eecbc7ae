"""wsizoo.train.cohort: slides, patients, targets and files of a table; what is wrong, at once."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wsizoo
from wsizoo.bag import Bag
from wsizoo.errors import DataError, NotFoundError, SpecError
from wsizoo.fingerprint import Fingerprint
from wsizoo.measures.times import time_edges
from wsizoo.splits.tables import read_columns
from wsizoo.train.cohort import Cohort, read_cohort, slide_name
from wsizoo.train.config import DataConfig
from wsizoo.train.patch_labels import read_patch_labels

DATA = Path(os.environ.get("WSIZOO_DATA", Path(__file__).parents[2] / "shared" / "data"))
LABELS, SURVIVAL = DATA / "label_tables", DATA / "survival"
real = pytest.mark.skipif(not LABELS.is_dir(), reason="no real tables: set WSIZOO_DATA")
CLAM = {"slide": "slide_id", "patient": "case_id"}
TCGA: dict[str, Any] = {**CLAM, "time": "survival_months", "censorship": "censorship"}
TABLE = "slide,patient,label,time,event,value\n"


def table(folder: Path, *rows: str, head: str = TABLE) -> str:
    (folder / "t.csv").write_text(head + "".join(f"{row}\n" for row in rows))
    return str(folder / "t.csv")


def features(folder: Path, *slides: str, n: int = 4) -> str:
    """Feature files of slides, on a grid of two columns with steps of 256 px."""
    for i, slide in enumerate(slides):
        cells = torch.stack([torch.arange(n) % 2, torch.arange(n) // 2], 1)
        values = torch.randn(n, 3, generator=torch.Generator().manual_seed(i))
        made = Fingerprint(encoder="uni", mpp=0.5)
        bag = Bag(values, cells * 256, spacing=256.0, encoder=made, slide_id=slide)
        wsizoo.write_bag(bag, folder / "features" / f"{slide}.h5")
    return str(folder / "features")


def read(task: str = "classification", **config: Any) -> Cohort:
    return read_cohort(DataConfig(**config), task, bags="features" in config or "file" in config)


# Real tables


@real
@pytest.mark.parametrize(
    ("name", "columns", "slides", "patients", "labels", "at_odds"),
    [
        ("camelyon16.csv", CLAM, 399, 362, {"0": 239, "1": 160}, 10),
        (
            "bracs.csv", CLAM, 547, 547,
            {"0": 44, "1": 147, "2": 74, "3": 41, "4": 48, "5": 61, "6": 132}, 0,
        ),
        (
            "tcga_lung_5fold.csv", {"slide": "ID", "patient": "case_id"}, 1033, 936,
            {"TCGA-LUAD": 528, "TCGA-LUSC": 505}, 0,
        ),
        (
            "tcga_msi_COAD.csv", {"slide": "0", "label": "1"}, 422, 422,
            {"MSS": 266, "MSI-L": 78, "MSI-H": 76, "Indeterminate": 2}, 0,
        ),
        (
            "clam/tumor_vs_normal_dummy_clean.csv", CLAM, 500, 450,
            {"normal_tissue": 350, "tumor_tissue": 150}, 26,
        ),
    ],
)  # fmt: skip
def test_real_label_tables_load_as_they_are(
    name: str, columns: Any, slides: int, patients: int, labels: Any, at_odds: int
) -> None:
    cohort = read(table=str(LABELS / name), **columns)
    assert (len(cohort), len(set(cohort.patients))) == (slides, patients)
    assert Counter(cohort.labels) == labels
    assert cohort.classes == tuple(sorted(labels))
    assert len(cohort.at_odds) == at_odds


@real
@pytest.mark.parametrize(
    ("name", "slides", "patients", "edges"),
    [
        ("tcga_ucec_all_clean.csv.zip", 539, 480, [12.125, 23.46, 33.855]),
        ("tcga_blca_clinical.csv", 437, 373, [7.62, 13.57, 21.85]),
    ],
)
def test_real_survival_tables_load_and_give_the_published_bins(
    name: str, slides: int, patients: int, edges: list[float]
) -> None:
    """Edges: Patch-GCN's, quartiles of the uncensored patients of the whole table."""
    cohort = read("survival", table=str(SURVIVAL / name), site="site", **TCGA)
    assert (len(cohort), len(set(cohort.patients))) == (slides, patients)
    assert not any(slide.endswith(".svs") for slide in cohort.slides)
    assert set(cohort.values("event")) == {0, 1}
    assert cohort.sites is not None and all(cohort.sites)
    once = {record.patient: record.target for record in cohort.records}
    times, events = zip(*((t["time"], t["event"]) for t in once.values()), strict=True)
    assert time_edges(times, events, 4) == pytest.approx(edges)
    censored = [record.row["censorship"] for record in cohort.records]
    assert [1 - int(c) for c in censored] == cohort.values("event")


@real
def test_classes_may_be_some_of_a_real_table_the_others_being_dropped() -> None:
    config: dict[str, Any] = {"table": str(LABELS / "tcga_msi_COAD.csv"), "slide": "0"}
    config |= {"label": "1", "classes": ["MSS", "MSI-H"]}
    with pytest.raises(DataError, match=r"80 have a label that is not in data.classes \(MSS, MSI"):
        read(**config)
    cohort = read(**config, missing="drop")
    assert Counter(cohort.labels) == {"MSS": 266, "MSI-H": 76}
    assert cohort.classes == ("MSS", "MSI-H")
    assert len(cohort.dropped) == 80


@real
def test_real_features_of_another_tool_are_bags_of_the_table() -> None:
    folder = DATA / "features" / "stamp_eagle"
    config = DataConfig(
        table=str(folder / "slide_table.csv"), slide="FILENAME", patient="PATIENT",
        label="PATIENT", features=str(folder), slide_mpp=0.25, coords_mpp=1.142857,
    )  # fmt: skip
    cohort = read_cohort(config, "classification")
    assert cohort.sizes() == [2131, 1896]
    bag = cohort.bag(1)
    assert (bag.slide_id, bag.features.shape) == (cohort.slides[1], (1896, 768))
    assert bag.target == {"label": 1}
    assert bag.mpp == 0.25


# Tables made here


def test_targets_of_each_task_and_patients_of_their_own(tmp_path: Path) -> None:
    rows = ("a.svs,p,no,3.5,1,0.1", "b,q,yes,2,0.0,2", "dir/c.h5,q,yes,2,False,-1e3")
    file = table(tmp_path, *rows)
    cohort = read(table=file)
    assert (cohort.slides, cohort.patients) == (["a", "b", "c"], ["p", "q", "q"])
    assert cohort.values("label") == [0, 1, 1]
    survival = read("survival", table=file)
    assert dict(survival.records[0].target) == {"time": 3.5, "event": 1}
    assert survival.values("event") == [1, 0, 0]
    assert read("survival", table=file, censorship="event").values("event") == [0, 1, 1]
    assert read("regression", table=file).values("value") == [0.1, 2.0, -1000.0]
    assert read(table=file, patient=None).patients == ["a", "b", "c"]
    assert read_cohort(DataConfig(file, task="regression"), bags=False).task == "regression"
    assert read(table=table(tmp_path, "a,0", "b,1", head="slide,label\n")).patients == ["a", "b"]


def test_numbers_as_labels_are_in_the_order_of_their_size(tmp_path: Path) -> None:
    rows = [f"s{i},p{i},{label},1,1,1" for i, label in enumerate((10, 9, 2, 10))]
    assert read(table=table(tmp_path, *rows)).classes == ("2", "9", "10")


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    rows = [f"s{i:02},p,no,1,1,1" for i in range(14)]
    rows += ["s00,p,no,1,1,1", ",p,no,1,1,1", "t,,no,1,1,1", "u,p,,1,1,1", "v,p,maybe,1,1,1"]
    file, folder = table(tmp_path, *rows), features(tmp_path, "s00", "s01", "v")
    with pytest.raises(DataError) as caught:
        read(table=file, features=folder, classes=["no", "yes"])
    told = str(caught.value)
    assert "12 have no feature file in" in told
    assert "s02, s03, s04, s05, s06, s07, s08, s09, s10, s11 and 2 more" in told
    assert "1 stand in the table a second time: s00 (line 16)" in told
    assert "1 rows name no slide: line 17" in told
    assert "1 have no patient (column patient): t" in told
    assert "1 have no label (column label): u" in told
    assert "1 have a label that is not in data.classes (no, yes): v" in told
    assert told.endswith("To leave out slides without features or target: data.missing=drop")


def test_slides_without_features_or_label_are_left_out_on_request(tmp_path: Path) -> None:
    rows = ("a,p,no,1,1,1", "b,p,no,1,1,1", "c,q,,1,1,1", "d,q,yes,1,1,1")
    file, folder = table(tmp_path, *rows), features(tmp_path, "a", "c", "d")
    cohort = read(table=file, features=folder, missing="drop")
    assert cohort.slides == ["a", "d"]
    assert [slide for slide, _ in cohort.dropped] == ["b", "c"]
    assert "no label" in cohort.dropped[1][1]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="all 4 slides have no feature file"):
        read(table=file, features=str(tmp_path / "none"), missing="drop")


@pytest.mark.parametrize(
    ("task", "row", "match"),
    [
        ("survival", "a,p,no,x,1,1", "1 have a time that is no number, such as 'x': a"),
        ("survival", "a,p,no,-1,1,1", "1 have a negative time: a"),
        ("survival", "a,p,no,1,dead,1", "1 have event 'dead', expected 1 or 0: a"),
        ("regression", "a,p,no,1,1,inf", "1 have a value that is no number, such as 'inf': a"),
    ],
)
def test_a_target_that_cannot_be_understood_is_never_dropped(
    task: str, row: str, match: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=match):
        read(task, table=table(tmp_path, row), missing="drop")


def test_columns_that_are_not_there_are_named_with_the_key_to_say(tmp_path: Path) -> None:
    file = table(tmp_path, "a,p,no,1,1,1")
    for config, match in (
        ({"slide": "slides"}, "no column 'slides'. Did you mean 'slide'.*Say data.slide=COLUMN"),
        ({"label": "lable"}, "no column 'lable'. Did you mean 'label'"),
        ({"patient": "patients"}, "no column 'patients'. Did you mean 'patient'"),
        ({"site": "hospital"}, "no column 'hospital'. Columns: .*Say data.site=COLUMN"),
        ({"censorship": "censored"}, "no column 'censored'.*Say data.censorship=COLUMN"),
    ):
        with pytest.raises(DataError, match=match):
            read("survival" if "censorship" in config else "classification", table=file, **config)
    with pytest.raises(SpecError, match=r"No task 'clasification'. Did you mean 'classification'"):
        read("clasification", table=file)


@pytest.mark.parametrize("head", ["patient", "Patient", "patient_id", "Case ID", "case_id", "case"])
def test_a_patient_column_of_a_usual_name_is_found(head: str, tmp_path: Path) -> None:
    file = table(tmp_path, "a,p,no", "b,p,yes", head=f"slide,{head},label\n")
    cohort = read(table=file)
    assert (cohort.patients, cohort.of_patients) == (["p", "p"], f"column '{head}'")
    alone = read(table=file, patient=None)
    assert (alone.patients, alone.of_patients) == (["a", "b"], "each slide its own")
    with pytest.raises(DataError, match=rf"1 have no patient \(column {head}\): b"):
        read(table=table(tmp_path, "a,p,no", "b,NA,yes", head=f"slide,{head},label\n"))


def test_barcodes_tell_patients_and_sites_as_splits_have_them(tmp_path: Path) -> None:
    rows = ["dir/TCGA-2F-A9KO-01Z-00-DX1.svs,no", "TCGA-2F-A9KO-01Z-00-DX2,no", "TCGA-4Z-AA7O,yes"]
    file = table(tmp_path, *rows, head="slide,label\n")
    cohort, (_, columns) = read(table=file), read_columns(file)
    assert cohort.patients == columns.patients == ["TCGA-2F-A9KO", "TCGA-2F-A9KO", "TCGA-4Z-AA7O"]
    assert cohort.sites == columns.sites == ["2F", "2F", "4Z"]
    assert cohort.of_patients == columns.sources["patients"] == "TCGA barcodes"
    mixed = read(table=table(tmp_path, *rows, "normal_1,no", head="slide,label\n"))
    assert mixed.patients == [*cohort.patients, "normal_1"] and mixed.sites is None
    assert mixed.of_patients == "TCGA barcodes of 3 of 4 slides, the others each its own"
    alone = read(table=table(tmp_path, *rows, head="slide,label\n"), patient=None)
    assert alone.patients == alone.slides and alone.sites == ["2F", "2F", "4Z"]


def test_classes_must_be_several(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the classes are \['no'\], expected two or more"):
        read(table=table(tmp_path, "a,p,no,1,1,1"))
    with pytest.raises(DataError, match=r"the classes are \['no', 'no'\]"):
        read(table=table(tmp_path, "a,p,no,1,1,1"), classes=["no", "no"])


def test_a_patient_whose_slides_contradict_each_other_is_refused_where_it_matters(
    tmp_path: Path,
) -> None:
    file = table(tmp_path, "a,p,no,1,1,1", "b,p,yes,2,1,2")
    assert read(table=file).at_odds == {"p": ["a", "b"]}
    for kind in ("concat", "late_mean"):
        with pytest.raises(DataError, match=r"different targets: p \(a, b\)\nWhere targets are of"):
            read(table=file, patient_slides=kind)
    with pytest.raises(DataError, match=r"1 have slides with different targets: p \(a, b\)$"):
        read("survival", table=file)


def test_feature_files_are_found_by_name_or_by_a_column(tmp_path: Path) -> None:
    folder = features(tmp_path, "a", "b", "c.svs")
    file = table(tmp_path, "a.svs,p,no,1,1,1", "b,q,yes,1,1,1", "c.svs,q,yes,1,1,1")
    cohort = read(table=file, features=folder)
    assert [record.file.name for record in cohort.records] == [
        "a.h5", "b.h5", "c.svs.h5",
    ]  # fmt: skip
    (tmp_path / "features" / "a.pt").write_bytes(b"")
    with pytest.raises(DataError, match=r"have several feature files in .*SLIDE.h5 and SLIDE.pt"):
        read(table=file, features=folder, missing="drop")
    rows = ("x,p,no,features/b.h5", "y,q,yes,features/a.h5")
    file = table(tmp_path, *rows, head="slide,patient,label,path\n")
    cohort = read(table=file, file="path")
    assert cohort.bag(0).slide_id == "x"
    assert torch.equal(cohort.bag(0).features, wsizoo.read_bag(f"{folder}/b.h5").features)
    file = table(tmp_path, *rows, "z,q,no,features/none.h5", head="slide,patient,label,path\n")
    with pytest.raises(DataError, match=r"1 have no feature file \(column path\): z"):
        read(table=file, file="path")
    with pytest.raises(NotFoundError, match="No folder of features at"):
        read(table=file, features=str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"data.features names no folder"):
        read_cohort(DataConfig(table=file), "classification")


def test_bags_are_read_when_asked_for_with_their_target(tmp_path: Path) -> None:
    folder = features(tmp_path, "a", "b")
    file = table(tmp_path, "a,p,no,1,1,1", "b,q,yes,7,0,1")
    cohort = read("survival", table=file, features=folder)
    os.remove(tmp_path / "features" / "a.h5")
    bag = cohort.bag(1)
    assert (bag.slide_id, dict(bag.target or {})) == ("b", {"time": 7.0, "event": 0})
    with pytest.raises(DataError, match="No feature file at"):
        cohort.bag(0)
    with pytest.raises(DataError, match=r"'a' has no features: say data.features=FOLDER"):
        read("survival", table=file).bag(0)


def test_a_file_of_no_patches_is_named(tmp_path: Path) -> None:
    folder = features(tmp_path, "a", n=0)
    cohort = read(table=table(tmp_path, "a,p,0,1,1,1"), features=folder, classes=["0", "1"])
    with pytest.raises(DataError, match=r"a.h5' holds no patches"):
        cohort.bag(0)
    assert cohort.sizes() == [0]


rows = st.lists(
    st.tuples(st.text("abcd", min_size=1, max_size=3), st.text("pq", min_size=1), st.booleans()),
    min_size=2, max_size=8, unique_by=lambda row: row[0],
)  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(rows, st.randoms())
def test_the_digest_is_of_slides_patients_and_targets_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, rows: Any, random: Any
) -> None:
    def digest(of: Any, **config: Any) -> str:
        file = table(folder, *(f"{s},{p},{int(y)},1,1,1" for s, p, y in of))
        return read(table=file, classes=["0", "1"], **config).digest

    folder = tmp_path_factory.mktemp("digest")
    shuffled = random.sample(rows, len(rows))
    assert digest(rows) == digest(shuffled)
    slide, patient, label = rows[0]
    others = [(slide, patient, not label), (slide, patient + "x", label), (slide + "x", patient, 0)]
    assert len({digest(rows), *(digest([one, *rows[1:]]) for one in others)}) == 4
    assert digest(rows, patient=None) != digest(rows)


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        ("a.svs", "a"), ("a.SVS", "a"), ("x/y/a.ndpi", "a"), ("x\\a.tiff", "a"), ("a.h5", "a"),
        ("TCGA-1.041e15d5-4852", "TCGA-1.041e15d5-4852"), ("a.b.svs", "a.b"), ("a", "a"),
    ],
)  # fmt: skip
def test_the_name_of_a_slide_has_no_suffix_of_an_image(cell: str, name: str) -> None:
    assert slide_name(cell) == name


def test_files_that_cannot_be_read_are_told_with_those_that_are_missing(tmp_path: Path) -> None:
    folder = features(tmp_path, "a", "b", "c")
    (tmp_path / "features" / "b.h5").write_bytes(b"\x89HDF\r\n\x1a\n cut off")
    rows = ("a,p,x", "b,q,y", "c,r,y", "d,s,x", "e,t,")
    file = table(tmp_path, *rows, head="slide,patient,label\n")
    with pytest.raises(DataError) as caught:
        read(table=file, features=folder)
    told = str(caught.value)
    assert "1 have no feature file in" in told and "1 have no label (column label): e" in told
    assert re.search(r"1 have a file that cannot be read \(.*b\.h5.*\): b", told)


# Labels of patches


def segmentation(tmp_path: Path, **config: Any) -> Cohort:
    (tmp_path / "labels").mkdir(exist_ok=True)
    folder = features(tmp_path, "a")
    file = table(tmp_path, "a,p", head="slide,patient\n")
    given = {"instances": str(tmp_path / "labels"), "classes": ["no", "yes"]} | config
    return read("segmentation", table=file, features=folder, **given)


def test_labels_of_patches_come_by_row_by_cell_or_by_place(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    file = tmp_path / "labels" / "a.npy"
    np.save(file, np.array([0, 1, -1, 1]))
    given = (segmentation(tmp_path).bag(0).target or {})["instances"]
    assert given.dtype == torch.int64
    assert given.tolist() == [0, 1, -1, 1]
    np.save(file, np.array([[0.0, 0.25, 9], [0.5, 1.0, 9]]))  # of cells: row, column
    given = (segmentation(tmp_path).bag(0).target or {})["instances"]
    assert given.dtype == torch.float32
    assert given.tolist() == [0, 0.25, 0.5, 1]
    file.unlink()
    file.with_suffix(".csv").write_text("label\nno\nyes\n\n0\n1\n".replace("\n\n", "\nnan\n"))
    with pytest.raises(DataError, match="holds 5 labels, slide 'a' has 4 patches; with the col"):
        segmentation(tmp_path).bag(0)
    file.with_suffix(".csv").write_text("label\nno\nyes\nnan\n1\n")
    assert (segmentation(tmp_path).bag(0).target or {})["instances"].tolist() == [0, 1, -1, 1]
    file.with_suffix(".csv").write_text("x,y,label\n256,256,yes\n0.0,0,no\n9,9,yes\n")
    assert (segmentation(tmp_path).bag(0).target or {})["instances"].tolist() == [0, -1, -1, 1]


@pytest.mark.parametrize("collisions", ["error", "nearest"])  # files as they are, or regridded
def test_labels_of_patches_are_read_without_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collisions: str
) -> None:
    (tmp_path / "labels").mkdir()
    np.save(tmp_path / "labels" / "a.npy", np.array([[0, 1, 9], [-1, 1, 9]]))
    cohort = segmentation(tmp_path, collisions=collisions)
    assert (cohort.bag(0).target or {})["instances"].tolist() == [0, 1, -1, 1]
    monkeypatch.setattr(h5py.Dataset, "__getitem__", few(h5py.Dataset.__getitem__))
    assert cohort.labels_of_patches(0).tolist() == [0, 1, -1, 1]
    with pytest.raises((TypeError, DataError), match="features were read"):
        cohort.bag(0)


def few(getitem: Any) -> Any:
    """h5py's reading, without features."""

    def of(dataset: Any, *where: Any) -> Any:
        if dataset.name.endswith("features"):
            raise TypeError("features were read")
        return getitem(dataset, *where)

    return of


def test_labels_of_patches_that_are_not_there_or_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 have no labels of patches in .*\(SLIDE.npy or SLIDE"):
        segmentation(tmp_path)
    with pytest.raises(DataError, match=r"a.h5' holds no labels of patches; say where they lie"):
        segmentation(tmp_path, instances=None).bag(0)
    file = tmp_path / "labels" / "a.npy"
    for array, match in (
        (np.zeros(3), r"holds labels \(3,\) for slide 'a' of 4 patches, expected \(4,\)"),
        (np.zeros((1, 2)), r"has \(1, 2\) cells, slide 'a' has patches up to row 1, column 1"),
        (np.array([0, 1, np.nan, 1]), "holds labels that are NaN or below -1"),
        (np.array(["a"] * 4), "cannot be read as labels of patches"),
    ):
        np.save(file, array)
        with pytest.raises(DataError, match=match):
            segmentation(tmp_path).bag(0)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("x,y,label\n1,1,0\n", r"none of its 1 places is a patch .*\(1, 1\).* \(0, 0\)"),
        ("x,y,label\na,1,0\n", "could not convert.*expected x and y in level-0 px"),
        ("label\nmaybe\n", "holds the label 'maybe', expected a number or one of no, yes"),
        ("truth\n1\n", "has no column 'label'"),
    ],
)
def test_tables_of_patch_labels_that_do_not_fit_are_named(
    text: str, match: str, tmp_path: Path
) -> None:
    cohort_bag = wsizoo.read_bag(f"{features(tmp_path, 'a')}/a.h5")
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=match):
        read_patch_labels(tmp_path / "a.csv", cohort_bag, ("no", "yes"))


def test_places_of_patches_need_coordinates(tmp_path: Path) -> None:
    bag = wsizoo.read_bag(f"{features(tmp_path, 'a')}/a.h5").replace(coords=None)
    (tmp_path / "a.csv").write_text("x,y,label\n0,0,1\n")
    with pytest.raises(DataError, match="the features of 'a' no coordinates"):
        read_patch_labels(tmp_path / "a.csv", bag)
