"""The examples run as they are printed, on what they make and on what they are given."""

import csv
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import wsizoo
import wsizoo.testing
from wsizoo.benchmark.plan import read_benchmark
from wsizoo.registry import default

EXAMPLES = Path(__file__).parent.parent / "examples"
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run an example as a script in an empty folder; returns its names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)

    def run_example(name: str, *arguments: Path | str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.delitem(sys.modules, name, raising=False)
        return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")

    return run_example


def test_every_example_is_tested_here() -> None:
    tested = Path(__file__).read_text(encoding="utf-8")
    assert [e.stem for e in EXAMPLES.glob("*.py") if f'"{e.stem}"' not in tested] == []


def test_load_and_predict_finds_the_tumour_of_the_slide_it_draws(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("load_and_predict")
    out = capsys.readouterr().out
    assert "predicted    tumour" in out
    assert (tmp_path / "example-prediction" / "heatmaps" / "synthetic.png").is_file()


def test_load_and_predict_takes_a_feature_file(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = wsizoo.Bag(torch.zeros(2, 208), torch.tensor([[0, 0], [224, 0]]), spacing=224.0)
    run("load_and_predict", wsizoo.write_bag(bag, tmp_path / "mine.h5"))
    assert "of 2 mattered most" in capsys.readouterr().out


def test_train_on_your_features_learns_its_synthetic_set(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run("train_on_your_features")
    out = capsys.readouterr().out
    assert "'accuracy': 1.0" in out
    assert "saved, verified and reloaded" in out


def test_train_on_your_features_takes_a_folder_and_a_table(run: Run, tmp_path: Path) -> None:
    rows = [(f"s{i}", ("a", "b", "c")[i % 3]) for i in range(9)]
    for slide, _ in rows:
        bag = wsizoo.Bag(torch.zeros(3, 6), slide_id=slide)
        wsizoo.write_bag(bag, tmp_path / "mine" / f"{slide}.h5")
    with open(tmp_path / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("slide", "label"), *rows])
    run("train_on_your_features", tmp_path / "mine", tmp_path / "labels.csv", tmp_path / "model")
    assert wsizoo.load(tmp_path / "model").classes == ["a", "b", "c"]


def test_aggregator_in_one_file_is_found_by_name_and_conforms(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run("aggregator_in_one_file")
    count = len(wsizoo.testing.checks("aggregator"))
    assert f"{count} of {count} conformance checks passed" in capsys.readouterr().out
    assert names["wsizoo_components"]()[0].name == "top-mean"


def test_span_on_the_demo_answers_each_question_with_both_networks(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wsizoo_plugin_span")
    run("span_on_the_demo", "8", "1", tmp_path / "demo")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines if "seed 0" in line] == [
        [question, model]
        for question in ("clustered", "group", "tumour")
        for model in ("abmil-uni", "span-mil-uni" if question == "clustered" else "span-unet-uni")
    ]
    for question in ("clustered", "group", "tumour"):
        assert list((tmp_path / "demo" / f"prediction-{question}").glob("heatmaps/*.png"))


def test_longmil_on_the_demo_draws_what_a_trained_network_attends_to(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wsizoo_plugin_longmil")
    run("longmil_on_the_demo", "8", "1", tmp_path / "demo")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("of 4 held-out slides are told right")
    assert sum(line.startswith("layer ") for line in lines) == 3 * 4
    assert "full rank" in (tmp_path / "demo" / "diagnosis" / "attention.html").read_text()


def test_the_benchmark_of_longmil_compares_five_networks_of_one_width() -> None:
    pytest.importorskip("wsizoo_plugin_longmil")
    pytest.importorskip("wsizoo_plugin_span")
    registry = default()
    asked = read_benchmark(
        EXAMPLES / "longmil_on_the_demo.yaml",
        ["data.table=t.csv", "data.features=f"],
        None,
        registry,
    )
    assert asked.models is not None
    named = {one.name: one for one in asked.models}
    assert list(named) == ["abmil", "span", "longmil", "longmil-linear", "full-attention"]
    bag = wsizoo.Bag(torch.zeros(2, 208), torch.tensor([[0, 0], [224, 0]]), spacing=224.0)
    for name, one in named.items():
        config = asked.config(one)
        overrides = [*config.overrides, *one.overrides]
        if one.model:
            overrides += ["encoder=handcrafted-he", "head.classes=[scattered,clustered]"]
        model = wsizoo.build(config.model, *overrides)
        assert model(bag).logits.shape == (2,), name
        if "longmil" in name:
            assert model.aggregator.settings.radius == 3
