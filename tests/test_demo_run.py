"""wsizoo.demo: the tour trains, predicts, proves its heatmap, and shows it all on one page."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from wsizoo.bag import Bag
from wsizoo.cli import cli
from wsizoo.demo import run as demo
from wsizoo.demo.cohort import CohortSlide
from wsizoo.demo.page import _truth, write_page
from wsizoo.demo.run import locate, run_demo, train_all
from wsizoo.demo.tour import Located, Tour
from wsizoo.encoders.loading import load_encoder
from wsizoo.errors import DataError
from wsizoo.extraction.job import Extracted
from wsizoo.inference import Predicted, predict
from wsizoo.slides.facts import SlideFacts
from wsizoo.slides.store import read_bag, read_thumbnail, write_bag
from wsizoo.slides.tiff import write_pyramid
from wsizoo.viz.predicted import Drawing, PatchAnswers, write_scores

SIDE, CELL = 5, 224
"""Cells of a slide, and their edge in px."""


def make_slide(folder: Path, index: int) -> CohortSlide:
    """A small slide, its truth and its features: the first features tell tumour, patch by patch."""
    name, tumour, clustered = f"demo-{index:02d}", index % 2, index // 2 % 2
    rng = np.random.default_rng(index)
    image = rng.integers(150, 200, (SIDE * 28, SIDE * 28, 3)).astype(np.uint8)
    slide = CohortSlide(
        name,
        folder / "slides" / f"{name}.svs",
        folder / "truth" / f"{name}.npy",
        tumour,
        clustered,
        "train" if index < 8 else "test",
    )
    large = image.repeat(8, 0).repeat(8, 1)
    for file in (slide.slide, slide.truth):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_pyramid(slide.slide, large, 0.5, (1, 4))
    share = np.zeros((SIDE, SIDE), np.float32)
    if tumour:
        share[1, 2], share[1, 3], share[4, 0] = 0.9, 0.3, 0.5
    np.save(slide.truth, share)
    cells = np.argwhere(np.ones((SIDE, SIDE)))[:, ::-1]  # (N, 2), (x, y)
    features = torch.from_numpy(rng.normal(0, 0.1, (len(cells), 208))).float()
    features[:, :8] += 3 * torch.from_numpy(share[cells[:, 1], cells[:, 0]])[:, None]
    bag = Bag(
        features, torch.from_numpy(cells * CELL), spacing=float(CELL), mpp=0.5,
        encoder=load_encoder("handcrafted-he").fingerprint(), slide_id=name,
    )  # fmt: skip
    facts = SlideFacts(name, SIDE * CELL, SIDE * CELL)
    write_bag(bag, folder / "features" / f"{name}.h5", facts=facts, thumbnail=(image, 8.0))
    return slide


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Tour:
    """What a tour is before its page is written, from drawn features."""
    folder = tmp_path_factory.mktemp("with space") / "wsizoo-demo"
    tour = Tour(folder, [make_slide(folder, i) for i in range(16)], seconds={"draw slides": 1.0})
    for slide in tour.cohort:
        file = folder / "features" / f"{slide.name}.h5"
        tour.extracted.append(Extracted(slide.name, slide.slide, file, "done", SIDE**2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "EPOCHS", 12)
        tour.results = train_all(tour.cohort, folder, lambda what, done, total: None)
    demo._save_and_reload(tour, lambda text: None)
    slide = tour.cohort[9]
    file = folder / "features" / f"{slide.name}.h5"
    (tour.predicted,) = predict(file, str(folder / "model"), folder / "prediction")
    tour.located = locate(tour.predicted, slide)
    return tour


def test_each_aggregator_is_trained_on_each_label_and_scored_on_held_out_slides(
    tour: Tour,
) -> None:
    assert [(r.label, r.aggregator) for r in tour.results] == [
        ("tumour", "abmil"), ("tumour", "mean"), ("clustered", "abmil"), ("clustered", "mean"),
    ]  # fmt: skip
    assert all(len(r.truth) == 8 for r in tour.results)
    assert tour.results[0].auc == 1
    assert tour.results[0].row()["AUC"] == "1.000"
    assert tour.results[0].losses[-1] < tour.results[0].losses[0]


def test_the_reloaded_model_is_the_trained_one(tour: Tour) -> None:
    assert (tour.folder / "model" / "model.safetensors").is_file()
    training = json.loads((tour.folder / "model" / "config.json").read_text())["training"]
    assert training["result"].startswith("AUC 1.000 (")
    assert "synthetic" in training["data"]


def located(tmp_path: Path, slide: CohortSlide, scores: np.ndarray, bag: Bag) -> Located:
    """What `locate` says of these scores."""
    features = write_bag(bag, tmp_path / "f.h5")
    file = write_scores(Drawing(tmp_path, "s"), bag, PatchAnswers(len(bag), scores))
    return locate(Predicted(slide.name, files={"scores": file, "features": features}), slide)


def test_the_heatmap_is_held_against_the_drawn_tumour_cell_by_cell(
    tour: Tour, tmp_path: Path
) -> None:
    slide = tour.cohort[9]
    bag = read_bag(tour.folder / "features" / f"{slide.name}.h5")
    share = np.load(slide.truth)
    column, row = bag.grid().numpy().T
    true = located(tmp_path, slide, share[row, column].astype(float), bag)
    assert true == Located(slide.name, 1.0, 2, SIDE**2 - 3)
    assert str(true) == "AUC 1.000 (2 patches with tumour, 22 without)"
    assert located(tmp_path, slide, -share[row, column].astype(float), bag).auc == 0
    assert located(tmp_path, slide, np.zeros(len(bag)), bag).auc == 0.5
    turned = located(tmp_path, slide, share[column, row].astype(float), bag)
    assert turned.auc < 0.8  # x and y may not be mixed up
    some = bag.subset(torch.tensor([7, 3, 8, 20]))  # tumour cells are 7 and 20, 8 is in between
    assert located(tmp_path, slide, np.array([4.0, 3.0, 0.0, 5.0]), some) == Located(
        slide.name, 1.0, 2, 1
    )


def test_the_model_finds_tumour_that_it_was_never_shown(tour: Tour) -> None:
    assert tour.located is not None
    assert tour.located.auc > 0.9


def test_the_truth_colours_only_cells_with_tumour(tour: Tour) -> None:
    slide = tour.cohort[9]
    stored = read_thumbnail(tour.folder / "features" / f"{slide.name}.h5")
    assert stored is not None
    thumbnail = stored[0]
    picture = _truth(tour, slide)[: len(thumbnail)]
    step = thumbnail.shape[0] // SIDE
    changed = (picture != thumbnail).any(-1).reshape(SIDE, step, SIDE, step).mean(axis=(1, 3))
    share = np.load(slide.truth)
    assert (changed[share > 0] > 0.9).all()
    assert (changed[share == 0] == 0).all()


def test_the_page_holds_results_pictures_proof_and_commands(tour: Tour) -> None:
    write_page(tour)
    html = (tour.folder / "index.html").read_text()
    for heading in ("The cohort", "Results on held-out slides", "One slide, predicted", "Next"):
        assert f">{heading}</h2>" in html
    assert str(tour.located) in html
    assert html.count("width: 720px") == 3
    commands = re.findall(r"<pre[^>]*><code>(.*?)</code></pre>", html, re.DOTALL)
    assert commands[0].startswith("wsizoo predict &#x27;/")  # a path with a space is quoted
    assert "wsizoo extract SLIDES -o features" in commands
    assert "wsizoo list\nwsizoo doctor" in commands


@pytest.mark.parametrize("slides", [0, 4, 8, 13, -4])
def test_a_cohort_that_cannot_be_divided_is_refused(tmp_path: Path, slides: int) -> None:
    with pytest.raises(DataError, match=f"A demo of {slides} slides: expected a multiple of 4, 12"):
        run_demo(tmp_path / "demo", slides=slides)
    assert not (tmp_path / "demo").exists()


def test_the_command_prints_table_proof_and_page(
    tour: Tour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsizoo.demo.run.run_demo", lambda *_, **__: tour)
    text = CliRunner().invoke(cli, ["demo", "-o", str(tmp_path)]).output
    assert re.search(r"^tumour +abmil +8 +1\.000", text, re.MULTILINE)
    assert f"Patch scores of demo-09 against the tumour drawn in it:\n{tour.located}" in text
    assert f"Open {tmp_path / 'index.html'}" in text
    told = json.loads(CliRunner().invoke(cli, ["demo", "-o", str(tmp_path), "--json"]).output)
    assert told["results"][0]["AUC"] == "1.000"
    assert told["located"]["slide"] == "demo-09"


@pytest.mark.slow
def test_the_whole_tour_runs_and_a_second_one_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    tour = run_demo(tmp_path, slides=12, say=said.append)
    assert tour.located is not None
    assert tour.results[0].auc == 1
    assert tour.located.auc > 0.8
    assert len(said) == 4
    for name in ("index.html", "results.csv", "table.csv", "train.yaml", "model/config.json"):
        assert (tmp_path / name).is_file()
    (tmp_path / "features" / "demo-03.h5").write_bytes(b"damaged")
    again = run_demo(tmp_path, slides=12)
    assert {r.slide_id for r in again.extracted if r.state == "done"} == {"demo-03"}
    assert [r.auc for r in again.results] == [r.auc for r in tour.results]
