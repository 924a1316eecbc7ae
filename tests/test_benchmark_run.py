"""wsizoo.benchmark.run: a matrix of runs, kept by content; one failure never stops the others."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import wsizoo
from tests.benchmark_cells import calls, die_for_max, fail_for_max, pretend
from wsizoo.bag import Bag
from wsizoo.benchmark import keys as benchmark_keys
from wsizoo.benchmark.compare import FACTS
from wsizoo.benchmark.keys import content_key
from wsizoo.benchmark.plan import read_benchmark
from wsizoo.benchmark.run import Benchmark, run_benchmark
from wsizoo.cli import cli
from wsizoo.errors import DataError, NotFoundError, SpecError
from wsizoo.fingerprint import Fingerprint
from wsizoo.registry import default
from wsizoo.slides.store import write_bag
from wsizoo.train.config import RunConfig, load_config, to_yaml

CORE = Path(benchmark_keys.__file__).parent.parent
SLIDES = 16
MAX = 'aggregator={"name": "max", "dim": 512}'  # as max-uni has it
OWN_MODEL = """
summary: mean
licence: Apache-2.0
source: test
encoder: handcrafted-he
aggregator: {name: mean, dim: 16}
head: {name: classification}
"""


def write_features(folder: Path, encoder: str, dim: int, grid: bool = True) -> None:
    """A feature file a slide; slides of odd number have features that are larger by 1."""
    for i in range(SLIDES):
        generator = torch.Generator().manual_seed(i)
        features = torch.randn(12, dim, generator=generator) + i % 2
        coords = torch.stack([torch.arange(12) % 4, torch.arange(12) // 4], 1) * 448
        made = Fingerprint(encoder, mpp=0.5, patch_size=224)
        where = {"coords": coords, "spacing": 448.0, "footprint": 448.0, "mpp": 0.25}
        bag = Bag(features, **(where if grid else {}), encoder=made, slide_id=f"S{i}")
        write_bag(bag, folder / f"S{i}.h5")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two feature sets and a table."""
    folder = tmp_path_factory.mktemp("data")
    write_features(folder / "he", "handcrafted-he", 208)
    write_features(folder / "small", "tiny-net", 8)
    lines = [f"S{i},{('normal', 'tumour')[i % 2]}" for i in range(SLIDES)]
    (folder / "slides.csv").write_text("\n".join(["slide,label", *lines]) + "\n")
    return folder


def content(source: Path, **more: object) -> dict[str, object]:
    return {
        "model": "abmil-demo",
        "data": {"table": str(source / "slides.csv")},
        "features": {"he": str(source / "he")},
        "models": ["abmil", "max"],
        "split": {"fractions": [0.25, 0.25, 0.5]},
        "train": {"epochs": 2},
        "seeds": [0, 1],
        **more,
    }


def run(source: Path, out: Path, *, run_one=pretend, **more: object) -> Benchmark:
    given = {k: more.pop(k) for k in list(more) if k in ("jobs", "models", "engine", "overrides")}
    return run_benchmark(content(source, **more), out, run_one=run_one, **given)


def states(benchmark: Benchmark) -> list[str]:
    return [outcome.state for outcome in benchmark.outcomes]


def table(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def test_small_slides_train_and_each_repeat_deals_the_large_ones_anew(
    data: Path, tmp_path: Path
) -> None:
    made = Fingerprint("handcrafted-he", mpp=0.5, patch_size=224)
    sizes = {f"S{i}": 3 + (7 * i) % SLIDES for i in range(SLIDES)}
    for name, n in sizes.items():
        bag = Bag(torch.zeros(n, 208), encoder=made, slide_id=name)
        write_bag(bag, tmp_path / "sized" / f"{name}.h5")
    split = {"kind": "extrapolation", "repeats": 3}
    done = run(
        data, tmp_path / "out", features={"he": str(tmp_path / "sized")}, split=split, seeds=[0]
    )
    assert len(done.outcomes) == 2 * 3
    tested = []
    for fold in range(3):
        (file,) = {o.cell.config.split.file for o in done.outcomes if o.cell.fold == fold}
        parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
        for row in table(Path(str(file))):
            parts[row["part"]].append(sizes[row["slide"]])
        assert [len(part) for part in parts.values()] == [10, 3, 3]
        assert max(parts["train"]) < min(parts["val"] + parts["test"])
        tested.append(sorted(parts["test"]))
    assert len({tuple(part) for part in tested}) > 1


def test_every_model_feature_set_fold_and_seed_is_a_cell(data: Path, tmp_path: Path) -> None:
    sets = {"he": str(data / "he"), "small": str(data / "small")}
    split = {"kind": "kfold", "folds": 2, "val_fraction": 0.5}
    done = run(data, tmp_path, features=sets, split=split)
    cells = [(c.model, c.features, c.fold, c.seed) for c in (o.cell for o in done.outcomes)]
    assert sorted(cells) == sorted(
        (model, features, fold, seed)
        for model in ("abmil", "max")
        for features in sets
        for fold in (0, 1)
        for seed in (0, 1)
    )
    assert set(states(done)) == {"done"}
    assert len(done.rows) == 4
    configs = {(o.cell.model, o.cell.features): o.cell.config.overrides for o in done.outcomes}
    encoder = 'encoder={"name": "tiny-net", "dim": 8}'
    assert configs == {
        ("abmil", "he"): [],
        ("max", "he"): [MAX],
        ("abmil", "small"): [encoder],
        ("max", "small"): [encoder, MAX],
    }


def test_models_share_their_splits_and_each_seed_is_one_run(data: Path, tmp_path: Path) -> None:
    done = run(data, tmp_path, split={"kind": "kfold", "folds": 2, "val_fraction": 0.5})
    files = {o.cell.fold: set() for o in done.outcomes}  # type: ignore[var-annotated]
    for outcome in done.outcomes:
        files[outcome.cell.fold].add(outcome.cell.config.split.file)
        assert outcome.cell.config.seeds == [outcome.cell.seed]
    assert [len(each) for each in files.values()] == [1, 1]
    tested = [row["slide"] for (file,) in files.values() for row in table(Path(file))
              if row["part"] == "test"]  # fmt: skip
    assert sorted(tested) == sorted(f"S{i}" for i in range(SLIDES))


def test_a_second_call_runs_nothing_and_says_the_same(data: Path, tmp_path: Path) -> None:
    first = run(data, tmp_path)
    texts = {f.name: f.read_bytes() for f in tmp_path.iterdir() if f.is_file()}
    second = run(data, tmp_path)
    assert (states(first), states(second)) == (["done"] * 4, ["kept"] * 4)
    assert len(calls(tmp_path)) == 4
    assert second.rows == first.rows
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir() if f.is_file()} == texts


def test_a_cell_that_is_gone_is_filled(data: Path, tmp_path: Path) -> None:
    gone = run(data, tmp_path).outcomes[2].cell
    shutil.rmtree(tmp_path / "cells" / gone.folder)
    assert states(run(data, tmp_path)) == ["kept", "kept", "done", "kept"]
    assert calls(tmp_path)[4:] == [gone.folder]


def test_a_cell_that_was_cut_short_is_run_again_in_its_folder(data: Path, tmp_path: Path) -> None:
    cut = run(data, tmp_path).outcomes[1].cell
    (tmp_path / "cells" / cut.folder / "cell.json").unlink()
    assert states(run(data, tmp_path)) == ["kept", "done", "kept", "kept"]
    assert calls(tmp_path)[4:] == [cut.folder]


@pytest.mark.parametrize(
    "more", [{"train": {"epochs": 3}}, {"overrides": ["optimiser.lr=0.5"]}, {"seeds": [2, 3]}]
)
def test_another_config_is_another_cell(data: Path, tmp_path: Path, more: dict) -> None:  # type: ignore[type-arg]
    run(data, tmp_path)
    assert states(run(data, tmp_path, **more)) == ["done"] * 4


def test_what_changes_no_number_keeps_the_cells(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "out")
    shutil.copytree(data / "he", tmp_path / "moved")
    moved = {"features": {"he": str(tmp_path / "moved")}, "train": {"epochs": 2, "workers": 1}}
    assert states(run(data, tmp_path / "out", **moved)) == ["kept"] * 4
    bag = Bag(torch.zeros(3, 208), encoder=Fingerprint("handcrafted-he"), slide_id="S0")
    write_bag(bag, tmp_path / "moved" / "S0.h5")
    assert states(run(data, tmp_path / "out", **moved)) == ["done"] * 4


def test_other_labels_are_other_cells(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "out")
    text = (data / "slides.csv").read_text().replace("S0,normal", "S0,tumour")
    (tmp_path / "slides.csv").write_text(text)
    changed = run(data, tmp_path / "out", data={"table": str(tmp_path / "slides.csv")})
    assert states(changed) == ["done"] * 4


def test_a_cell_that_fails_is_reported_and_tried_again(data: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    done = run(data, tmp_path, run_one=fail_for_max)
    assert states(done) == ["done", "failed"] * 2
    assert [outcome.reason for outcome in done.failed] == ["ValueError: no luck"] * 2
    rows = table(tmp_path / "results.csv")
    assert [(r["model"], r["state"], r["reason"]) for r in rows] == [
        ("abmil", "finished", ""),
        ("max", "failed", "ValueError: no luck"),
    ] * 2
    assert "max  he  fold 0  seed 1" in (tmp_path / "benchmark.html").read_text()
    assert [(row.model, row.finished, row.asked) for row in done.rows] == [
        ("abmil", 2, 2),
        ("max", 0, 2),
    ]
    (tmp_path / "broken").unlink()
    assert states(run(data, tmp_path, run_one=fail_for_max)) == ["kept", "done"] * 2


def test_a_process_that_dies_fails_its_cell_alone(data: Path, tmp_path: Path) -> None:
    done = run(data, tmp_path, run_one=die_for_max, jobs=2, seeds=[0])
    assert states(done) == ["done", "failed"]
    assert done.failed[0].reason.startswith("its process died (exit code 9)")


def test_a_damaged_run_directory_is_a_failure_that_says_so(data: Path, tmp_path: Path) -> None:
    cell = run(data, tmp_path).outcomes[0].cell
    (tmp_path / "cells" / cell.folder / "metrics.json").write_text("{")
    done = run(data, tmp_path)
    assert states(done) == ["failed", "kept", "kept", "kept"]
    assert "is damaged" in done.failed[0].reason
    assert "delete it and run the same command" in done.failed[0].reason


def test_results_do_not_depend_on_how_many_run_at_once(data: Path, tmp_path: Path) -> None:
    for jobs in (1, 2):
        run(data, tmp_path / str(jobs), jobs=jobs)
    for name in ("table.md", "table.csv", "table.tex", "results.csv", "benchmark.html"):
        one, two = (tmp_path / str(jobs) / name for jobs in (1, 2))
        assert one.read_bytes() == two.read_bytes(), name


def test_without_models_every_aggregator_that_fits_is_run(data: Path, tmp_path: Path) -> None:
    told: list[str] = []
    asked = content(data, seeds=[0], features={"small": str(data / "small")})
    del asked["models"]
    done = run_benchmark(asked, tmp_path, run_one=pretend, say=told.append)
    assert {"abmil", "max", "mean"} <= {outcome.cell.model for outcome in done.outcomes}
    assert [text for text in told if not text.startswith("left out ")] == []


def test_a_model_entry_may_have_overrides_and_a_recipe(data: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.yaml").write_text("model: mean-uni\noptimiser: {lr: 0.25}\n")
    models = [
        {"name": "plain", "overrides": ["aggregator.gated=false"]},
        {"name": "own", "recipe": str(tmp_path / "slow.yaml")},
    ]
    asked = content(data, models=models, seeds=[0])
    done = run_benchmark(asked, tmp_path / "out", run_one=pretend)
    plain, own = (outcome.cell.config for outcome in done.outcomes)
    assert (plain.model, plain.overrides) == ("abmil-demo", ["aggregator.gated=false"])
    assert (plain.optimiser.lr, plain.train.epochs) == (1e-4, 2)
    assert own.model == "mean-uni"
    assert own.overrides == ['encoder={"name": "handcrafted-he", "dim": 208}']
    assert own.optimiser.lr == 0.25
    assert own.train.epochs != 2
    assert own.data.table == plain.data.table


def test_a_recipe_of_a_model_brings_no_data_split_or_seeds(data: Path, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "model: abmil-demo\ndata: {bins: 2, classes: [tumour, normal]}\nselection: {metric: auc}\n"
        "seeds: [4]\n"
    )
    (tmp_path / "its.yaml").write_text(
        "model: mean-uni\ndata: {bins: 6, bins_from: whole_cohort}\nsplit: {seed: 9}\nseeds: [7]\n"
        "train: {epochs: 3}\n"
    )
    asked = content(data, models=["abmil", {"name": "own", "recipe": str(tmp_path / "its.yaml")}])
    asked = {k: v for k, v in asked.items() if k not in ("model", "seeds", "train")}
    asked["recipe"] = str(tmp_path / "base.yaml")
    done = run_benchmark(asked, tmp_path / "out", run_one=pretend, overrides=["optimiser.lr=0.5"])
    plain, own = (outcome.cell.config for outcome in done.outcomes)
    assert (own.data, own.split, own.seeds) == (plain.data, plain.split, plain.seeds)
    assert (own.data.bins, own.data.classes, own.seeds) == (2, ["tumour", "normal"], [4])
    assert (own.model, own.train.epochs, own.selection.metric) == ("mean-uni", 3, "loss")
    assert own.recipe == str(tmp_path / "its.yaml")
    assert own.optimiser.lr == plain.optimiser.lr == 0.5


def test_spans_recipe_does_not_look_ahead_in_a_benchmark(tmp_path: Path) -> None:
    asked = read_benchmark(
        {
            "recipe": "baseline-survival",
            "data": {"table": "slides.csv"},
            "features": {"a": str(tmp_path)},
            "models": ["abmil", {"name": "s", "recipe": "span-survival"}],
        },
        [], None, default(),
    )  # fmt: skip
    found = [asked.config(candidate) for candidate in asked.models or ()]
    assert [config.data.bins_from for config in found] == ["train", "train"]
    assert [config.model for config in found] == ["abmil-surv-uni", "span-surv-uni"]
    assert found[1].optimiser.lr != found[0].optimiser.lr


def test_overrides_of_the_benchmarks_recipe_are_of_its_model_alone(tmp_path: Path) -> None:
    own = {"name": "own", "model": "mean-uni", "overrides": ["aggregator.dim=4"]}
    given = {"recipe": "baseline-regression", "data": {"table": "/t.csv"}, "models": ["abmil", own]}
    over = ["overrides=[aggregator.gated=false]"]
    asked = read_benchmark({**given, "features": {"a": str(tmp_path)}}, over, None, default())
    found = [asked.config(candidate) for candidate in asked.models or ()]
    assert [config.overrides for config in found] == [
        ["head=regression", "aggregator.gated=false"], []
    ]  # fmt: skip
    for config in found:
        assert config.recipe == "baseline-regression"
        (tmp_path / "config.yaml").write_text(to_yaml(config))
        assert load_config(tmp_path / "config.yaml") == config


def test_an_override_of_the_base_model_is_not_one_of_every_model(tmp_path: Path) -> None:
    models = ["abmil", "max-uni", {"name": "s", "recipe": "span-classification"}]
    given = {"model": "mean-uni", "data": {"table": "t.csv"}, "features": {"a": str(tmp_path)}}
    over = ["model=abmil-demo", "train.epochs=3"]
    asked = read_benchmark({**given, "models": models}, over, None, default())
    found = [asked.config(candidate) for candidate in asked.models or ()]
    assert [config.model for config in found[:2]] == ["abmil-demo", "max-uni"]
    assert found[2].model.startswith("span")
    assert {config.train.epochs for config in found} == {3}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"models": ["abmill"]}, NotFoundError, "'abmill' is installed. Did you mean 'abmil'"),
        ({"models": ["pixel-mamba"]}, NotFoundError, "pip install wsizoo-plugin-pixelmamba"),
        ({"models": []}, SpecError, r"models is \[\], expected a list of names"),
        ({"models": [3]}, SpecError, "a model is 3, expected a name, or {name"),
        ({"models": [{"name": "a", "modle": "b"}]}, SpecError, "'modle'. Did you mean 'model'"),
        ({"models": ["max", "max"]}, SpecError, "names 'max' twice"),
        ({"features": {"x": "nowhere"}}, NotFoundError, "no folder '.*nowhere' of the features"),
        ({"features": ["nowhere"]}, SpecError, "features is .*, expected {name: folder"),
        ({"features": None}, SpecError, "names no features. Give it some: features:"),
        ({"optimizer": {}}, SpecError, "'optimizer'. Did you mean 'optimiser'"),
        (
            {"split": {"fractions": [0.7, 0.3, 0.0]}},
            DataError,
            r"fold 0 of the split has no test part, .*split\.fractions=\[0\.7,0\.15,0\.15\]",
        ),
        ({"engine": "dask"}, DataError, "engine is 'dask', expected one of"),
        (
            {"models": [{"name": "a", "overrides": ["aggregator.dmi=3"]}]},
            SpecError,
            "the model 'a' does not fit 'he': .*dmi",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    data: Path,
    tmp_path: Path,
    change: dict,
    error: type[Exception],
    message: str,  # type: ignore[type-arg]
) -> None:
    how = {"engine": change["engine"]} if "engine" in change else {}
    asked = content(data, **{k: v for k, v in change.items() if k not in how})
    with pytest.raises(error, match=message):
        run_benchmark(asked, tmp_path, run_one=pretend, **how)
    assert calls(tmp_path) == []


def test_feature_sets_of_different_slides_are_not_compared(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "small", tmp_path / "few")
    (tmp_path / "few" / "S3.h5").unlink()
    sets = {"he": str(data / "he"), "few": str(tmp_path / "few")}
    drop = {"table": str(data / "slides.csv"), "missing": "drop"}
    with pytest.raises(DataError, match="'few' are of 15 slides, those of 'he' of 16"):
        run(data, tmp_path / "out", features=sets, data=drop)


def test_where_no_model_fits_it_says_why(data: Path, tmp_path: Path) -> None:
    asked = content(data, overrides=["head.dmi=4"])
    del asked["models"]
    with pytest.raises(SpecError, match=r"no model fits these slides and this task\. .*dmi"):
        run_benchmark(asked, tmp_path, run_one=pretend)


def test_two_calls_at_once_on_one_folder_are_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "benchmark.lock").write_text("1 another-computer")
    with pytest.raises(DataError, match="is held by another process"):
        run(data, tmp_path)


def test_a_function_that_cannot_be_sent_says_so(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run_one cannot be sent to other processes"):
        run(data, tmp_path, run_one=lambda config, out: None)


def test_the_command_tells_a_line_a_run_and_the_table(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsizoo.benchmark.run.train_cell", pretend)
    monkeypatch.setitem(run_benchmark.__kwdefaults__, "run_one", fail_for_max)
    file = tmp_path / "bench.yaml"
    file.write_text(json.dumps(content(data, seeds=[0])))
    arguments = ["benchmark", str(file), "-o", str(tmp_path / "out")]
    told = CliRunner().invoke(cli, [*arguments, "--models", "max, mean"], prog_name="wsizoo")
    assert told.exit_code == 0, told.output
    assert "done     max  he  fold 0  seed 0  auc 0." in told.stdout
    assert "2 of 2 runs finished; * best" in told.stdout
    (tmp_path / "out" / "broken").touch()
    told = CliRunner().invoke(cli, [*arguments, "--json", "seeds=[5]"], prog_name="wsizoo")
    assert told.exit_code == 1
    rows = [json.loads(line) for line in told.stdout.splitlines()]
    assert [(row["model"], row["state"]) for row in rows] == [("abmil", "done"), ("max", "failed")]
    assert rows[0]["auc"] > 0
    assert rows[1]["reason"] == "ValueError: no luck"


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("models=[abmil, 'mean']", "is an option, so type: --models abmil,mean"),
        ("models=mean", "is an option, so type: --models mean"),
        ("models=", "is an option, so type: --models a,b"),
        ("models=[{name: x}]", "is an option, so type: --models a,b"),
        ("features={a: b}", "is no key of a run. One set: data.features=FOLDER; several stand in"),
    ],
)
def test_what_is_a_list_in_the_file_is_no_override(typed: str, told: str) -> None:
    where = ["data.table=t.csv", "data.features=f", typed]
    how = ["benchmark", "baseline-classification", "-o", "B"]
    with pytest.raises(SpecError, match=re.escape(f"the benchmark: '{typed}' {told}")):
        CliRunner().invoke(cli, [*how, *where], catch_exceptions=False)


def test_the_command_takes_a_recipe_as_train_does(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsizoo.benchmark.run.train_cell", pretend)
    monkeypatch.setitem(run_benchmark.__kwdefaults__, "run_one", pretend)
    where = [f"data.table={data / 'slides.csv'}", f"data.features={data / 'he'}", "seeds=[0]"]
    how = ["benchmark", "baseline-classification", "-o", str(tmp_path), "--models", "abmil,max"]
    told = CliRunner().invoke(cli, [*how, *where], prog_name="wsizoo", catch_exceptions=False)
    assert told.exit_code == 0, told.output
    assert "2 of 2 runs finished" in told.stdout
    how[1] = "baseline-clasification"
    with pytest.raises(NotFoundError, match="Did you mean 'baseline-classification'"):
        CliRunner().invoke(cli, [*how, *where], catch_exceptions=False)


def test_a_real_benchmark_trains_and_ends_in_tables_and_a_page(data: Path, tmp_path: Path) -> None:
    asked = content(data, models=["mean", "max"], optimiser={"lr": 0.001})
    asked["split"] = {"fractions": [0.5, 0.25, 0.25]}
    done = run_benchmark(asked, tmp_path, jobs=2)
    assert [(o.state, o.reason) for o in done.outcomes] == [("done", "")] * 4
    folders = [tmp_path / "cells" / outcome.cell.folder for outcome in done.outcomes]
    assert all((folder / "model").is_dir() for folder in folders)
    assert all((folder / "report.html").is_file() for folder in folders)
    for row in done.rows:
        assert (row.finished, row.asked) == (2, 2)
        assert 0.5 < row.mean("auc") <= 1
        assert row.low is not None and row.high is not None and row.low <= row.high
        assert all(row.facts[name] for name in FACTS)
    assert (tmp_path / "table.md").read_text().count("\n") == 4
    made = json.loads((tmp_path / "benchmark.json").read_text())
    assert made["config"]["optimiser"] == {"lr": 0.001}
    assert made["environment"]["wsizoo"] == wsizoo.__version__
    rows = table(tmp_path / "results.csv")
    for name in ("data_digest", "split_digest"):
        assert [row[name] for row in rows] == made[name] * 4
    page = (tmp_path / "benchmark.html").read_text()
    assert f"sha256 {made['split_digest'][0][:16]}" in page and str(tmp_path) not in page
    links = re.findall(r'href="(cells/[^"]+)"', page)
    assert len(links) == 4 and all((tmp_path / link).is_file() for link in links)
    assert states(run_benchmark(asked, tmp_path)) == ["kept"] * 4


def test_the_key_holds_the_model_its_code_and_its_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(OWN_MODEL)
    config = load_config({"model": str(file), "data": {"table": str(data / "slides.csv")}})

    def key(of: RunConfig = config) -> str:
        return content_key(of, "data", "split", default())

    first = key()
    assert key() == first
    file.write_text(OWN_MODEL.replace("dim: 16", "dim: 24"))
    assert key() != first
    file.write_text(OWN_MODEL)
    assert key() == first
    assert key(replace(config, init="abmil-demo")) != key(replace(config, model="abmil-demo"))
    monkeypatch.setattr(benchmark_keys, "_sources", lambda package: "changed")
    assert key() != first


def test_a_model_of_a_file_gets_the_encoder_of_its_features(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(OWN_MODEL)
    sets = {"he": str(data / "he"), "small": str(data / "small")}
    done = run(data, tmp_path / "out", features=sets, seeds=[0], model=str(file), models=["mean"])
    mean = {o.cell.features: o.cell.config for o in done.outcomes}
    assert 'encoder={"name": "tiny-net", "dim": 8}' in mean["small"].overrides
    assert not any(text.startswith("encoder") for text in mean["he"].overrides)


SILENT = {
    *("benchmark", "cli", "demo", "diagnosis", "extraction", "reports", "testing", "viz"),
    *("__main__.py", "card.py", "conversion.py", "doctor.py", "inference.py", "scaffold.py"),
}


def test_code_that_changes_no_number_does_not_count(tmp_path: Path) -> None:
    for file in CORE.rglob("*.py"):
        copied = tmp_path / file.relative_to(CORE)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text("")
    before, still = benchmark_keys._of_files(tmp_path, "*.py"), set()
    for entry in tmp_path.iterdir():
        changed = next(entry.glob("__init__.py")) if entry.is_dir() else entry
        changed.write_text("changed")
        if benchmark_keys._of_files(tmp_path, "*.py") == before:
            still.add(entry.name)
        changed.write_text("")
    assert still == SILENT
    (tmp_path / "viz" / "classes.py").write_text("changed")
    assert benchmark_keys._of_files(tmp_path, "*.py") != before


def test_code_that_counts_takes_no_number_from_code_that_does_not() -> None:
    used = set()
    for file in CORE.rglob("*.py"):
        name = file.relative_to(CORE).as_posix()
        if not benchmark_keys.counts(name) or name == "__init__.py":
            continue
        for found in re.finditer(r"(?m)^ *from wsizoo\.([\w.]+) import", file.read_text()):
            module = found[1].replace(".", "/")
            inside = f"{module}.py" if (CORE / f"{module}.py").is_file() else f"{module}/"
            used |= set() if benchmark_keys.counts(inside) else {found[1]}
    assert used == {"card", "extraction.folders", "reports.run"}  # texts, checks and pages
