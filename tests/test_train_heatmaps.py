"""Heatmaps beside a report: drawn from a run's own features, and linked from its table."""

import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_cli import invoke
from tests.toy_cohort import DIM, made, read_table, write_cohort, write_config
from wsizoo.errors import DataError
from wsizoo.slides.facts import SlideFacts
from wsizoo.slides.store import write_bag
from wsizoo.train.config import load_config
from wsizoo.train.evaluation import evaluate_run
from wsizoo.train.heatmaps import heatmaps_of_run
from wsizoo.train.run import run_training
from wsizoo.viz.predicted import PatchAnswers


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of 16 slides and its run; four slides test."""
    folder = tmp_path_factory.mktemp("source")
    write_cohort(folder)
    torch.set_num_threads(1)
    run_training(load_config(write_config(folder), ["train.epochs=1"]), folder / "run")
    return folder


def links(folder: Path) -> list[str]:
    """Of the table of slides, in its order."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    return [unquote(link) for link in re.findall(r'href="([^"]*heatmaps/[^"]*)"', page)]


def test_the_report_links_to_heatmaps_of_the_first_slides(source: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(source / "run", run)
    assert links(run) == []
    result = invoke("report", run, "--heatmaps", "3")
    assert result.exit_code == 0, result.output
    found = links(run)
    assert len(found) == 3 and all((run / link).is_file() for link in found)
    tested = {r["slide"] for r in read_table(run / "predictions.csv") if r["part"] == "test"}
    assert {Path(link).stem for link in found} < tested
    names = re.findall(r">(s\d\d)<", (run / "report.html").read_text().split("Slides</h2>")[-1])
    assert names[:3] == [Path(link).stem for link in found], "the first of the table"
    assert "Names that are links lead to a heatmap" in (run / "report.html").read_text()
    pixels = np.asarray(Image.open(run / found[0]))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 5, "patches are coloured"


def test_an_evaluation_draws_them_at_once_and_removes_older_ones(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "val"
    result = invoke(
        "evaluate", source / "run", "-o", out, "--part", "val", "--heatmaps", "2"
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert len(links(out)) == 2
    evaluate_run(source / "run", out, part="val")
    assert links(out) == [] and not list((out / "heatmaps").glob("*.png"))
    with pytest.raises(
        DataError, match=r"holds no config.yaml, .* evaluate RUN -o .* --heatmaps 5"
    ):
        heatmaps_of_run(out, 5)


def test_each_of_several_runs_has_its_own(source: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run_training(load_config(source / "train.yaml", ["train.epochs=1", "seeds=[0,1]"]), runs)
    invoke("report", runs, "--heatmaps", "1")
    assert sorted(Path(link).parts[0] for link in links(runs)) == ["fold0-seed0", "fold0-seed1"]
    assert all((runs / link).is_file() for link in links(runs))


def test_a_thumbnail_in_the_features_lies_under_the_patches(tmp_path: Path) -> None:
    write_cohort(tmp_path)
    rows = read_table(tmp_path / "slides.csv")
    thumbnail = np.full((40, 50, 3), (10, 200, 30), np.uint8)
    for row in rows:
        file = tmp_path / "features" / f"{row['slide']}.h5"
        file.unlink()
        with_slide(file, thumbnail)
    run_training(load_config(write_config(tmp_path), ["train.epochs=1"]), tmp_path / "run")
    (file,) = heatmaps_of_run(tmp_path / "run", 1)
    pixels = np.asarray(Image.open(file))
    assert pixels.shape[1] == 50
    assert (pixels[39, 49] == (10, 200, 30)).all(), "no patch lies there"


def with_slide(file: Path, thumbnail: np.ndarray) -> None:
    write_bag(
        made(torch.randn(6, DIM)),
        file,
        facts=SlideFacts(file.stem, 3200, 2560),
        thumbnail=(thumbnail, 64.0),
    )


@pytest.mark.parametrize("task", ["segmentation", "survival"])
def test_other_tasks_have_them_too(task: str, tmp_path: Path) -> None:
    write_cohort(tmp_path, slides=32)
    run_training(load_config(write_config(tmp_path, task), ["train.epochs=1"]), tmp_path / "run")
    assert invoke("report", tmp_path / "run", "--heatmaps", "2").exit_code == 0
    assert len(links(tmp_path / "run")) == 2


def test_patients_in_one_bag_have_one_heatmap(tmp_path: Path) -> None:
    write_cohort(tmp_path, slides=32, per_patient=2)
    config = load_config(write_config(tmp_path), ["train.epochs=1", "data.patient_slides=concat"])
    run_training(config, tmp_path / "run")
    (file,) = heatmaps_of_run(tmp_path / "run", 1)
    assert re.fullmatch(r"s\d\d\+s\d\d\.png", file.name)


def test_what_has_nothing_to_draw_is_refused(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(output: object, n: int, found: object) -> PatchAnswers:
        return PatchAnswers(n)

    monkeypatch.setattr(PatchAnswers, "of", silent)
    with pytest.raises(DataError, match=r"'abmil-\S+' gives neither scores nor classes of patches"):
        heatmaps_of_run(source / "run", 1)


def test_features_without_places_are_refused(tmp_path: Path) -> None:
    write_cohort(tmp_path)
    for row in read_table(tmp_path / "slides.csv"):
        (tmp_path / "features" / f"{row['slide']}.h5").unlink()
        torch.save(torch.randn(5, DIM), tmp_path / "features" / f"{row['slide']}.pt")
    config = load_config(
        write_config(tmp_path), ["train.epochs=1", "data.encoder=made-up", "data.format=pt"]
    )
    run_training(config, tmp_path / "run")
    with pytest.raises(DataError, match=r"features of slide 's\d\d' do not say where its patches"):
        heatmaps_of_run(tmp_path / "run", 1)


def test_a_slide_that_left_the_table_is_named(source: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(source / "run", run)
    text = (run / "predictions.csv").read_text()
    tested = next(r for r in read_table(run / "predictions.csv") if r["part"] == "test")["slide"]
    (run / "predictions.csv").write_text(text.replace(f"{tested},", "gone,"))
    with pytest.raises(DataError, match=r"slide 'gone' of '.*' is not in '.*slides.csv'"):
        heatmaps_of_run(run, 4)
