"""wsizoo diagnose selector: what is measured on a trained run, what is written, what is refused."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.soft_selectors import K, Toy, registry, write_needles
from tests.toy_cohort import read_table, write_config, write_table
from wsizoo.diagnosis.selector import diagnose_selector, numbers_of
from wsizoo.diagnosis.selector_ablation import without
from wsizoo.diagnosis.selector_answers import DRAWS, answer
from wsizoo.diagnosis.selector_probes import probe_patches
from wsizoo.diagnosis.selector_run import OpenRun, open_run, runs_in
from wsizoo.errors import DataError
from wsizoo.measures.names import MAIN
from wsizoo.reports.run import write_report
from wsizoo.reports.selector import COLUMNS, WORDS, table_rows, write_page
from wsizoo.train.config import load_config
from wsizoo.train.evaluation import evaluate_run
from wsizoo.train.run import run_training

SOFT = "{name: toy-soft, k: 4}"


def train(
    folder: Path,
    *overrides: str,
    selector: str = SOFT,
    task: str = "classification",
    epochs: int = 6,
    name: str = "run",
) -> Path:
    """A run on the folder's slides."""
    given = [f'overrides=["selector={selector}"]', f"train.epochs={epochs}", *overrides]
    config = load_config(write_config(folder, task), given)
    return run_training(config, folder / name, registry=registry())


def diagnose(runs: Any, out: Path | None = None, **asked: Any) -> dict[str, Any]:
    asked = {"probe_slides": 0, "maps": 0, **asked}
    return diagnose_selector(runs, out, registry=registry(), **asked)


def nothing(what: str, done: int, total: int) -> None: ...


def opened(run: Path, part: str | None = None) -> OpenRun:
    return open_run(run, part, "cpu", registry())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with slides and a run on them, diagnosed with everything."""
    folder = tmp_path_factory.mktemp("needles")
    torch.set_num_threads(1)
    write_needles(folder)
    run = train(folder)
    diagnose(run, probe_slides=24, maps=2, without_parts=True)
    return folder


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be changed."""
    shutil.copytree(source / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def told(source: Path) -> dict[str, Any]:
    text = (source / "run" / "diagnosis" / "selector.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)["runs"][0]
    return found


def test_hard_and_soft_and_random_and_full_answers_are_measured(
    source: Path, told: dict[str, Any]
) -> None:
    metrics = json.loads((source / "run" / "metrics.json").read_text(encoding="utf-8"))["test"]
    assert list(told["answers"]) == ["soft", "hard", "random", "full"]
    for measure in ("accuracy", "auc"):
        assert told["answers"]["hard"][measure]["value"] == metrics[measure]["value"]
    for choice, one in told["answers"].items():
        draws = one["accuracy"]["draws"]
        assert len(draws) == (DRAWS if choice in ("soft", "random") else 1)
        assert one["accuracy"]["value"] == pytest.approx(sum(draws) / len(draws))
    spread = told["answers"]["random"]["accuracy"]["sd"]
    assert spread == pytest.approx(
        torch.tensor(told["answers"]["random"]["accuracy"]["draws"]).double().std().item()
    )
    gap = told["differences"]["hard - soft"]
    hard, soft = (told["answers"][c]["accuracy"]["value"] for c in ("hard", "soft"))
    assert gap["value"] == pytest.approx(hard - soft) and gap["low"] <= gap["value"] <= gap["high"]
    assert (told["rows"], told["patients"], told["part"]) == (8, 8, "test")


def test_all_that_was_found_stands_in_three_files(source: Path, told: dict[str, Any]) -> None:
    folder = source / "run" / "diagnosis"
    with open(folder / "selector.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    values = {(row["what"], row["measure"]): row["value"] for row in rows}
    assert float(values["gates", "overlap"]) == told["gates"]["overlap"]
    assert float(values["hard", "accuracy"]) == told["answers"]["hard"]["accuracy"]["value"]
    assert {"probe on dropped", "probe on all gates 0", "soft, without denoiser"} <= {
        row["what"] for row in rows
    }
    page = (folder / "selector.html").read_text(encoding="utf-8")
    headline = told["verdict"]["headline"]
    assert f"{headline[:1].upper()}{headline[1:]}." in page
    assert page.count("<img") == 2 and WORDS.split("\n")[0] in page
    assert len(told["maps"]) == 2 and all((folder / one["file"]).is_file() for one in told["maps"])
    assert [one["slide"] for one in told["slides"]] == [f"s{i}" for i in range(16, 24)]


def test_the_soft_path_has_the_denoiser_of_the_checkpoint(run: Path) -> None:
    """Which no published weights hold: of it alone the soft answers change."""
    before = diagnose(run)["runs"][0]["answers"]
    file = run / "checkpoints" / "best.ckpt"
    content = torch.load(file, weights_only=True)
    assert content["model"]["selector.denoise.weight"].abs().max() > 0, "it has learned"
    content["model"]["selector.denoise.weight"].fill_(3.0)
    torch.save(content, file)
    after = diagnose(run)["runs"][0]["answers"]
    assert after["soft"] != before["soft"]
    assert {k: v for k, v in after.items() if k != "soft"} == {
        k: v for k, v in before.items() if k != "soft"
    }


def test_twice_is_the_same(run: Path, tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        diagnose(run, tmp_path / name, probe_slides=12)
        files.append((tmp_path / name / "selector.json").read_text(encoding="utf-8"))
    assert files[0] == files[1]


def test_another_part_is_evaluated_on_request(run: Path, tmp_path: Path) -> None:
    (one,) = diagnose(run, tmp_path / "out", part="val")["runs"]
    assert (one["part"], one["rows"]) == ("val", 4)


def test_the_report_of_the_run_has_a_section(source: Path, run: Path) -> None:
    write_report(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Selector: soft to hard" in page and 'href="diagnosis/selector.html"' in page
    shutil.rmtree(run / "diagnosis")
    write_report(run)
    assert "soft to hard" not in (run / "report.html").read_text(encoding="utf-8")


def test_a_damaged_diagnosis_is_named_by_the_report(run: Path) -> None:
    (run / "diagnosis" / "selector.json").write_text('{"runs": [{}]}')
    with pytest.raises(
        DataError, match=r"selector.json' cannot be read .*wsizoo diagnose selector"
    ):
        write_report(run)


def test_a_part_is_left_out_by_training_again_and_what_was_trained_stays(
    source: Path, run: Path, told: dict[str, Any]
) -> None:
    (one,) = told["ablations"]
    assert (one["name"], one["override"]) == ("without denoiser", "selector.denoiser=false")
    config = load_config(run / "diagnosis" / one["folder"] / "config.yaml")
    assert config.overrides[-1] == "selector.denoiser=false" and config.seeds == [0]
    assert 0 < one["overlap"] <= 1 and one["soft"]["n"] == 8
    said: list[str] = []
    again = diagnose(run, say=said.append, without_parts=True)["runs"][0]["ablations"]
    assert again == [one] and "without-denoiser is finished already" in said


def test_an_interruption_leaves_no_half_of_a_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("probe on dropped"):
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        diagnose(run, out, probe_slides=12, maps=1, tick=stop)
    assert list(out.iterdir()) == []
    diagnose(run, out, probe_slides=12, maps=1)
    assert {path.name for path in out.iterdir()} == {
        "heatmaps", "selector.csv", "selector.json", "selector.html",
    }  # fmt: skip


def test_without_a_checkpoint_the_rest_is_measured_and_told(run: Path) -> None:
    (run / "checkpoints" / "best.ckpt").unlink()
    said: list[str] = []
    (one,) = diagnose(run, say=said.append, probe_slides=12)["runs"]
    assert "best.ckpt' is not there" in one["missing"] and f"-o {run}-2" in said[0]
    assert list(one["answers"]) == ["hard", "random", "full"]
    assert list(one["differences"]) == ["hard - random", "hard - full"]
    assert one["verdict"]["headline"].startswith("not measured")
    assert one["probes"]["notes"][0].startswith("all gates 0: not tried")
    assert "dropped" in one["probes"]["measured"]
    page = (run / "diagnosis" / "selector.html").read_text(encoding="utf-8")
    assert "is not there" in page and "wsizoo train run/config.yaml -o run-2" in page
    assert str(run.parent) not in page, "a page may be published"


def test_a_checkpoint_of_another_training_is_refused(run: Path) -> None:
    file = run / "checkpoints" / "best.ckpt"
    content = torch.load(file, weights_only=True)
    content["model"]["selector.line.weight"] += 1
    torch.save(content, file)
    with pytest.raises(DataError, match=r"best.ckpt' holds other weights than '.*model'"):
        diagnose(run)
    del content["model"]["selector.line.weight"]
    torch.save(content, file)
    with pytest.raises(DataError, match=r"best.ckpt' does not fit the model of"):
        diagnose(run)


@pytest.mark.parametrize("ema", ["null", "0.5"])
def test_the_last_weights_are_taken_where_the_run_took_them(
    source: Path, tmp_path: Path, ema: str
) -> None:
    write_needles(tmp_path)
    made = train(tmp_path, "selection.checkpoint=last", f"train.ema={ema}", epochs=3)
    (one,) = diagnose(made)["runs"]
    metrics = json.loads((made / "metrics.json").read_text(encoding="utf-8"))["test"]
    assert not one["missing"]
    assert one["answers"]["hard"]["auc"]["value"] == metrics["auc"]["value"]
    assert one["temperature"] == pytest.approx(0.1), "the end of the schedule"


def test_weights_of_an_early_step_are_told(source: Path, run: Path) -> None:
    file = run / "checkpoints" / "best.ckpt"
    content = torch.load(file, weights_only=True)
    content["model"]["selector.step"].fill_(40)  # of 72: early in the soft phase
    torch.save(content, file)
    (one,) = diagnose(run)["runs"]
    assert one["temperature"] > 1
    page = (run / "diagnosis" / "selector.html").read_text(encoding="utf-8")
    assert "selection.checkpoint=last" in page


def test_what_cannot_be_diagnosed_says_why(source: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no run at '.*gone'"):
        diagnose(tmp_path / "gone")
    with pytest.raises(DataError, match=r"is no run: it holds no config.yaml"):
        diagnose(source / "features")
    evaluate_run(source / "run", tmp_path / "val", part="val", registry=registry())
    with pytest.raises(DataError, match=r"is an evaluation or prediction: it holds no config.yaml"):
        diagnose(tmp_path / "val")
    with pytest.raises(DataError, match=r"2 runs have no folder in common: .*-o OUT"):
        diagnose([source / "run", run])
    with pytest.raises(DataError, match=r"two runs are called 'run', .* give each run once, or"):
        diagnose([source / "run", run], tmp_path / "out")
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps({**record, "state": "running"}))
    with pytest.raises(DataError, match=r"is not finished. To go on: wsizoo train"):
        diagnose(run)


@pytest.mark.parametrize(
    ("selector", "told"),
    [
        ("null", r"'abmil\S+', has no selector: .*selector=sparselearn"),
        ("toy-hard", r"the selector 'toy-hard' of '.*' learns nothing softly"),
    ],
)
def test_a_model_without_a_selector_that_learns_softly_is_refused(
    tmp_path: Path, selector: str, told: str
) -> None:
    write_needles(tmp_path, slides=12)
    made = train(tmp_path, selector=selector, epochs=1)
    with pytest.raises(DataError, match=told):
        diagnose(made)


def test_a_run_that_kept_no_slides_to_evaluate_is_refused(tmp_path: Path) -> None:
    write_needles(tmp_path, slides=12)
    rows = [{**row, "part": "train"} for row in read_table(tmp_path / "slides.csv")]
    write_table(tmp_path / "slides.csv", rows)
    last = "selection.checkpoint=last", "split.val_fraction=0.0"
    made = train(tmp_path, *last, epochs=1)
    with pytest.raises(DataError, match=r"kept no slides to evaluate \(0 in its val part and 0"):
        diagnose(made)
    with pytest.raises(DataError, match=r"kept no slides to evaluate"):
        diagnose(made, part="val")


def test_data_that_changed_since_is_refused(tmp_path: Path) -> None:
    write_needles(tmp_path, slides=12)
    made = train(tmp_path, epochs=1)
    rows = read_table(tmp_path / "slides.csv")
    rows[0]["label"] = "malign"
    write_table(tmp_path / "slides.csv", rows)
    with pytest.raises(DataError, match="was begun with other data: slides, patients or labels"):
        diagnose(made)


@pytest.mark.parametrize("kept", [1, 4])
def test_one_slide_or_one_class_is_measured_as_far_as_it_goes(
    source: Path, tmp_path: Path, kept: int
) -> None:
    """Of one class there is no AUC; of one slide an interval says nothing, and the verdict so."""
    whole = opened(source / "run")
    rows = [i for i in whole.split.test if whole.cohort.records[i].target["label"] == 0]
    run = dataclasses.replace(whole, split=dataclasses.replace(whole.split, test=rows[:kept]))
    probed = probe_patches(run, 12, registry(), nothing)
    one = numbers_of(run, answer(run, nothing), probed)
    assert one["rows"] == kept and one["answers"]["hard"]["auc"]["value"] is None
    assert one["probes"]["chance"] == 1.0 and one["probes"]["left"] is None
    gap = one["differences"]["hard - soft"]
    assert gap["low"] is not None
    if kept == 1:
        assert any("all resamples of 1 slides" in text for text in one["verdict"]["told"])
    told = {"runs": [{**one, "ablations": [], "maps": []}], "alike": None}
    write_page(told, tmp_path)
    page = (tmp_path / "selector.html").read_text(encoding="utf-8")
    assert "n/a" in page and {row["value"] for row in table_rows(told)} >= {None}


def test_a_measure_that_one_slide_does_not_define_is_not_decided_by(tmp_path: Path) -> None:
    write_needles(tmp_path, slides=13)
    rows = read_table(tmp_path / "slides.csv")
    tested = next(row for row in rows if row["part"] == "test")
    write_table(tmp_path / "slides.csv", [row for row in rows if row["part"] != "test"] + [tested])
    made = train(tmp_path, task="regression", epochs=1)
    (one,) = diagnose(made, probe_slides=12)["runs"]
    assert one["answers"]["hard"]["r2"]["value"] is None
    assert one["verdict"]["headline"] == "not measured"
    assert (made / "diagnosis" / "selector.html").is_file()


def test_parts_that_changed_since_are_refused(run: Path) -> None:
    rows = (run / "split.csv").read_text(encoding="utf-8")
    (run / "split.csv").write_text(rows.replace("val", "test"), encoding="utf-8")
    with pytest.raises(DataError, match="the parts of the split changed since"):
        diagnose(run)


def test_slides_with_no_more_patches_than_are_kept_are_told(tmp_path: Path) -> None:
    write_needles(tmp_path, patches=K)
    made = train(tmp_path, epochs=2)
    (one,) = diagnose(made, probe_slides=12, maps=1)["runs"]
    assert one["gates"]["slides_kept_whole"] == 8 and one["gates"]["overlap"] == 1.0
    assert one["gates"]["entropy"] == 0.0 and one["gates"]["effective"] == pytest.approx(K)
    assert list(one["probes"]["measured"]) == ["full", "kept", "all gates 0"]
    assert any(note.startswith("dropped: not tried") for note in one["probes"]["notes"])
    page = (made / "diagnosis" / "selector.html").read_text(encoding="utf-8")
    assert "8 of 8 slides have no more patches than are kept" in page


@pytest.mark.parametrize("task", ["survival", "regression"])
def test_other_tasks_are_measured_by_their_own_measure(tmp_path: Path, task: str) -> None:
    write_needles(tmp_path)
    (one,) = diagnose(train(tmp_path, task=task, epochs=2), probe_slides=12)["runs"]
    assert one["measures"] == [MAIN[task]]
    assert set(one["probes"]["measured"]) == {
        "full", "kept", "dropped", "random dropped", "all gates 0",
    }  # fmt: skip
    assert one["differences"]["hard - soft"]["value"] is not None


def test_labels_of_patches_are_refused(tmp_path: Path) -> None:
    write_needles(tmp_path, slides=12)
    made = train(tmp_path, task="segmentation", epochs=1)
    with pytest.raises(DataError, match=r"is of segmentation: .* takes runs of classification"):
        diagnose(made)


def test_a_head_that_compares_slides_has_no_probes(tmp_path: Path) -> None:
    write_needles(tmp_path)
    made = train(
        tmp_path, "train.batch_size=12", task="survival", epochs=1, selector=f'{SOFT}", "head=cox'
    )
    (one,) = diagnose(made, probe_slides=12)["runs"]
    assert one["probes"]["notes"] == ["no probes: this head learns nothing of one slide a step"]
    assert (made / "diagnosis" / "selector.html").is_file()


def test_features_without_places_have_no_map(tmp_path: Path) -> None:
    write_needles(tmp_path, slides=12)
    for file in (tmp_path / "features").glob("*.h5"):
        torch.save(torch.randn(9, 8), file.with_suffix(".pt"))
        file.unlink()
    made = train(tmp_path, "data.encoder=made-up", "data.format=pt", epochs=1)
    said: list[str] = []
    (one,) = diagnose(made, say=said.append, maps=1)["runs"]
    assert one["maps"] == [] and "does not say where its patches lie" in "".join(said)


def test_several_seeds_tell_how_alike_their_kept_patches_are(tmp_path: Path) -> None:
    write_needles(tmp_path)
    runs = train(tmp_path, "seeds=[0,1]")
    assert [path.name for path in runs_in([runs])] == ["fold0-seed0", "fold0-seed1"]
    told = diagnose(runs, maps=1)
    alike = told["alike"]
    assert (alike["runs"], alike["slides"]) == (2, 8)
    assert alike["chance"] == pytest.approx((16 / 30) / (8 - 16 / 30))
    assert alike["chance"] < alike["jaccard"] <= 1, "both look for the same needles"
    assert [one["maps"][0]["file"].split("/")[0] for one in told["runs"]] == [
        "fold0-seed0", "fold0-seed1",
    ]  # fmt: skip
    page = (runs / "diagnosis" / "selector.html").read_text(encoding="utf-8")
    assert "Do several runs keep the same patches?" in page and ">Verdicts</h2>" in page
    write_report(runs)
    assert "Selector: soft to hard" in (runs / "report.html").read_text(encoding="utf-8")


def test_a_fold_is_trained_again_on_its_own_parts(tmp_path: Path) -> None:
    write_needles(tmp_path)
    folds = "split.kind=kfold", "split.folds=2", "split.val_fraction=0.4"
    runs = train(tmp_path, *folds, "seeds=[3]", epochs=1)
    run = opened(runs / "fold1-seed3")
    config = without(run, "selector.denoiser=false")
    assert (config.split.kind, config.seeds) == ("file", [3])
    assert config.split.file == str(runs / "fold1-seed3" / "split.csv")
    (one,) = diagnose(runs / "fold1-seed3", without_parts=True)["runs"]
    assert one["ablations"][0]["hard"]["n"] == one["rows"] == 12


def test_a_patient_counts_once(tmp_path: Path) -> None:
    write_needles(tmp_path)
    rows = read_table(tmp_path / "slides.csv")
    tested = [row for row in rows if row["part"] == "test"]
    for row in tested:
        row["patient"] = f"P-{row['label']}-{int(row['slide'][1:]) // 4}"
    write_table(tmp_path / "slides.csv", rows)
    each = train(tmp_path, epochs=1, name="each")
    (one,) = diagnose(each)["runs"]
    assert (one["level"], one["rows"], one["patients"]) == ("slide", 8, 4)
    means = train(tmp_path, "data.patient_slides=late_mean", epochs=1, name="means")
    (one,) = diagnose(means)["runs"]
    assert (one["level"], one["rows"], one["patients"]) == ("patient", 4, 4)


def test_only_the_hard_path_is_what_the_run_predicts(source: Path) -> None:
    """Random patches are as many as are kept, and not the same ones each time."""
    found = answer(opened(source / "run"), nothing)
    predicted = [r for r in read_table(source / "run" / "predictions.csv") if r["part"] == "test"]
    hard = {row["slide"]: row["p_malign"] for row in found.rows["hard"][0]}
    assert hard == {row["slide"]: float(row["p_malign"]) for row in predicted}
    draws = [[row["p_malign"] for row in rows] for rows in found.rows["random"]]
    assert len({tuple(draw) for draw in draws}) == DRAWS
    assert len({tuple(r["p_malign"] for r in rows) for rows in found.rows["soft"]}) == DRAWS


def test_a_selector_that_names_no_parts_says_so(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toy, "ablations", {})
    said: list[str] = []
    (one,) = diagnose(run, tmp_path / "out", say=said.append, without_parts=True)["runs"]
    assert one["ablations"] == [] and any("names no parts to go without" in text for text in said)
