"""wsizoo.train.run: a folder that tells all, goes on where it was, and belongs to one config."""

import json
import math
import shutil
import statistics
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import wsizoo
from tests.toy_cohort import read_table, write_cohort, write_config, write_table
from wsizoo.bag import Bag
from wsizoo.errors import DataError, SpecError
from wsizoo.interfaces import SlideOutput
from wsizoo.measures.bootstrap import RESAMPLES
from wsizoo.model import SlideModel
from wsizoo.train.cohort import read_cohort
from wsizoo.train.config import load_config
from wsizoo.train.evaluation import evaluate_run
from wsizoo.train.facts import training_facts
from wsizoo.train.run import run_training, splits_of
from wsizoo.train.samples import Samples

FILES = {
    "checkpoints", "config.yaml", "environment.json", "epochs.csv", "log.jsonl", "metrics.json",
    "model", "predictions.csv", "predictions_patients.csv", "report.html", "run.json", "split.csv",
}  # fmt: skip


def train(folder: Path, out: Path, *overrides: str, task: str = "classification") -> Path:
    return run_training(load_config(write_config(folder, task), overrides), out)


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def test_a_run_leaves_every_file_that_tells_of_it(cohort: Path, tmp_path: Path) -> None:
    run = train(cohort, tmp_path / "run")
    assert {path.name for path in run.iterdir()} == FILES
    told = read(run / "run.json")
    assert told["state"] == "finished"
    assert (told["task"], told["classes"]) == ("classification", ["benign", "malign"])
    assert told["encoder"]["encoder"] == "made-up"
    assert told["slides"] == {"train": 8, "val": 4, "test": 4}
    assert told["parameters"] > 0 and told["seconds_per_slide"] > 0
    rows = read_table(run / "predictions.csv")
    columns = "slide patient part label predicted p_benign p_malign"
    assert list(rows[0]) == columns.split()
    assert sorted(row["part"] for row in rows) == ["test"] * 4 + ["val"] * 4
    metrics = read(run / "metrics.json")
    assert metrics["split_digest"] == told["split_digest"]
    assert set(metrics["test"]["auc"]) >= {"value", "low", "high", "n"}
    parts = {row["slide"]: row["part"] for row in read_table(run / "split.csv")}
    assert parts == {row["slide"]: row["part"] for row in read_table(cohort / "slides.csv")}


def test_the_saved_model_gives_the_predictions_that_are_written(
    cohort: Path, tmp_path: Path
) -> None:
    run = train(cohort, tmp_path / "run")
    model = wsizoo.load(run / "model")
    assert model.trained and model.classes == ["benign", "malign"]
    for row in read_table(run / "predictions.csv"):
        with torch.no_grad():
            logits = model(wsizoo.read_bag(cohort / "features" / f"{row['slide']}.h5")).logits
        assert float(row["p_malign"]) == pytest.approx(float(logits.softmax(0)[1]), rel=1e-5)
    assert wsizoo.verify(run / "model").outputs["logits"] < 1e-6
    card = (run / "model" / "README.md").read_text()
    assert "| auc |" in card and "slides: 16 slides of 16 patients" in card
    assert str(cohort) not in card + (run / "model" / "config.json").read_text()


def test_what_is_measured_is_what_stands_in_the_file(cohort: Path, tmp_path: Path) -> None:
    from sklearn.metrics import roc_auc_score

    run = train(cohort, tmp_path / "run")
    rows = [row for row in read_table(run / "predictions.csv") if row["part"] == "test"]
    labels = [row["label"] == "malign" for row in rows]
    auc = roc_auc_score(labels, [float(row["p_malign"]) for row in rows])
    assert read(run / "metrics.json")["test"]["auc"]["value"] == pytest.approx(auc, abs=1e-12)


@pytest.mark.parametrize("task", ["survival", "regression", "segmentation"])
def test_every_task_has_its_columns_and_measures(task: str, cohort: Path, tmp_path: Path) -> None:
    run = train(cohort, tmp_path / "run", task=task)
    row = read_table(run / "predictions.csv")[0]
    columns, measure = {
        "survival": (["time", "event", "risk", "s_0", "s_1"], "c_index"),
        "regression": (["value", "predicted"], "mae"),
        "segmentation": (["dice", "iou", "tp", "fp", "fn"], "dice_pooled"),
    }[task]
    assert list(row) == ["slide", "patient", "part", *columns]
    assert read(run / "metrics.json")["test"][measure]["value"] is not None


def test_bins_of_time_come_from_the_training_part_alone(cohort: Path, tmp_path: Path) -> None:
    rows = [r for r in read_table(cohort / "slides.csv") if r["event"] == "1"]
    train_times = [float(row["time"]) for row in rows if row["part"] == "train"]
    every_time = [float(row["time"]) for row in rows]
    middle = [statistics.median(times) for times in (train_times, every_time)]
    assert middle[0] != middle[1]
    own = train(cohort, tmp_path / "own", task="survival")
    every = train(cohort, tmp_path / "all", "data.bins_from=whole_cohort", task="survival")
    assert read(own / "run.json")["edges"] == [pytest.approx(middle[0])]
    assert read(every / "run.json")["edges"] == [pytest.approx(middle[1])]
    lacking = Path(shutil.copytree(cohort, tmp_path / "lacking"))
    for row in sorted(rows, key=lambda row: float(row["time"]))[:2]:
        (lacking / "features" / f"{row['slide']}.h5").unlink()
    more = ("data.bins_from=whole_cohort", "data.missing=drop")
    left = train(lacking, tmp_path / "left", *more, task="survival")
    assert read(left / "run.json")["edges"] == [pytest.approx(middle[1])], "of the whole table"


def test_the_weight_of_positive_patches_is_counted_in_the_training_part(
    cohort: Path, tmp_path: Path
) -> None:
    run = train(cohort, tmp_path / "run", task="segmentation")
    labels = [
        line
        for row in read_table(cohort / "slides.csv")
        if row["part"] == "train"
        for line in (cohort / "patches" / f"{row['slide']}.csv").read_text().split()[1:]
    ]
    head = wsizoo.load(run / "model").head
    assert head.pos_weight == pytest.approx(labels.count("0") / labels.count("1"))


# Patients with several slides


def test_late_mean_measures_the_mean_over_a_patients_slides(several: Path, tmp_path: Path) -> None:
    run = train(several, tmp_path / "run", "data.patient_slides=late_mean")
    metrics = read(run / "metrics.json")
    assert (metrics["level"], metrics["test"]["auc"]["n"]) == ("patient", 4)
    slides = read_table(run / "predictions.csv")
    for row in read_table(run / "predictions_patients.csv"):
        own = [float(s["p_malign"]) for s in slides if s["patient"] == row["patient"]]
        assert (len(own), row["slides"]) == (2, "2")
        assert float(row["p_malign"]) == pytest.approx(sum(own) / 2, abs=1e-6)


def test_joined_slides_are_one_row_a_patient(several: Path, tmp_path: Path) -> None:
    run = train(several, tmp_path / "run", "data.patient_slides=concat")
    rows = read_table(run / "predictions.csv")
    assert len(rows) == 8
    assert rows[0]["slide"].count("+") == 1
    assert read(run / "metrics.json")["level"] == "patient"


def test_each_slide_for_itself_keeps_the_patient_as_what_is_resampled(
    several: Path, tmp_path: Path
) -> None:
    run = train(several, tmp_path / "run")
    auc = read(run / "metrics.json")["test"]["auc"]
    assert (auc["n"], auc["patients"]) == (8, 4)


def test_survival_counts_a_patient_once(several: Path, tmp_path: Path) -> None:
    """A time is a patient's: also where each slide is a bag, also in the page and in evaluation."""
    run = train(several, tmp_path / "run", "selection.metric=c_index", task="survival")
    metrics = read(run / "metrics.json")
    assert metrics["level"] == "patient"
    assert (metrics["test"]["c_index"]["n"], len(read_table(run / "predictions.csv"))) == (4, 16)
    slides = read_table(run / "predictions.csv")
    for row in read_table(run / "predictions_patients.csv"):
        own = [slide for slide in slides if slide["patient"] == row["patient"]]
        assert len(own) == 2
        for name in ("risk", "s_0", "s_1"):
            mean = sum(float(slide[name]) for slide in own) / 2
            assert float(row[name]) == pytest.approx(mean, rel=1e-6)
    assert "survival, test part: 4 patients" in (run / "report.html").read_text().lower()
    chosen = read_table(run / "epochs.csv")[read(run / "run.json")["epoch"] - 1]
    assert float(chosen["val_c_index"]) == pytest.approx(metrics["val"]["c_index"]["value"])
    again = evaluate_run(run, tmp_path / "again")
    assert read(again / "metrics.json")["test"]["c_index"]["n"] == 4


# Folds and seeds


def test_folds_and_seeds_have_a_folder_each_and_one_summary(cohort: Path, tmp_path: Path) -> None:
    asked = ["split={kind: kfold, folds: 2, val_fraction: 0.3}", "seeds=[0,1]", "train.epochs=1"]
    run = train(cohort, tmp_path / "run", *asked)
    names = [f"fold{fold}-seed{seed}" for fold in (0, 1) for seed in (0, 1)]
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == names
    summary = read(run / "metrics.json")
    assert [one["folder"] for one in summary["runs"]] == names
    aucs = [read(run / name / "metrics.json")["test"]["auc"]["value"] for name in names]
    mean = sum(aucs) / 4
    assert summary["mean"]["auc"] == pytest.approx(mean)
    deviation = math.sqrt(sum((auc - mean) ** 2 for auc in aucs) / 3)
    assert summary["std"]["auc"] == pytest.approx(deviation)
    between = summary["interval"]["auc"]
    assert between["value"] == pytest.approx(mean) and between["low"] <= mean <= between["high"]
    assert between["low"] < between["high"]
    assert (between["n"], between["patients"], between["resamples"]) == (32, 16, RESAMPLES)
    assert set(summary["interval"]) == set(summary["mean"])
    rows = read_table(run / "predictions.csv")
    assert len(rows) == 2 * 16  # every slide tests once a seed
    assert {(row["fold"], row["seed"]) for row in rows} == {(f, s) for f in "01" for s in "01"}
    assert summary["pooled"]["auc"]["n"] == 32
    assert (run / "report.html").is_file() and (run / "fold0-seed0" / "report.html").is_file()
    assert [read(run / name / "run.json")["seed"] for name in names] == [0, 1, 0, 1]


@pytest.mark.parametrize("task", ["survival", "segmentation"])
def test_the_interval_of_the_mean_is_of_what_each_run_states(
    task: str, cohort: Path, tmp_path: Path
) -> None:
    run = train(cohort, tmp_path / "run", "seeds=[0,1]", "train.epochs=1", task=task)
    summary = read(run / "metrics.json")
    assert {k: one["value"] for k, one in summary["interval"].items()} == {
        k: value if value is None else pytest.approx(value) for k, value in summary["mean"].items()
    }


def test_seeds_differ_and_a_seed_repeats_itself(cohort: Path, tmp_path: Path) -> None:
    run = train(cohort, tmp_path / "run", "seeds=[0,1]")
    first, second = (run / f"fold0-seed{s}" / "predictions.csv" for s in (0, 1))
    assert first.read_bytes() != second.read_bytes()
    again = train(cohort, tmp_path / "again", "seeds=[1]")
    assert (again / "predictions.csv").read_bytes() == second.read_bytes()


# Going on


def test_what_is_finished_is_kept(cohort: Path, tmp_path: Path) -> None:
    run = train(cohort, tmp_path / "run", "seeds=[0,1]")
    written = {p: p.stat().st_mtime_ns for p in run.glob("fold*/**/*") if p.is_file()}
    told: list[str] = []
    config = load_config(write_config(cohort), ["seeds=[0,1]"])
    run_training(config, run, say=told.append)
    assert {p: p.stat().st_mtime_ns for p in run.glob("fold*/**/*") if p.is_file()} == written
    assert [line for line in told if "finished already" in line] == [
        "fold0-seed0 is finished already",
        "fold0-seed1 is finished already",
    ]


def test_another_config_in_the_same_folder_is_refused_by_the_keys_that_differ(
    cohort: Path, tmp_path: Path
) -> None:
    run = train(cohort, tmp_path / "run")
    with pytest.raises(
        DataError,
        match=r"run' is a run of another config: optimiser.lr was 0.01, is 0.5; train.epochs was "
        r"2, is 9. Give this one a folder of its own: -o .*run-2. To go on with that one: wsizoo ",
    ):
        train(cohort, run, "train.epochs=9", "optimiser.lr=0.5")


def test_a_folder_of_something_else_is_left_alone(cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"holds thesis.tex and is no run; give a new folder: -o"):
        train(cohort, tmp_path)


def test_a_damaged_record_is_said_to_be(cohort: Path, tmp_path: Path) -> None:
    run = train(cohort, tmp_path / "run")
    (run / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run.json' cannot be read"):
        train(cohort, run)
    (run / "run.json").write_text("[]")
    with pytest.raises(DataError, match=r"run.json' holds no names and values"):
        train(cohort, run)


def test_no_seeds_are_no_run(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"seeds is empty: nothing to train"):
        train(cohort, tmp_path / "run", "seeds=[]")


# What the config asks for


def test_the_choice_may_be_made_by_a_measure(cohort: Path, tmp_path: Path) -> None:
    run = train(cohort, tmp_path / "run", "selection.metric=auc")
    epochs = read_table(run / "epochs.csv")
    best = max(epochs, key=lambda row: float(row["val_auc"]))
    assert read(run / "run.json")["epoch"] == int(best["epoch"])
    with pytest.raises(
        SpecError, match=r"selection.metric is 'aucc', which classification lacks. Did you mean"
    ):
        train(cohort, tmp_path / "other", "selection.metric=aucc")


def test_the_choice_reads_and_shows_no_slide_twice(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass that gives the validation loss gives what is measured."""
    counts = {"read": 0, "shown": 0}
    read_one, forward = Samples._read, SlideModel.forward

    def count_read(self: Samples, index: int) -> Bag:
        counts["read"] += 1
        return read_one(self, index)

    def count_shown(self: SlideModel, bag: Bag) -> SlideOutput:
        counts["shown"] += 1
        return forward(self, bag)

    monkeypatch.setattr(Samples, "_read", count_read)
    monkeypatch.setattr(SlideModel, "forward", count_shown)
    train(cohort, tmp_path / "loss")
    by_loss = dict(counts)
    train(cohort, tmp_path / "auc", "selection.metric=auc")
    assert counts == {name: 2 * count for name, count in by_loss.items()}


def test_predicted_slides_are_read_ahead(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(cohort, tmp_path / "run")
    threads: set[str] = set()
    read_one = Samples._read

    def note_thread(self: Samples, index: int) -> Bag:
        threads.add(threading.current_thread().name.rpartition("_")[0])
        return read_one(self, index)

    monkeypatch.setattr(Samples, "_read", note_thread)
    evaluate_run(run, tmp_path / "again", ["train.workers=2"])
    assert threads == {"wsizoo-reading"}
    again, first = (tmp_path / "again" / "predictions.csv"), run / "predictions.csv"
    told = [row for row in read_table(first) if row["part"] == "test"]
    assert read_table(again) == told


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(
    ("task", "measure"),
    [
        ("classification", "auc"),
        ("survival", "c_index"),
        ("regression", "mae"),
        ("segmentation", "dice_pooled"),
    ],
)
def test_what_the_choice_is_made_by_is_what_is_measured_in_the_end(
    several: Path, tmp_path: Path, task: str, measure: str, size: int
) -> None:
    """Also where several slides are packed, and times are bins in training."""
    asked = [f"selection.metric={measure}", f"train.batch_size={size}", "train.workers=2"]
    run = train(several, tmp_path / "run", *asked, task=task)
    chosen = read_table(run / "epochs.csv")[read(run / "run.json")["epoch"] - 1]
    value = read(run / "metrics.json")["val"][measure]["value"]
    assert float(chosen[f"val_{measure}"]) == pytest.approx(value, rel=1e-5)


def test_smoothing_changes_the_loss(cohort: Path, tmp_path: Path) -> None:
    plain = train(cohort, tmp_path / "plain")
    smooth = train(cohort, tmp_path / "smooth", "train.label_smoothing=0.4")
    losses = [read_table(run / "epochs.csv")[0]["val_loss"] for run in (plain, smooth)]
    assert losses[0] != losses[1]
    with pytest.raises(SpecError, match=r"label_smoothing are of classification, this is survi"):
        train(cohort, tmp_path / "s", "train.label_smoothing=0.4", task="survival")


def test_class_weights_act_on_single_slides_and_packing_equals_accumulating(
    tmp_path: Path,
) -> None:
    write_cohort(tmp_path)
    table = tmp_path / "slides.csv"
    first = next(row["patient"] for row in read_table(table) if row["label"] == "malign")
    rows = [  # in training three malign slides to five benign ones
        {**row, "label": "benign"} if row["patient"] == first else row for row in read_table(table)
    ]
    write_table(table, rows)

    def found(name: str, *overrides: str) -> list[float]:
        sgd = ["optimiser={name: sgd, lr: 0.1}", "overrides=['aggregator.dropout=0.0']"]
        run = train(tmp_path, tmp_path / name, *sgd, *overrides)
        return [float(row["p_malign"]) for row in read_table(run / "predictions.csv")]

    weighted = "train.class_weights=inverse"
    plain, alone = found("plain"), found("alone", weighted)
    assert max(abs(a - b) for a, b in zip(plain, alone, strict=True)) > 1e-3
    packed = found("packed", weighted, "train.batch_size=4")
    added = found("added", weighted, "train.accumulate=4")
    assert packed == pytest.approx(added, rel=1e-5)


def test_the_coordinates_are_augmented_where_it_is_asked_for(cohort: Path, tmp_path: Path) -> None:
    drop = train(cohort, tmp_path / "drop", "augment={drop: 0.5}")
    plain = train(cohort, tmp_path / "plain")
    files = [(run / "predictions.csv").read_bytes() for run in (drop, plain)]
    assert files[0] != files[1]


def test_trained_weights_are_adapted(cohort: Path, tmp_path: Path) -> None:
    first = train(cohort, tmp_path / "first")
    run = train(cohort, tmp_path / "run", f"init={first / 'model'}", "train.epochs=1")
    assert read(run / "model" / "config.json")["training"]["adapted_from"] == "model"
    config = load_config(run / "config.yaml", ["init=hf:someone/model@0123"])
    read_again = read_cohort(config.data, "classification")
    (split,) = splits_of(config, read_again)
    told = training_facts(
        config, read_again, split, read(run / "run.json"), {"test": {}, "level": ""}
    )
    assert told["adapted_from"] == "hf:someone/model@0123"


def test_a_config_given_in_python_has_the_paths_of_the_current_folder(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = yaml.safe_load(write_config(cohort).read_text())
    monkeypatch.chdir(cohort)
    run = run_training(load_config(content), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert load_config(run / "config.yaml").data.table == str(cohort / "slides.csv")
    run_training(load_config(run / "config.yaml"), run)


def test_a_patient_in_two_parts_is_told_of(several: Path, tmp_path: Path) -> None:
    """Whoever publishes such a split is right to be told, and may know better."""
    rows = [f"s{i:02},{('train', 'test', 'val')[i % 3 if i < 12 else 0]}" for i in range(32)]
    split = tmp_path / "split.csv"
    split.write_text("\n".join(["slide,part", *rows]) + "\n")
    told: list[str] = []
    config = load_config(
        write_config(several), ["split.kind=file", f"split.file={split}", "train.epochs=1"]
    )
    run_training(config, tmp_path / "run", say=told.append)
    assert any(
        line.startswith("Warning: 6 patients are in two parts of fold 0, first 'P00'")
        for line in told
    )


def test_slides_that_were_left_out_are_told_of(cohort: Path, tmp_path: Path) -> None:
    table = tmp_path / "more.csv"
    lines = (cohort / "slides.csv").read_text().splitlines()
    more = [f"s{i},P{i},A,{label},3,1,0.5,train" for i, label in ((97, ""), (98, "benign"))]
    table.write_text("\n".join([*lines, *more, "s99,P99,A,benign,3,1,0.5,train"]) + "\n")
    told: list[str] = []
    overrides = [f"data.table={table}", "data.missing=drop", "train.epochs=1"]
    config = load_config(write_config(cohort), overrides)
    run_training(config, tmp_path / "run", say=told.append)
    (line,) = [line for line in told if line.startswith("Left out")]
    assert "Left out 3 slides:\n  1 have no label (column label): s97\n" in line
    assert "  2 have no feature file in " in line and line.endswith(": s98, s99")


def test_a_slide_with_nothing_to_find_has_no_dice(cohort: Path, tmp_path: Path) -> None:
    labels = tmp_path / "patches"
    shutil.copytree(cohort / "patches", labels)
    for file in labels.iterdir():
        if file.stem > "s04":
            file.write_text(file.read_text().replace("1", "0"))
    overrides = [f"data.instances={labels}", "overrides=['head.threshold=0.999']"]
    run = train(cohort, tmp_path / "run", *overrides, task="segmentation")
    rows = read_table(run / "predictions.csv")
    assert "" in {row["dice"] for row in rows}
    assert "without a positive patch" in (run / "report.html").read_text()
