"""The guided tour: synthetic slides to features, trained models, a prediction, a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from wsizoo.bag import Bag
from wsizoo.demo.cohort import CohortSlide, write_cohort
from wsizoo.demo.comparing import compare
from wsizoo.demo.first_run import write_first_run
from wsizoo.demo.page import write_page
from wsizoo.demo.tour import CLASSES, COLUMNS, ENCODER, Located, Scored, Tour
from wsizoo.errors import DataError
from wsizoo.extraction.cohort import extract
from wsizoo.extraction.job import Extracted
from wsizoo.files import write_csv
from wsizoo.inference import Predicted, predict
from wsizoo.measures.metrics import roc_auc
from wsizoo.publish import save, verify
from wsizoo.slides.store import read_bag
from wsizoo.train.loop import fit
from wsizoo.zoo import build, load

MODEL = "abmil-demo"
AGGREGATORS = ("abmil", "mean")
EPOCHS = 30
TUMOUR_CELL = 0.5  # share of a cell from which on it counts as tumour
Say = Callable[[str], None]
Tick = Callable[[str, int, int], None]
"""(what, done, in all)"""


def run_demo(
    folder: Path | str = "wsizoo-demo",
    *,
    slides: int = 40,
    workers: int = 2,
    say: Say = lambda text: None,
    tick: Tick = lambda what, done, total: None,
) -> Tour:
    """Run the whole job on a synthetic cohort and write `folder/index.html`.

    What an interrupted run finished (slides, feature files) is kept by the next.

    Args:
        slides: size of the cohort, a multiple of 4; 12 at least, so that both parts have both
            classes of both labels. With fewer than 20 the results mean little.

    Raises:
        DataError: a cohort too small, or a slide that failed.

    Cost: about 70 s on two quiet cores for 40 slides, and 160 MB of disk.
    """
    if slides < 12 or slides % 4:
        raise DataError(f"A demo of {slides} slides: expected a multiple of 4, 12 at least")
    folder = Path(folder)
    say(f"Drawing {slides} synthetic slides (no tissue, no patient) in {folder}/slides")
    start = time.monotonic()
    cohort = write_cohort(folder, slides, workers, lambda done, n: tick("slides drawn", done, n))
    tour = Tour(folder, cohort, seconds={"draw slides": time.monotonic() - start})
    say(f"Finding tissue, cutting patches, encoding them with {ENCODER}")
    with tour.timed("extract features"):
        tour.extracted = _extract(tour, workers, tick)
    write_first_run(folder, cohort)
    say(f"Training {' and '.join(AGGREGATORS)} on each label")
    with tour.timed("train and evaluate"), _one_thread():
        tour.results = train_all(cohort, folder, tick)
    with tour.timed("save, load, verify"):
        _save_and_reload(tour, say)
    with tour.timed("predict one slide"):
        tour.predicted, tour.located = _predict(tour)
    say("Comparing models as wsizoo benchmark does")
    with tour.timed("compare models"):
        tour.compared = compare(folder, workers, tick)
    if tour.compared is None:
        say("Left out: it needs pip install 'wsizoo[train]'")
    write_csv(folder / "results.csv", [r.row() for r in tour.results], COLUMNS)
    write_page(tour)
    return tour


def train_all(cohort: Sequence[CohortSlide], folder: Path, tick: Tick) -> list[Scored]:
    """Train each aggregator on each label; scores are of the held-out slides."""
    bags = {slide.name: read_bag(_features(folder, slide)) for slide in cohort}
    results: list[Scored] = []
    for label in CLASSES:
        for aggregator in AGGREGATORS:
            tick("models trained", len(results), len(CLASSES) * len(AGGREGATORS))
            results.append(_train(label, aggregator, cohort, bags))
    return results


def _train(
    label: str, aggregator: str, cohort: Sequence[CohortSlide], bags: dict[str, Bag]
) -> Scored:
    def part(which: str) -> list[Bag]:
        return [
            bags[s.name].replace(target={"label": getattr(s, label)})
            for s in cohort
            if s.part == which
        ]

    overrides = [f"head.classes=[{','.join(CLASSES[label])}]"]
    if aggregator != "abmil":
        overrides.append(f"aggregator={aggregator}")
    model = build(MODEL, *overrides, seed=0)
    history = fit(model, part("train"), epochs=EPOCHS, seed=0)
    test = part("test")
    with torch.inference_mode():
        logits = torch.stack([model(bag).logits for bag in test])  # (n, 2)
    truth = np.array([getattr(s, label) for s in cohort if s.part == "test"])
    scores = (logits[:, 1] - logits[:, 0]).double().numpy()
    return Scored(label, aggregator, model, history.losses, truth, scores, logits.argmax(1).numpy())


def _extract(tour: Tour, workers: int, tick: Tick) -> list[Extracted]:
    done = 0

    def after(result: Extracted) -> None:
        nonlocal done
        done += 1
        tick("slides encoded", done, len(tour.cohort))

    slides = [slide.slide for slide in tour.cohort]
    out = tour.folder / "features"
    found = extract(slides, ENCODER, out, after_slide=after, workers=workers, overwrite=True)
    failed = [result for result in found if result.reason]
    if failed:
        raise DataError(f"slide {failed[0].slide_id} failed: {failed[0].reason}")
    return found


def _save_and_reload(tour: Tour, say: Say) -> None:
    """Save the tumour model, load it back, and see that it still says the same."""
    scored = tour.results[0]
    folder = save(
        scored.model, tour.folder / "model", training=training_facts(scored), overwrite=True
    )
    again = load(str(folder.absolute()))
    bag = read_bag(_features(tour.folder, tour.cohort[0]))
    with torch.inference_mode():
        before, after = scored.model(bag).logits, again(bag).logits
    if not torch.equal(before, after):
        raise DataError(
            f"the model reloaded from '{folder}' gives {after}, before it gave {before}"
        )
    verify(str(folder.absolute()))
    say(f"Saved, reloaded and verified {folder}")


def training_facts(scored: Scored) -> dict[str, object]:
    """What the card of a demo model states."""
    row = scored.row()
    return {
        "data": "synthetic demo slides of wsizoo, drawn from random numbers",
        "result": f"AUC {row['AUC']} ({row['95 % interval']}), "
        f"{row['test slides']} held-out slides",
        "limits": "A toy trained on synthetic slides. It says nothing about real tissue.",
    }


def _predict(tour: Tour) -> tuple[Predicted, Located]:
    """The first held-out slide with tumour, from its pixels."""
    slide = next(s for s in tour.cohort if s.part == "test" and s.tumour)
    model, out = str((tour.folder / "model").absolute()), tour.folder / "prediction"
    (result,) = predict(slide.slide, model, out, overwrite=True)
    if result.reason:
        raise DataError(f"predicting {slide.name} failed: {result.reason}")
    return result, locate(result, slide)


def locate(predicted: Predicted, slide: CohortSlide) -> Located:
    """Hold the patch scores of a predicted slide against the tumour drawn in its cells."""
    scores = np.loadtxt(predicted.files["scores"], delimiter=",", skiprows=1, usecols=2, ndmin=1)
    column, row = read_bag(predicted.files["features"]).grid().numpy().T
    share = np.load(slide.truth)[row, column]  # (N,), of the cell that each patch is
    clear = (share >= TUMOUR_CELL) | (share == 0)
    truth = (share[clear] >= TUMOUR_CELL).astype(np.int64)
    auc = roc_auc(truth, scores[clear])
    return Located(slide.name, auc, int(truth.sum()), int((truth == 0).sum()))


def _features(folder: Path, slide: CohortSlide) -> Path:
    return folder / "features" / f"{slide.name}.h5"


@contextmanager
def _one_thread() -> Iterator[None]:
    """These models are so small that threads only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
