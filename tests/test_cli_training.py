"""train, evaluate, report, push of a run: what is typed, what is told, and what goes wrong."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from tests.toy_cohort import made, read_table, write_cohort, write_config, write_table
from wsizoo.cli import cli, main
from wsizoo.errors import DataError, NotFoundError
from wsizoo.publish import save
from wsizoo.slides.store import write_bag
from wsizoo.testing.hub import HubDouble
from wsizoo.train.recipes import find_recipe
from wsizoo.zoo import build, load


@pytest.fixture(scope="module")
def finished(cohort: Path) -> Path:
    """A folder with a cohort, its config, and its run."""
    config = write_config(cohort)
    assert invoke("train", config, "-o", cohort / "run").exit_code == 0
    return cohort


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="wsizoo")


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> str:
    """What the command tells when it ends with exit code 1."""
    monkeypatch.setattr(sys, "argv", ["wsizoo", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    return capsys.readouterr().err


def rename(folder: Path) -> None:
    """Make a cohort one of other slides and patients."""
    rows = read_table(folder / "slides.csv")
    for row in rows:
        file = folder / "features" / f"{row['slide']}.h5"
        row |= {key: "x-" + row[key] for key in ("slide", "patient")}
        file.rename(file.with_name(f"{row['slide']}.h5"))
    write_table(folder / "slides.csv", rows)


def change(folder: Path, **cells: str) -> None:
    """Write other values into the first row of the table."""
    rows = read_table(folder / "slides.csv")
    rows[0] |= cells
    write_table(folder / "slides.csv", rows)


# What is told


def test_train_tells_of_data_epochs_and_measures(finished: Path) -> None:
    out = finished / "told"
    result = invoke("train", finished / "train.yaml", "-o", out)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == (
        "16 slides of 16 patients, classification of benign, malign; train/val/test 8/4/4; "
        "patients: column 'patient'"
    )
    assert [line.split()[:2] for line in lines[1:3]] == [["epoch", "1/2"], ["epoch", "2/2"]]
    assert "95 % interval" in result.output
    assert lines[-1] == f"Open {out.absolute() / 'report.html'}"


def test_train_json_is_the_measures_alone(finished: Path) -> None:
    result = invoke("train", finished / "train.yaml", "-o", finished / "run", "--json")
    told = json.loads(result.stdout)
    assert result.stderr
    assert told["run"] == str(finished / "run")
    written = json.loads((finished / "run" / "metrics.json").read_text())
    assert told["test"]["auc"] == written["test"]["auc"]


def test_several_runs_are_told_as_mean_and_deviation(finished: Path) -> None:
    result = invoke(
        "train", finished / "train.yaml", "-o", finished / "two", "seeds=[0,1]", "train.epochs=1"
    )
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    header = next(line for line in lines if line.startswith("part"))
    assert re.split(r"  +", header) == [
        "part", "measure", "mean ± std", "95 % interval of the mean", "runs",
    ]  # fmt: skip
    row = next(line for line in lines if re.match("test +auc ", line))
    assert re.search(r" auc +\d\.\d{3} ± \d\.\d{3} +\d\.\d{3} to \d\.\d{3}( \(.+\))? +2$", row)
    assert "Run 2 of 2: fold0-seed1" in result.output


def test_help_teaches_by_examples() -> None:
    for command in ("train", "evaluate", "report"):
        assert "Example" in invoke(command, "--help").output
    assert "wsizoo train baseline-classification -o RUN" in invoke("train", "--help").output


def test_recipes_are_listed_and_are_configs(finished: Path) -> None:
    listed = invoke("train", "--list").output
    assert "baseline-classification" in listed and "baseline-survival" in listed
    told = {line.split()[0]: line for line in listed.splitlines()}
    assert "  https://github.com/mahmoodlab/Patch-GCN  " in told["baseline-survival"]
    assert "  no paper  " in told["baseline-regression"]
    result = invoke(
        "train", "baseline-classification", "-o", finished / "by-recipe",
        f"model={finished / 'toy.yaml'}", f"data.table={finished / 'slides.csv'}",
        f"data.features={finished / 'features'}", "split.kind=column", "split.column=part",
        "train.epochs=1",
    )  # fmt: skip
    assert result.exit_code == 0, result.output


def test_a_recipe_is_shown_as_it_stands() -> None:
    shown = invoke("train", "--show", "baseline-survival")
    assert shown.exit_code == 0
    assert shown.output == find_recipe("baseline-survival").read_text(encoding="utf-8")
    with pytest.raises(NotFoundError, match="Did you mean 'baseline-survival'"):
        CliRunner().invoke(cli, ["train", "--show", "baseline-survivl"], catch_exceptions=False)


def test_usage_errors_end_with_2() -> None:
    assert invoke("train", "x.yaml").exit_code == 2
    assert invoke("evaluate", "x", "-o", "y", "--part", "tset").exit_code == 2


# evaluate and report


def test_evaluate_measures_another_part(finished: Path) -> None:
    result = invoke("evaluate", finished / "run", "-o", finished / "val", "--part", "val")
    assert result.exit_code == 0, result.output
    own = json.loads((finished / "run" / "metrics.json").read_text())["val"]
    again = json.loads((finished / "val" / "metrics.json").read_text())["val"]
    assert again["auc"] == own["auc"]
    both = [read_table(finished / f / "predictions.csv") for f in ("run", "val")]
    assert [row for row in both[0] if row["part"] == "val"] == both[1]
    assert (finished / "val" / "report.html").is_file()


def test_evaluate_all_three_parts(finished: Path) -> None:
    result = invoke("evaluate", finished / "run", "-o", finished / "all", "--part", "all")
    assert result.exit_code == 0, result.output
    rows = read_table(finished / "all" / "predictions.csv")
    assert sorted({row["part"] for row in rows}) == ["test", "train", "val"]


def test_evaluate_replaces_another_evaluation_on_request(finished: Path, tmp_path: Path) -> None:
    asked = ["evaluate", finished / "run", "-o", tmp_path / "out", "--device", "cpu"]
    assert invoke(*asked).exit_code == 0
    assert isinstance(invoke(*asked, "--part", "val").exception, DataError)
    assert invoke(*asked, "--part", "val", "--overwrite").exit_code == 0
    assert {row["part"] for row in read_table(tmp_path / "out" / "predictions.csv")} == {"val"}


def test_evaluate_on_other_data_takes_all_slides(finished: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path, slides=8)
    rename(tmp_path)
    data = [f"data.table={tmp_path / 'slides.csv'}", f"data.features={tmp_path / 'features'}"]
    for source in (finished / "run", finished / "run" / "model"):
        out = tmp_path / source.name
        result = invoke("evaluate", source, "-o", out, *data)
        assert result.exit_code == 0, result.output
        assert len(read_table(out / "predictions.csv")) == 8
        told = json.loads((out / "run.json").read_text())
        assert (told["state"], Path(told["evaluated"]).name) == ("finished", source.name)
    assert (tmp_path / "run/predictions.csv").read_bytes() == (
        tmp_path / "model/predictions.csv"
    ).read_bytes()


def test_evaluate_refuses_what_makes_no_sense(
    finished: Path,
    own_cohort: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def told(*arguments: str | Path) -> str:
        return refused(monkeypatch, capsys, "evaluate", *arguments)

    run, out = finished / "run", own_cohort / "out"
    model = run / "model"
    assert "is a model and no run, so on which data?" in told(model, "-o", out)
    other = [f"data.table={own_cohort / 'slides.csv'}", f"data.features={own_cohort / 'features'}"]
    change(own_cohort, label="malign")
    result = invoke("evaluate", run, "-o", own_cohort / "test", *other)
    assert "Left out 8 of the train part and 4 of the val part. To" in result.output
    rename(own_cohort)
    assert "part 'val' is of the data that" in told(run, "-o", out, *other, "--part", "val")
    rows = [r for r in read_table(own_cohort / "slides.csv") if r["part"] in ("train", "val")]
    change(own_cohort, label="gorgeous")
    assert "label that is not in data.classes (benign, malign): x-s00" in told(
        run, "-o", out, *other
    )
    assert "and is no evaluation; choose another: -o OUT" in told(run, "-o", run)
    headless = save(build("abmil-demo", "head=null"), own_cohort / "headless")
    assert "does not say its task. Say it: data.task=" in told(headless, "-o", out, *other)
    two = ["split={kind: column, column: part, val_fraction: 0}", "selection.checkpoint=last"]
    write_table(own_cohort / "slides.csv", rows)
    config = write_config(own_cohort)
    assert invoke("train", config, "-o", own_cohort / "untested", *two).exit_code == 0
    assert "kept no slides for its test part" in told(own_cohort / "untested", "-o", out)


def test_report_writes_the_page_anew(finished: Path) -> None:
    page = finished / "run" / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert invoke("report", finished / "run").output.strip() == str(page)
    assert page.read_bytes() == before


def test_push_takes_a_run(
    finished: Path,
    hub: HubDouble,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.add_token("hf_secret", "lab")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    result = invoke("push", finished / "run", "lab/toy")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("hf:lab/toy@")
    _, front, body = hub.files("lab/toy")["README.md"].decode().split("---\n", 2)
    (listed,) = yaml.safe_load(front)["model-index"]
    assert listed["name"] == "abmil-classification-made-up"
    assert yaml.safe_load(front)["license"] == "unknown"
    assert "made-up -> abmil -> classification, trained on slides of 'slides'" in body
    measured = json.loads((finished / "run" / "metrics.json").read_text())["test"]
    (results,) = listed["results"]
    assert results["dataset"] == {"name": "slides", "type": "slides"}
    points = {metric["type"]: metric["value"] for metric in results["metrics"]}
    assert points["auc"] == measured["auc"]["value"]
    auc = measured["auc"]
    ends = f"{auc['low']:.3f} to {auc['high']:.3f} ({auc['method']})"
    assert f"| auc | {auc['value']:.3f} | {ends} | 4 |" in body
    assert "Research: it predicts the class of a slide (benign, malign) from made-up" in body
    assert "Measured on 4 slides of the same table that were held out" in body
    (finished / "begun").mkdir()
    (finished / "begun" / "config.yaml").write_text("model: toy")
    told = refused(monkeypatch, capsys, "push", finished / "begun", "lab/toy")
    assert "is not finished, so it has no model yet" in told
    for name in ("a", "b"):
        (finished / "folds" / name / "model").mkdir(parents=True)
        (finished / "folds" / name / "model" / "config.json").write_text("{}")
    told = refused(monkeypatch, capsys, "push", finished / "folds", "lab/toy")
    assert "folds' is no model and no run of one; it holds 2 (a, b): name one, " in told


# Bad input: told before anything is trained, and nothing is lost


def test_missing_feature_files_are_listed_all(
    own_cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("s03", "s11"):
        (own_cohort / "features" / f"{name}.h5").unlink()
    told = refused(monkeypatch, capsys, "train", write_config(own_cohort), "-o", own_cohort / "run")
    assert "2 have no feature file" in told and "s03, s11" in told
    assert not (own_cohort / "run").exists()


def test_slides_without_a_label_are_named(
    own_cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change(own_cohort, label="")
    told = refused(monkeypatch, capsys, "train", write_config(own_cohort), "-o", own_cohort / "run")
    assert "1 have no label (column label): s00" in told
    assert "data.missing=drop" in told
    config = write_config(own_cohort)
    assert invoke("train", config, "-o", own_cohort / "run", "data.missing=drop").exit_code == 0
    assert len(read_table(own_cohort / "run" / "split.csv")) == 15


def test_a_fold_of_one_class_is_refused(
    own_cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_table(own_cohort / "slides.csv")
    for row in rows:
        row["part"] = "train" if row["label"] == "benign" else "test"
    write_table(own_cohort / "slides.csv", rows)
    config = write_config(own_cohort, selection={"checkpoint": "last"})
    told = refused(monkeypatch, capsys, "train", config, "-o", own_cohort / "run")
    assert "one class" in told and "benign" in told


def test_empty_bags_damaged_files_and_other_widths_are_told_at_once(
    own_cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    features = own_cohort / "features"
    write_bag(made(torch.zeros(0, 8)), features / "s02.h5")
    write_bag(made(torch.zeros(4, 5)), features / "s04.h5")
    (features / "s06.h5").write_bytes(b"not a feature file")
    told = refused(monkeypatch, capsys, "train", write_config(own_cohort), "-o", own_cohort / "run")
    assert "3 of 16 feature files cannot be trained on:" in told
    assert "slide 's02'" in told and "no patches" in told
    assert "features of width 5, 'toy' reads of made-up width 8" in told
    assert "slide 's06'" in told
    assert not (own_cohort / "run" / "epochs.csv").exists()


def test_features_of_another_width_name_the_override_that_takes_them(
    own_cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, narrow = write_config(own_cohort), "aggregator.dim=7"
    assert invoke("train", config, "-o", own_cohort / "first", "train.epochs=1").exit_code == 0
    model = own_cohort / "first" / "model"
    for i in range(16):
        write_bag(made(torch.randn(4, 5), "other"), own_cohort / "features" / f"s{i:02}.h5")
    own = f"overrides={json.dumps([narrow])}"
    told = refused(monkeypatch, capsys, "train", config, "-o", own_cohort / "run", own)
    assert told.count("features of width 5, 'toy' reads of made-up width 8") == 1
    assert "16 slides, first 's00' (" in told
    (typed,) = shlex.split(told.strip().splitlines()[-1].partition("features, add: ")[2])
    assert typed == 'overrides=["encoder={name: other, dim: 5}"]'
    assert invoke("train", config, "-o", own_cohort / "run", own, typed).exit_code == 0
    assert load(own_cohort / "run" / "model").aggregator.out_dim == 7
    told = refused(
        monkeypatch, capsys, "train", config, "-o", own_cohort / "2", f"init={model}", typed
    )
    assert "were trained on features with encoder made-up" in told
    told = refused(monkeypatch, capsys, "train", config, "-o", own_cohort / "3", f"init={model}")
    assert "is trained, it needs features of made-up: extract them" in told


def test_what_is_published_of_a_run_names_no_path_of_the_computer(
    finished: Path, tmp_path: Path
) -> None:
    run, model = finished / "run", finished / "run" / "model"
    assert invoke("evaluate", model, "-o", tmp_path / "out", *data_of(finished)).exit_code == 0
    published = [*model.iterdir(), run / "report.html", tmp_path / "out" / "report.html"]
    for file in published:
        assert str(finished).encode() not in file.read_bytes(), file
        assert str(finished.parent.parent).encode() not in file.read_bytes(), file
    assert "../slides.csv" in (run / "report.html").read_text()


def data_of(folder: Path) -> list[str]:
    return [f"data.table={folder / 'slides.csv'}", f"data.features={folder / 'features'}"]


def test_evaluate_tells_scripts_too_what_it_left_out(finished: Path, own_cohort: Path) -> None:
    rows = read_table(own_cohort / "slides.csv")
    for row in rows[:3]:
        row["label"] = ""
    write_table(own_cohort / "slides.csv", rows)
    changed = [f"data.table={own_cohort / 'slides.csv'}", "data.missing=drop"]
    result = invoke("evaluate", finished / "run", "-o", own_cohort / "out", *changed, "--json")
    told = json.loads(result.stdout)
    assert told["left_out"] == {"train": 5, "val": 4, "dropped": 3}
    assert told["test"]["auc"]["n"] == 4
    assert "Left out 3 slides:\n  3 have no label (column label): s00, s01, s02\n" in result.stderr
    assert "Left out 5 of the train part and 4 of the val part" in result.stderr
    own = invoke("evaluate", finished / "run", "-o", own_cohort / "own", "--json", "--part", "all")
    assert json.loads(own.stdout)["left_out"] == {} and "Left out" not in own.stderr


def test_features_of_another_encoder_of_that_width_tell_what_to_type(
    own_cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = write_config(own_cohort), own_cohort / "run"
    assert invoke("train", config, "-o", own_cohort / "first", "train.epochs=1").exit_code == 0
    for file in (own_cohort / "features").iterdir():
        write_bag(made(torch.randn(4, 8), "other"), file)
    told = refused(
        monkeypatch, capsys, "train", config, "-o", run, 'overrides=["aggregator.dim=7"]'
    )
    assert "FingerprintError" in told and "was made for made-up features; slide 's00' was" in told
    assert "data.encoder" not in told
    (typed,) = re.findall(r"Or build this one for yours, add: (.*)", told)
    both = ['overrides=["aggregator.dim=7"]', *shlex.split(typed)]
    assert invoke("train", config, "-o", run, *both).exit_code == 0
    model = load(run / "model")
    assert (model.requires.encoder, model.aggregator.out_dim) == ("other", 7)
    trained = f"init={own_cohort / 'first' / 'model'}"
    told = refused(monkeypatch, capsys, "train", config, "-o", own_cohort / "3", trained)
    assert "was encoded with other" in told and "build" not in told


def test_a_declared_encoder_may_be_a_slip(
    own_cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (own_cohort / "features").iterdir():
        file.unlink()
        np.save(file.with_suffix(".npy"), np.zeros((4, 8), np.float32))
    told = refused(
        monkeypatch, capsys, "train", write_config(own_cohort), "-o", own_cohort / "run",
        "data.encoder=madeup", "data.format=npy",
    )  # fmt: skip
    assert (
        "Or build this one for yours, add: 'overrides=[\"encoder={name: madeup, dim: 8}\"]'" in told
    )
    assert "If data.encoder=madeup is a slip, state what made them" in told


def test_an_embedding_is_no_bag(
    own_cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import h5py

    with h5py.File(own_cohort / "features" / "s01.h5", "w") as file:
        file["features"] = np.zeros(8, np.float32)
    told = refused(monkeypatch, capsys, "train", write_config(own_cohort), "-o", own_cohort / "run")
    assert "slide 's01'" in told and "1 of 16 feature files cannot be trained on" in told


def test_features_of_two_encoders_are_refused(
    own_cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bag(made(torch.zeros(4, 8), "other"), own_cohort / "features" / "s04.h5")
    told = refused(monkeypatch, capsys, "train", write_config(own_cohort), "-o", own_cohort / "run")
    assert "FingerprintError" in told and "made-up" in told and "other" in told


def test_a_loss_that_is_no_number_names_the_slide_and_keeps_the_checkpoint(
    own_cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(own_cohort, task="regression", train={"epochs": 1})
    assert invoke("train", config, "-o", own_cohort / "good").exit_code == 0
    change(own_cohort, value="1e38")
    told = refused(monkeypatch, capsys, "train", config, "-o", own_cohort / "run")
    assert "slide 's00'" in told
    assert not (own_cohort / "run" / "model").exists()


def test_a_split_of_another_table_is_refused(
    own_cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_cohort / "other.csv").write_text("slide,part\nx1,train\nx2,val\nx3,test\n")
    config = write_config(own_cohort, split={"kind": "file", "file": "other.csv"})
    told = refused(monkeypatch, capsys, "train", config, "-o", own_cohort / "run")
    assert "other.csv" in told and "x1" in told
    config = write_config(own_cohort, split={"kind": "file"})
    told = refused(monkeypatch, capsys, "train", config, "-o", own_cohort / "run")
    assert "split.file names none: split.file=SPLIT.csv" in told
    config = write_config(own_cohort, split={"kind": "column", "column": "prat"})
    told = refused(monkeypatch, capsys, "train", config, "-o", own_cohort / "run")
    assert "has no column 'prat' (split.column). Did you mean 'part'" in told
    config = write_config(own_cohort, split={"kind": "column", "column": None})
    told = refused(monkeypatch, capsys, "train", config, "-o", own_cohort / "run")
    assert "split.column names none: split.column=NAME" in told
