"""A trained model on the samples of a cohort: rows, measures, and the files of both."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wsizoo.bag import Bag
from wsizoo.files import write_json
from wsizoo.interfaces import SlideOutput
from wsizoo.measures.bootstrap import RESAMPLES
from wsizoo.measures.measured import Measured, to_json
from wsizoo.measures.names import MAIN, UNDEFINED, title
from wsizoo.model import SlideModel
from wsizoo.prediction_files import PATIENTS, PREDICTIONS, Row, write_rows
from wsizoo.train.kept_rows import KeptRows
from wsizoo.train.loading import read_ahead
from wsizoo.train.measuring import measure_rows
from wsizoo.train.predictions import by_patient, one_target_each, prediction
from wsizoo.train.run_folder import METRICS
from wsizoo.train.samples import Sample, Samples

Tick = Callable[[str, int, int], None]
PARTS = ("test", "val", "train")
Censoring = tuple[list[float], list[int]]  # times, events


def level_of(task: str, patient_slides: str) -> str:
    """What is measured, "slide" or "patient". A survival time is a patient's, so it counts once."""
    return "slide" if patient_slides == "each" and task != "survival" else "patient"


@dataclass(frozen=True)
class Measuring:
    """How rows of predictions are measured.

    Args:
        level: "slide", or "patient": the mean over a patient's slides.
        censoring: times and events of the training part.
    """

    task: str
    level: str
    model: SlideModel
    censoring: Censoring | None = None

    def measure(self, rows: Sequence[Row], resamples: int = RESAMPLES) -> dict[str, Measured]:
        """Measures of rows of one part."""
        return measure_rows(
            by_patient(rows, self.task) if self.level == "patient" else rows,
            self.task,
            classes=list(self.model.classes),
            edges=edges_of(self.model),
            censoring=self.censoring,
            resamples=resamples,
        )

    def write(self, folder: Path, rows: Sequence[Row], facts: Mapping[str, Any]) -> dict[str, Any]:
        """predictions.csv, predictions_patients.csv and metrics.json, which is returned."""
        write_rows(folder / PREDICTIONS, rows)
        if one_target_each(rows, self.task):
            write_rows(folder / PATIENTS, by_patient(rows, self.task))
        metrics: dict[str, Any] = {"level": self.level, **facts}
        for part in PARTS:
            of_part = [row for row in rows if row["part"] == part]
            if of_part:
                metrics[part] = to_json(self.measure(of_part))
        write_json(folder / METRICS, metrics)
        return metrics


def predict_samples(
    samples: Samples,
    part: str,
    task: str,
    model: SlideModel,
    tick: Tick = lambda what, done, total: None,
    workers: int = 2,
    kept: KeptRows | None = None,
) -> tuple[list[Row], float]:
    """Rows of predictions.csv of one part, and the seconds that the model took for them.

    Args:
        workers: threads that read ahead. kept: rows that are there, and where new ones go.
    """
    every = samples.samples
    found = {i: kept.row(part, sample) for i, sample in enumerate(every)} if kept else {}
    told = {i: one for i, one in found.items() if one is not None}
    wanted = [i for i in range(len(samples)) if i not in told]
    model.eval()
    ahead = read_ahead(samples, wanted, workers, lambda bag, _: bag)
    with torch.inference_mode(), closing(ahead) as reader:
        for i, bag in zip(wanted, reader, strict=True):
            start = time.perf_counter()
            row = row_of(every[i], bag, part, task, model, model(bag))
            told[i] = row, time.perf_counter() - start
            if kept:
                kept.add(part, every[i], *told[i])
            tick(f"{part} slides predicted", len(told), len(samples))
    return [told[i][0] for i in range(len(samples))], sum(spent for _, spent in told.values())


def row_of(
    sample: Sample, bag: Bag, part: str, task: str, model: SlideModel, output: SlideOutput
) -> Row:
    """The row of predictions.csv of one bag, with times as the table has them, not as bins."""
    found = prediction(task, model, output, {**(bag.target or {}), **sample.target})
    return {"slide": sample.name, "patient": sample.patient, "part": part, **found}


def edges_of(model: SlideModel) -> list[float] | None:
    """Right ends of a survival model's bins but the last; None: it has none."""
    edges = getattr(model.head, "edges", None)
    return None if edges is None else list(edges)


def told_of(metrics: Mapping[str, Any], whose: str, task: str) -> str:
    """One line of the first measures of the first part that there is, or why there are none."""
    part = next((name for name in PARTS if name in metrics), "")
    measured = metrics.get(part, {})
    shown = [
        f"{name.replace('_', ' ')} {measured[name]['value']:.3f}"
        for name in sorted(measured, key=lambda name: name not in MAIN.values())
        if measured[name]["value"] is not None
    ]
    if measured and measured.get(MAIN[task], {}).get("value") is None:
        shown.insert(0, f"{title(MAIN[task])} is not defined, {UNDEFINED[task]}")
    told = f"{part} {', '.join(shown[:3])}" if shown else "no test or validation slides"
    return f"{whose}: {told}"
