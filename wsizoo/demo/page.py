"""The report of the guided tour: `wsizoo-demo/index.html`."""

from __future__ import annotations

import shlex

import numpy as np

from wsizoo.demo.cohort import MPP, PATCH_SIZE, CohortSlide
from wsizoo.demo.comparing import FOLDER, PAGE
from wsizoo.demo.tour import CLASSES, COLUMNS, ENCODER, Scored, Tour
from wsizoo.slides.reader import Pixels, open_slide
from wsizoo.slides.store import read_thumbnail
from wsizoo.viz.heatmap import overlay, with_legend
from wsizoo.viz.report import Report

LARGE = 720  # CSS px


def write_page(tour: Tour) -> None:
    """Write `index.html`: the cohort, the results, one prediction, and what to type next."""
    report = Report(
        "wsizoo demo", "Synthetic slides: drawn from random numbers, no patient, no tissue"
    )
    _add_cohort(report, tour)
    _add_results(report, tour)
    _add_prediction(report, tour)
    _add_compared(report, tour)
    _add_next(report, tour)
    report.write(tour.folder / "index.html")


def _add_cohort(report: Report, tour: Tour) -> None:
    patches = [result.patches for result in tour.extracted]
    train = sum(slide.part == "train" for slide in tour.cohort)
    report.heading("The cohort").text(
        f"{len(tour.cohort)} slides of 2.7 mm at {MPP} um/px, {train} to train on and the rest "
        "held out, with two labels. tumour: a few nests of large nuclei hide among look-alikes. "
        "clustered: the same dark foci lie in two groups instead of apart, so that only position "
        "tells."
    )
    shown: dict[tuple[int, int], CohortSlide] = {}
    for slide in tour.cohort:
        shown.setdefault((slide.tumour, slide.clustered), slide)
    report.gallery([(_thumbnail(tour, s), f"{s.name}: {_names(s)}") for s in shown.values()])
    report.facts(
        {
            "Encoder": ENCODER,
            "Patches": f"{PATCH_SIZE} px at {MPP} um/px, {sum(patches)} in all, {min(patches)} to "
            f"{max(patches)} a slide",
            **{f"Seconds to {step}": f"{seconds:.0f}" for step, seconds in tour.seconds.items()},
        }
    )


def _add_results(report: Report, tour: Tour) -> None:
    report.heading("Results on held-out slides")
    report.table([result.row() for result in tour.results], COLUMNS)
    report.roc([result.curve() for result in tour.results])
    report.text(
        "tumour is easy on purpose. clustered cannot be learnt from a bag of patches without their "
        "positions: an AUC whose interval holds 0.5 is the right answer here; to do better is a "
        "spatial model's job."
    )
    epochs = list(range(1, len(tour.results[0].losses) + 1))
    report.curve("Training loss", epochs, {_title(r): r.losses for r in tour.results})


def _add_prediction(report: Report, tour: Tour) -> None:
    assert tour.predicted is not None and tour.located is not None
    name = tour.predicted.slide_id
    slide = next(s for s in tour.cohort if s.name == name)
    row = {k: v for k, v in tour.predicted.row.items() if k != "slide"}
    report.heading("One slide, predicted")
    report.facts({**row, "truth": _names(slide), "patch scores": tour.located})
    report.text(
        "The model was told of each training slide whether it holds tumour, never where. The AUC "
        "of its patch scores is the chance that a patch with tumour on half of it or more scores "
        "above a patch with none: 1 if the heatmap finds it, 0.5 if it points anywhere."
    )
    report.image(_thumbnail(tour, slide), f"{name}, a held-out slide", width=LARGE)
    report.image(
        tour.predicted.files["heatmap"],
        "What mattered to the model. Colours are ranks: half of the patches always lie above the "
        "middle, so look at where the brightest ones are",
        width=LARGE,
    )
    report.image(_truth(tour, slide), "Where tumour was drawn", width=LARGE)


def _add_compared(report: Report, tour: Tour) -> None:
    if tour.compared is None:
        return
    report.heading("Models compared")
    report.text(
        "The tumour label through wsizoo benchmark: trained from train.yaml, the best epoch chosen "
        "on a validation part, measured on the slides held out. Patients are resampled for the "
        "interval."
    )
    report.table(tour.compared, tuple(tour.compared[0]))
    report.files({"the whole comparison": f"{FOLDER}/{PAGE}"})


def _add_next(report: Report, tour: Tour) -> None:
    slide, model = (shlex.quote(str(p)) for p in (tour.cohort[-1].slide, tour.folder / "model"))
    report.heading("Next")
    report.text("Predict another slide with the model that was trained here:")
    report.code(f"wsizoo predict {slide} -m {model} -o out")
    report.text("Train a model of your choice on the demo's slides; train.yaml says how:")
    config, run = (shlex.quote(str(tour.folder / name)) for name in ("train.yaml", "run"))
    report.code(f"wsizoo train {config} -o {run}")
    report.text("Your own slides to features:")
    report.code("wsizoo extract SLIDES -o features")
    report.text("What else is in the zoo, and what works on this machine:")
    report.code("wsizoo list\nwsizoo doctor")


def _thumbnail(tour: Tour, slide: CohortSlide) -> Pixels:
    stored = read_thumbnail(tour.folder / "features" / f"{slide.name}.h5")
    assert stored is not None
    return stored[0]


def _truth(tour: Tour, slide: CohortSlide) -> Pixels:
    """The drawn share of tumour in each cell that has any, over the thumbnail."""
    image = _thumbnail(tour, slide)
    share = np.load(slide.truth)  # (24, 24), [row, column]
    rows, columns = np.nonzero(share > 0)
    coords = np.stack([columns, rows], 1) * PATCH_SIZE
    with open_slide(slide.slide) as opened:
        width, height = opened.size
    downsample = (width / image.shape[1], height / image.shape[0])
    picture = overlay(image, downsample, coords, PATCH_SIZE, share[rows, columns])
    return with_legend(
        picture, "0", "1", "share of tumour in a cell (cells without any: no colour)"
    )


def _names(slide: CohortSlide) -> str:
    return ", ".join(names[getattr(slide, label)] for label, names in CLASSES.items())


def _title(result: Scored) -> str:
    return f"{result.label}: {result.aggregator}"
