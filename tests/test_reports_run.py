"""report.html of a run: what it says, that it needs nothing else, and what it refuses."""

import csv
import json
import re
from html.parser import HTMLParser

import pytest

from tests.run_folders import MEASURES, write_run, write_runs
from wsizoo.errors import DataError
from wsizoo.files import write_csv, write_json
from wsizoo.reports.run import write_report
from wsizoo.reports.slides import MOST

EVIL = '<script>alert(1)</script>&"'
FIVE = ("adenoma", "in situ", "invasive", "normal", "serrated lesion of the colon")
HEADINGS = {
    "classification": ["ROC and precision-recall", "Confusion matrix", "Calibration and scores"],
    "survival": ["Survival by predicted risk"],
    "regression": ["Predicted against true"],
    "segmentation": ["Dice per patient"],
}
VOID = {"meta", "img", "br", "line", "rect", "circle", "path"}


class Page(HTMLParser):
    """Elements, texts, headings and tables; fails on a tag that is closed out of turn."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.open, self.words, self.tables, self.headings = [], [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td"):
            self.tables[-1][-1].append("")
        if tag == "h2":
            self.headings.append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if {"th", "td"} & set(self.open):
            self.tables[-1][-1][-1] += data
        if "h2" in self.open:
            self.headings[-1] += data

    @property
    def text(self):
        return " ".join(self.words)

    def links(self):
        return [attrs["href"] for tag, attrs in self.elements if tag == "a"]

    def table_of(self, column):
        """The rows of the table whose head begins with a column."""
        head, *body = next(rows for rows in self.tables if rows[0][0] == column)
        return [dict(zip(head, row, strict=True)) for row in body]


def page(run):
    return Page(write_report(run))


@pytest.mark.parametrize("task", HEADINGS)
@pytest.mark.parametrize("several", [False, True])
def test_every_task_has_its_sections(tmp_path, task, several):
    found = page((write_runs if several else write_run)(tmp_path / "run", task, n=20))
    start = ["Results", "What was run", "Learning curves"]
    end = ["Limits", "Slides", "Configuration"]
    assert found.headings == [*start, *HEADINGS[task], *end]
    for told in ("abmil-uni", "526,000", "name uni, mpp 0.5", f"sha256 {'a' * 16}", "torch 2.9.0"):
        assert told in found.text


@pytest.mark.parametrize("task", HEADINGS)
def test_the_page_needs_nothing_outside_itself(tmp_path, task):
    found = page(write_run(tmp_path / "run", task, n=20))
    assert not [tag for tag, _ in found.elements if tag in ("script", "link", "iframe", "img")]
    for _, attrs in found.elements:
        assert not {name for name in attrs if name.startswith("on") or name == "src"}
    beside = [link for link in found.links() if not link.startswith("#")]
    assert beside == ["predictions.csv", "predictions_patients.csv"]
    assert all((tmp_path / "run" / link).is_file() for link in beside)
    policy = [a["content"] for t, a in found.elements if a.get("http-equiv")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_the_page_shows_no_path_of_the_computer(tmp_path):
    runs = write_runs(tmp_path / "lab" / "runs", n=3)
    private = tmp_path.parents[-1] / "home" / "someone" / "a secret=project"
    config = {
        "recipe": str(private / "mine.yaml"),
        "model": str(runs.parent / "toy.yaml"),
        "overrides": [f"aggregator.file={private / 'x.txt'}", "aggregator.dim=4"],
        "data": {
            "table": str(runs.parent / "slides.csv"),
            "features": str(private / "he " / "uni"),
        },
        "split": {"file": str(runs / "split.csv")},
        "init": "hf:someone/model@0123",
    }
    for folder in (runs, *runs.glob("fold*")):
        (folder / "config.yaml").write_text(json.dumps(config))
    evaluated = write_run(tmp_path / "lab" / "evaluated", n=3)
    told = json.loads((evaluated / "run.json").read_text())
    write_json(evaluated / "run.json", told | {"evaluated": str(private / "model")})
    for folder in (runs, runs / "fold0-seed1", evaluated):
        found = page(folder).text
        assert str(tmp_path) not in found and "someone/" not in found.replace("hf:someone/", "")
    assert "Evaluated .../model" in found
    found = page(runs).text
    for shown in (
        "Table ../slides.csv", "Features .../uni", "Recipe .../mine.yaml", "model: ../toy.yaml",
        "file: split.csv", "- aggregator.file=.../x.txt", "hf:someone/model@0123",
    ):  # fmt: skip
        assert shown in found, shown


def test_numbers_come_first_and_with_their_intervals(tmp_path):
    run = write_run(tmp_path / "run")
    measured = json.loads((run / "metrics.json").read_text())["test"]["auc"]
    found = page(run)
    rows = {row["Measure"]: row for row in found.table_of("Measure")}
    assert rows["AUC"]["Value"] == f"{measured['value']:.3f}"
    assert rows["AUC"]["Interval"] == f"{measured['low']:.3f} to {measured['high']:.3f}"
    assert rows["AUC"]["n"] == "60"
    assert (rows["AUC"]["Better"], rows["Brier score"]["Better"]) == ("higher", "lower")
    assert len(rows) == len(MEASURES["classification"])


def test_a_measure_that_is_not_defined_is_told_so(tmp_path):
    run = write_run(tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["test"]["auc"] |= {"value": None, "low": None, "high": None}
    write_json(run / "metrics.json", metrics)
    (row,) = [row for row in page(run).table_of("Measure") if row["Measure"] == "AUC"]
    assert (row["Value"], row["Interval"]) == ("n/a", "n/a")


def test_resamples_that_an_interval_lacks_are_told(tmp_path):
    run = write_run(tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    told = {"low": 0.5, "high": 0.75, "resamples": 2000}
    metrics["test"]["auc"] |= {**told, "undefined": 21}
    metrics["test"]["auprc"] |= {**told, "undefined": 20}
    write_json(run / "metrics.json", metrics)
    found = {row["Measure"]: row["Interval"] for row in page(run).table_of("Measure")}
    assert found["AUC"] == "0.500 to 0.750 (21 of 2000 resamples left out)"
    assert found["Area under precision-recall"] == "0.500 to 0.750"


def test_the_kept_epoch_is_marked_in_the_learning_curves(tmp_path):
    found = page(write_run(tmp_path / "run"))
    assert found.words.count("kept: epoch 7") == 2
    assert "Loss by epoch. The upright line is the epoch whose weights were kept." in found.text


def test_wrong_slides_come_first_the_surest_on_top_and_are_marked(tmp_path):
    run = write_run(tmp_path / "run")
    rows = page(run).table_of("Slide")
    with open(run / "predictions.csv", encoding="utf-8") as file:
        tested = [row for row in csv.DictReader(file) if row["part"] == "test"]
    wrong = [row for row in tested if row["label"] != row["predicted"]]
    wrong.sort(key=lambda row: (float(row[f"p_{row['label']}"]), row["slide"]))
    assert 0 < len(wrong) < len(tested) == len(rows)
    assert [row["Slide"] for row in rows[: len(wrong)]] == [row["slide"] for row in wrong]
    assert [row["Outcome"] for row in rows].count("wrong") == len(wrong)
    marked = re.findall("<strong>wrong</strong>", (run / "report.html").read_text())
    assert len(marked) == len(wrong)


@pytest.mark.parametrize(
    ("task", "column", "of"),
    [
        ("survival", "Risk", lambda value: -float(value)),
        ("regression", "Error", lambda value: -abs(float(value))),
        ("segmentation", "Dice", float),
    ],
)
def test_slides_of_other_tasks_are_sorted_by_what_matters(tmp_path, task, column, of):
    rows = page(write_run(tmp_path / "run", task)).table_of("Slide")
    values = [of(row[column]) for row in rows]
    assert len(values) == 66
    assert values == sorted(values)


def test_heatmaps_beside_the_run_are_linked_whatever_their_name(tmp_path):
    run = write_run(tmp_path / "run", n=3, slide="a: b#c?%")
    (run / "heatmaps").mkdir()
    for name in ("a: b#c?%-test-001a.html", "a: b#c?%-test-002a.png"):
        (run / "heatmaps" / name).write_text("a heatmap")
    links = [link for link in page(run).links() if link.startswith("heatmaps/")]
    assert sorted(links) == [
        "heatmaps/a%3A%20b%23c%3F%25-test-001a.html",
        "heatmaps/a%3A%20b%23c%3F%25-test-002a.png",
    ]


def test_a_name_with_a_path_links_to_nothing(tmp_path):
    (tmp_path / "x-test-001a.html").write_text("not of this run")
    run = write_run(tmp_path / "run", n=3, slide="../../x")
    (run / "heatmaps").mkdir()
    assert not [link for link in page(run).links() if "x-test" in link]


def test_a_large_cohort_is_cut_and_says_so(tmp_path):
    found = page(write_run(tmp_path / "run", n=400, parts=("test",)))
    assert len(found.table_of("Slide")) == MOST
    assert "440 slides of the reported part" in found.text
    assert f"The first {MOST} stand here." in found.text


def test_names_from_tables_stay_text(tmp_path):
    run = write_run(tmp_path / "run", classes=("normal", EVIL), slide=EVIL, n=12)
    found = page(run)
    assert "script" not in {tag for tag, _ in found.elements}
    assert EVIL in found.text
    assert page(write_runs(tmp_path / "runs", classes=("normal", EVIL), n=12)).tables


def test_five_classes_have_a_curve_each(tmp_path):
    found = page(write_run(tmp_path / "run", classes=FIVE, n=100))
    for name in FIVE:
        assert any(re.fullmatch(rf"AUC 0\.\d+, {name}", word) for word in found.words)
        assert any(re.fullmatch(rf"AP 0\.\d+, {name}", word) for word in found.words)
        assert any(word.startswith(f"Label {name}, n ") for word in found.words)


def test_what_differs_between_runs_is_told_from_the_least_to_the_most(tmp_path):
    runs = write_runs(tmp_path / "runs", n=6)
    for i, cell in enumerate(sorted(runs.glob("fold*"))):
        facts = json.loads((cell / "run.json").read_text())
        facts |= {"slides": {"train": 20, "val": 6 + i % 2, "test": 1014}, "peak_mb": 400.0 - i}
        facts |= {"composition": ["uni", "abmil", "cox"]}
        (cell / "run.json").write_text(json.dumps(facts))
    told = page(runs).text
    assert "20 train, 6 to 7 val, 1014 test" in told
    assert re.search(r"Peak memory 39\d to 400 MiB", told)
    assert "uni -> abmil -> cox" in told


def test_several_runs_have_mean_deviation_and_a_link_each(tmp_path):
    runs = write_runs(tmp_path / "runs")
    for cell in ("fold0-seed0", "fold0-seed1", "fold1-seed0", "fold1-seed1"):
        write_report(runs / cell)
    found = page(runs)
    overall = json.loads((runs / "metrics.json").read_text())
    rows = {row["Measure"]: row for row in found.table_of("Measure")}
    mean, std = overall["mean"]["auc"], overall["std"]["auc"]
    assert rows["AUC"]["Mean ± std"] == f"{mean:.3f} ± {std:.3f}"
    assert rows["AUC"]["Interval of the mean"] == f"{mean - 0.02:.3f} to {mean + 0.02:.3f}"
    plotted = f"Mean of 4 runs {mean:.3f} ({mean - 0.02:.3f} to {mean + 0.02:.3f})"
    assert plotted in (runs / "report.html").read_text(), "whiskers are intervals"
    assert [row["Run"] for row in found.table_of("Run")] == overall["runs"]
    for cell in overall["runs"]:
        assert f"{cell}/report.html" in found.links()
        assert any(re.fullmatch(rf"AUC 0\.\d+, {cell}", word) for word in found.words)
    assert "Classification, test part: 60 patients, 4 runs" in found.words
    assert len({row["Run"] for row in found.table_of("Slide")}) == 4


def test_validation_in_place_of_a_test_is_not_passed_off_as_one(tmp_path):
    found = page(write_run(tmp_path / "run", parts=("val",)))
    assert "There is no test part: these numbers are of the validation part" in found.text
    assert "Classification, validation part: 60 patients" in found.words


def test_an_evaluation_has_no_learning_curves_and_says_so(tmp_path):
    run = write_run(tmp_path / "run", parts=("test",))
    for name in ("epochs.csv", "config.yaml"):
        (run / name).unlink()
    found = page(run)
    assert "here a model was evaluated, not trained" in found.text
    assert "Configuration" not in found.headings


def test_measures_of_slides_are_drawn_of_slides(tmp_path):
    run = write_run(tmp_path / "run", level="slide")
    (run / "predictions_patients.csv").unlink()
    assert "Classification, test part: 66 slides" in page(run).words


def test_labels_of_one_class_have_nothing_to_rank(tmp_path):
    run = write_run(tmp_path / "run", n=8)
    change(run, lambda row: row | {"label": "tumour"})
    assert "All labels here are of one class: there is nothing to rank." in page(run).text


def test_equal_risks_are_not_split(tmp_path):
    run = write_run(tmp_path / "run", "survival", n=8)
    change(run, lambda row: row | {"risk": 1.5})
    found = page(run)
    assert "All risks are equal: there are no two groups to compare." in found.text
    assert "Log-rank" not in found.text


def test_patients_of_several_runs_are_not_tested_as_if_they_were_others(tmp_path):
    runs = write_runs(tmp_path / "runs", "survival", n=12)
    text = page(runs).text
    assert "Log-rank p" not in text
    assert "a log-rank test of them would find what is not there" in text
    alone = page(runs / "fold0-seed0").text
    assert "Log-rank p" in alone and "would find what is not there" not in alone


def test_without_events_there_is_no_test(tmp_path):
    run = write_run(tmp_path / "run", "survival", n=8)
    change(run, lambda row: row | {"event": 0})
    assert "Log-rank p is not defined: no event was seen." in page(run).text


def test_few_patients_and_rare_classes_are_told(tmp_path):
    small = page(write_run(tmp_path / "small", n=12)).text
    assert "12 patients were tested: intervals are wide" in small
    assert "Fewer than 10 patients have the label" in small
    large = page(write_run(tmp_path / "large", n=120)).text
    assert "intervals are wide" not in large
    assert "Fewer than" not in large


def test_a_measure_without_an_interval_is_not_passed_off_as_certain(tmp_path):
    run = write_run(tmp_path / "run")
    assert "without an interval" not in page(run).text
    metrics = json.loads((run / "metrics.json").read_text())
    alike = {"value": 1.0, "low": None, "high": None, "method": "all resamples alike"}
    metrics["test"]["macro_f1"] |= alike
    metrics["test"]["accuracy"] |= {
        "value": 1.0,
        "low": 0.9,
        "high": 1.0,
        "method": "Clopper-Pearson",
    }
    write_json(run / "metrics.json", metrics)
    text = page(run).text
    assert "Measures without an interval (all resamples alike) are not certain" in text
    assert "n/a (all resamples alike)" in text
    assert "0.900 to 1.000 (Clopper-Pearson)" in text


def change(run, edit):
    """Edit every row of both tables of predictions."""
    for name in ("predictions.csv", "predictions_patients.csv"):
        with open(run / name, newline="", encoding="utf-8") as file:
            rows = [edit(row) for row in csv.DictReader(file)]
        write_csv(run / name, rows, list(rows[0]))


@pytest.mark.parametrize(
    "name", ["run.json", "metrics.json", "predictions.csv", "predictions_patients.csv"]
)
def test_a_missing_or_empty_file_is_named_with_what_to_type(tmp_path, name):
    run = write_run(tmp_path / "run", n=3)
    (run / name).write_text("\n")
    with pytest.raises(DataError, match=rf"{name}' is empty.*wsizoo train .*config.yaml -o .*run"):
        write_report(run)
    (run / name).unlink()
    with pytest.raises(DataError, match=rf"no {name} that can be read in .*run'.*wsizoo train"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_an_unfinished_run_of_several_is_gone_on_with_as_a_whole(tmp_path):
    runs = write_runs(tmp_path / "runs", n=3)
    (runs / "fold1-seed0" / "metrics.json").unlink()
    with pytest.raises(DataError, match=r"no metrics.json .*fold1-seed0'.* -o .*runs$"):
        write_report(runs)


def test_the_folder_of_a_benchmark_is_told_apart(tmp_path):
    write_run(tmp_path / "cells" / "abmil-fold0-seed0-1234", n=3)
    again = rf"folder of a benchmark, .*wsizoo benchmark CONFIG -o {tmp_path} .*benchmark.html anew"
    with pytest.raises(DataError, match=again):
        write_report(tmp_path)
    assert write_report(tmp_path / "cells" / "abmil-fold0-seed0-1234").is_file()


def test_a_folder_without_a_config_names_no_config(tmp_path):
    with pytest.raises(DataError, match=r"expected '.*' to be what -o of wsizoo train or") as told:
        write_report(tmp_path)
    assert "config.yaml" not in str(told.value)


def broken(run, name, old, new):
    text = (run / name).read_text(encoding="utf-8")
    assert old in text
    (run / name).write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("run.json", "{", "{{", "run.json' is damaged"),
        ("run.json", '"classification"', '"ranking"', "states the task 'ranking', expected one of"),
        ("predictions.csv", "predicted", "guess", "has no column predicted; it has slide, patient"),
        ("predictions_patients.csv", "normal", "odd", "label is 'odd', expected one of the run's"),
        ("config.yaml", "model: ", "model: [", "config.yaml' is damaged"),
        ("metrics.json", '"test"', '"rest"', "has no measures of the test part"),
    ],
)
def test_damage_is_named(tmp_path, name, old, new, message):
    run = write_run(tmp_path / "run", n=12)
    broken(run, name, old, new)
    with pytest.raises(DataError, match=message):
        write_report(run)


def test_rows_without_numbers_are_named(tmp_path):
    run = write_run(tmp_path / "run", "regression", n=3)
    change(run, lambda row: row | {"predicted": "nan"})
    with pytest.raises(DataError, match="of 'P000-test': predicted is nan, expected a finite"):
        write_report(run)


def test_a_table_of_heads_only_is_refused(tmp_path):
    run = write_run(tmp_path / "run", n=3)
    (run / "predictions.csv").write_text("slide,patient,part,label,predicted\n")
    with pytest.raises(DataError, match=r"predictions.csv' holds no row"):
        write_report(run)


def test_predictions_of_the_training_part_alone_are_no_result(tmp_path):
    run = write_run(tmp_path / "run", n=3, parts=("train",))
    with pytest.raises(DataError, match="rows of train only: a report needs a test part"):
        write_report(run)


def test_json_that_is_no_object_is_refused(tmp_path):
    run = write_run(tmp_path / "run", n=3)
    (run / "metrics.json").write_text("[]")
    with pytest.raises(DataError, match=r"metrics.json' holds no JSON object"):
        write_report(run)


def test_runs_of_two_tasks_share_no_report(tmp_path):
    runs = write_runs(tmp_path / "runs", n=5)
    write_run(runs / "fold2-seed0", "regression", n=5)
    with pytest.raises(DataError, match="fold2-seed0' is of another task, other classes"):
        write_report(runs)


def test_a_folder_that_is_not_there_is_no_run(tmp_path):
    with pytest.raises(DataError, match=r"no run at '.*nowhere', expected the folder that"):
        write_report(tmp_path / "nowhere")
