"""evaluate_run: the numbers of the run, and slides that the run has seen are no test."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.toy_cohort import read_table, write_cohort, write_config, write_table
from wsizoo.errors import DataError, SpecError
from wsizoo.train.config import load_config
from wsizoo.train.evaluation import evaluate_run
from wsizoo.train.processes import found_device
from wsizoo.train.run import run_training


@pytest.fixture(scope="module")
def source(several: Path) -> Path:
    """A cohort and its run: two slides a patient; 16 train, 8 validate, 8 test."""
    run_training(load_config(write_config(several), ["train.epochs=1"]), several / "run")
    return several


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def evaluated(
    source: Path,
    out: Path,
    change: Callable[[dict[str, str]], dict[str, str] | None],
    part: str | None = None,
) -> tuple[dict[str, str], list[str]]:
    """Slide -> part that was measured, and what was told, with every row of the table changed."""
    out.mkdir()
    rows = [row for row in map(change, read_table(source / "slides.csv")) if row]
    write_table(out / "t.csv", rows)
    told: list[str] = []
    run = source / "run"
    evaluate_run(run, out / "e", [f"data.table={out / 't.csv'}"], part=part, say=told.append)
    measured = {row["slide"]: row["part"] for row in read_table(out / "e" / "predictions.csv")}
    return measured, told


@pytest.mark.parametrize("case", ["a value", "a row less", "patients renamed"])
def test_of_a_changed_table_what_was_trained_on_is_no_test(
    case: str, source: Path, tmp_path: Path
) -> None:
    """Issue: the slightest change to a table made all its slides, training ones too, the test."""
    changes: dict[str, Callable[[dict[str, str]], dict[str, str] | None]] = {
        "a value": lambda row: row | ({"label": "malign"} if row["patient"] == "P00" else {}),
        "a row less": lambda row: None if row["slide"] == "s00" else row,
        "patients renamed": lambda row: row | {"patient": "X" + row["patient"]},
    }
    measured, told = evaluated(source, tmp_path / "out", changes[case])
    rows = read_table(source / "slides.csv")
    assert measured == {row["slide"]: "test" for row in rows if row["part"] == "test"}
    train = 15 if case == "a row less" else 16
    n = train + 16
    assert told[0].startswith(
        f"The table is not that of the run, whose split knows {n} of {n} slides, themselves or by "
        f"their patients: {train} train, 8 val, 8 test; 0 others are taken as test"
    )
    assert told[1].startswith(f"Left out {train} of the train part and 8 of the val part. To")
    assert read(tmp_path / "out" / "e" / "run.json")["left_out"] == {"train": train, "val": 8}


def test_an_unknown_slide_is_a_test_unless_its_patient_was_seen(
    source: Path, tmp_path: Path
) -> None:
    """s00 and s01 are of P00, which trained; another slide of P00 must not test."""
    (tmp_path / "features").mkdir()
    for file in (source / "features").iterdir():
        (tmp_path / "features" / file.name).symlink_to(file)
    template = next(r for r in read_table(source / "slides.csv") if r["patient"] == "P00")
    rows = [
        template | {"slide": "new-of-P00"},
        template | {"slide": "new", "patient": "N"},
    ]
    for row in rows:
        (tmp_path / "features" / f"{row['slide']}.h5").write_bytes(
            (source / "features" / "s03.h5").read_bytes()
        )
    write_table(tmp_path / "t.csv", rows)
    data = [f"data.table={tmp_path / 't.csv'}", f"data.features={tmp_path / 'features'}"]
    told: list[str] = []
    evaluate_run(source / "run", tmp_path / "e", data, say=told.append)
    assert [r["slide"] for r in read_table(tmp_path / "e" / "predictions.csv")] == ["new"]
    assert "knows 1 of 2 slides" in told[0] and "1 others are taken as test" in told[0]
    evaluate_run(source / "run", tmp_path / "all", data, part="all")
    measured = {r["slide"]: r["part"] for r in read_table(tmp_path / "all" / "predictions.csv")}
    assert measured == {"new": "test", "new-of-P00": "train"}


def test_a_table_of_seen_slides_alone_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"kept no slides for its test part: all are others, 16 of the train part\."
    ):
        evaluated(source, tmp_path / "no", lambda row: row if row["part"] == "train" else None)
    measured, _ = evaluated(
        source, tmp_path / "val", lambda row: row | {"label": "malign"}, part="val"
    )
    assert set(measured.values()) == {"val"} and len(measured) == 8


def test_evaluate_gives_the_survival_numbers_of_the_run(tmp_path: Path) -> None:
    """Weights by censoring are those of the training part there too, and so are the bins."""
    write_cohort(tmp_path, slides=64)
    run = tmp_path / "run"
    run_training(load_config(write_config(tmp_path, "survival"), ["train.epochs=1"]), run)
    own = read(run / "metrics.json")
    assert own["test"]["integrated_brier"]["value"] is not None
    for part in ("test", "val"):
        evaluate_run(run, tmp_path / part, part=part)
        assert read(tmp_path / part / "metrics.json")[part] == own[part]
    train = [r for r in read_table(tmp_path / "slides.csv") if r["part"] == "train"]
    kept = read(run / "run.json")["censoring"]
    assert sorted(kept["times"]) == sorted(float(row["time"]) for row in train)
    assert sum(kept["events"]) == sum(int(row["event"]) for row in train)


def test_another_evaluation_is_replaced_on_request_only(source: Path, tmp_path: Path) -> None:
    run, out = source / "run", tmp_path / "out"
    evaluate_run(run, out)
    kept = (out / "metrics.json").read_bytes()
    evaluate_run(run, out)  # the same
    assert (out / "metrics.json").read_bytes() == kept
    told = r"another evaluation: parts was \['test'\], is \['val'\]\. .* --overwrite"
    with pytest.raises(DataError, match=told):
        evaluate_run(run, out, part="val")
    rows = read_table(source / "slides.csv")
    write_table(tmp_path / "t.csv", [*rows[:-1], rows[-1] | {"label": "benign"}])
    other = [f"data.table={tmp_path / 't.csv'}"]
    with pytest.raises(DataError, match="another evaluation: data_digest was"):
        evaluate_run(run, out, other)
    assert (out / "metrics.json").read_bytes() == kept
    evaluate_run(run, out, part="val", overwrite=True)
    told = read(out / "run.json")
    assert told["parts"] == ["val"] and len(told["weights_digest"]) == 64
    assert {row["part"] for row in read_table(out / "predictions.csv")} == {"val"}


def test_overrides_that_are_not_of_the_data_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"'train.epochs=4' changes nothing: .* data.KEY=VALUE"):
        evaluate_run(source / "run", tmp_path / "out", ["train.epochs=4"])
    assert not (tmp_path / "out").exists()


def test_an_evaluation_takes_the_gpu_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert (found_device("auto"), found_device("cpu")) == ("cuda", "cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert found_device("auto") == "cpu"
    assert inspect.signature(evaluate_run).parameters["device"].default == "auto"


def test_an_evaluation_tells_its_data_and_the_split_of_its_run(
    source: Path, tmp_path: Path
) -> None:
    run = source / "run"
    evaluate_run(run, tmp_path / "lab" / "e", ["data.bins=3"], part="val")
    told = read(tmp_path / "lab" / "e" / "run.json")
    assert told["split_digest"] == read(run / "run.json")["split_digest"]
    assert (told["data"]["table"], told["data"]["bins"]) == (str(source / "slides.csv"), 3)
    assert told["composition"] == read(run / "run.json")["composition"]
    page = (tmp_path / "lab" / "e" / "report.html").read_text()
    assert "slides.csv" in page and str(source) not in page
    assert f"sha256 {told['split_digest'][:16]}" in page
