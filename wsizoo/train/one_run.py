"""One fold and one seed: train, predict, measure, save; what is finished is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import wsizoo
from wsizoo.augment import CoordinateAugmentation
from wsizoo.bag import Bag
from wsizoo.card import composition
from wsizoo.files import write_json
from wsizoo.fingerprint import Fingerprint
from wsizoo.interfaces import SlideOutput
from wsizoo.model import SlideModel
from wsizoo.prediction_files import Row
from wsizoo.publish import save
from wsizoo.registry import Registry
from wsizoo.reports.run import write_report
from wsizoo.spec import model_record
from wsizoo.splits.files import split_digest, split_rows, write_split
from wsizoo.splits.parts import Split
from wsizoo.train.cohort import Cohort
from wsizoo.train.config import RunConfig
from wsizoo.train.environment import environment, forget_peaks, peaks
from wsizoo.train.facts import name_as_trained, training_facts
from wsizoo.train.headers import check_features
from wsizoo.train.kept_rows import kept_rows
from wsizoo.train.making import make_model, task_loss_of
from wsizoo.train.predicting import (
    Censoring,
    Measuring,
    edges_of,
    level_of,
    predict_samples,
    row_of,
    told_of,
)
from wsizoo.train.run_folder import (
    ENVIRONMENT,
    FINISHED,
    METRICS,
    MODEL,
    REPORT,
    RUNNING,
    SPLIT,
    claim,
    is_finished,
    is_first,
    read_json,
    write_record,
    writing,
)
from wsizoo.train.samples import Samples
from wsizoo.train.steps import Note
from wsizoo.train.trainer import Trained, TrainSettings, train_model

Say = Callable[[str], None]
Tick = Callable[[str, int, int], None]
MEASURED = ("val", "test")  # parts that are predicted


@dataclass(frozen=True)
class OneRun:
    """What one fold and one seed are trained with. `config.seeds` holds that seed alone."""

    config: RunConfig
    cohort: Cohort
    split: Split
    fold: int
    seed: int
    registry: Registry

    @property
    def level(self) -> str:
        """What is measured: each slide, or each patient."""
        return level_of(self.cohort.task, self.config.data.patient_slides)

    def digests(self) -> dict[str, str]:
        """Of the slides with targets and features, and of which part each is in."""
        parts = split_digest(split_rows(self.split, self.cohort.slides))
        return {**self.cohort.digests, "split_digest": parts}

    def samples(self, part: str, edges: Sequence[float] | None) -> Samples:
        """The bags of a part; times as bins between `edges`."""
        return Samples(self.cohort, self.split.parts()[part], edges)

    def measuring(self, model: SlideModel) -> Measuring:
        """How its predictions are measured."""
        return Measuring(self.cohort.task, self.level, model, self.censoring())

    def censoring(self) -> Censoring | None:
        """Times and events of the training part."""
        if self.cohort.task != "survival":
            return None
        targets = [self.cohort.records[row].target for row in self.split.train]
        return [float(t["time"]) for t in targets], [int(t["event"]) for t in targets]


def train_one(run: OneRun, folder: Path, say: Say, tick: Tick) -> None:
    """Bring a folder to its end, from wherever it is. Raises as `run_training`."""
    digests = run.digests()
    if is_first():
        claim(folder, run.config)
    if is_finished(folder, digests):
        say(f"{folder.name} is finished already")
        if is_first() and not (folder / REPORT).is_file():
            with writing(folder):
                _report(folder)
        return
    forget_peaks()
    model = make_model(run.config, run.cohort, run.split.train, run.seed, run.registry)
    requires = check_features(model, run.cohort, untrained=run.config.init is None)
    record = _begun(run, model, requires, digests)
    if is_first():
        with writing(folder):
            _write_parts(run, folder)
            write_json(folder / ENVIRONMENT, environment(run.registry))
            write_record(folder, record, RUNNING)
    trained = _train(run, model, folder, say, tick)
    if not is_first():
        return
    model.requires, model.trained = requires, True
    rows, seconds = _predict(run, model, folder, tick)
    split = {"split_digest": digests["split_digest"]}
    with writing(folder):
        metrics = run.measuring(model).write(folder, rows, split)
        name_as_trained(model, run.config)
        facts = training_facts(run.config, run.cohort, run.split, record, metrics)
        save(model, folder / MODEL, training=facts, overwrite=True)
        write_record(folder, {**record, **_ended(trained, seconds, len(rows))}, FINISHED)
        _report(folder)
    say(told_of(metrics, folder.name, run.cohort.task))


def _begun(
    run: OneRun, model: SlideModel, requires: Fingerprint, digests: Mapping[str, str]
) -> dict[str, Any]:
    """What run.json tells from the start."""
    censoring = run.censoring()
    return {
        "version": wsizoo.__version__,
        "model": model.name,
        "composition": composition(model_record(model.spec), requires.to_json()),
        "task": run.cohort.task,
        "classes": list(model.classes) or None,
        "edges": edges_of(model),
        "censoring": censoring and dict(zip(("times", "events"), censoring, strict=True)),
        "encoder": requires.to_json(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seed": run.seed,
        "fold": run.fold,
        **digests,
        "slides": {part: len(rows) for part, rows in run.split.parts().items()},
    }


def _ended(trained: Trained, seconds: float, n: int) -> dict[str, Any]:
    """What run.json tells besides at the end: best epoch, times in s, memory in MiB."""
    spent = sum(float(row.get("seconds", 0.0)) for row in trained.history)
    return {
        "epochs": len(trained.history),
        "best_epoch": trained.best_epoch,
        "epoch": trained.epoch,
        "stopped_early": trained.stopped_early,
        "seconds": round(spent, 3),
        "seconds_per_slide": round(seconds / max(n, 1), 6),
        **peaks(),
    }


def _write_parts(run: OneRun, folder: Path) -> None:
    cohort = run.cohort
    write_split(folder / SPLIT, run.split, cohort.slides, cohort.patients, cohort.sites)


def _train(run: OneRun, model: SlideModel, folder: Path, say: Say, tick: Tick) -> Trained:
    config, edges = run.config, edges_of(model)
    val = run.samples("val", edges)
    augment = config.augment
    chosen_by_measure = bool(len(val)) and config.selection.metric != "loss"
    return train_model(
        model,
        run.samples("train", edges),
        val if len(val) else None,
        settings_of(config, run.seed),
        folder,
        task_loss=task_loss_of(config, run.cohort, run.split.train, model.head),
        augment=None if augment is None else CoordinateAugmentation(**vars(augment)),
        note=_note(run.cohort.task, val) if chosen_by_measure else None,
        measure=_measure_for_choice(run) if chosen_by_measure else None,
        say=say,
        tick=lambda done, total: tick("slides trained on", done, total),
    )


def settings_of(config: RunConfig, seed: int) -> TrainSettings:
    """The loop's settings of a config: its keys, which four groups hold and no two share."""
    optimiser, schedule = config.optimiser, config.schedule
    told: dict[str, Any] = {
        **vars(config.train),
        **vars(optimiser),
        **vars(schedule),
        **vars(config.selection),
    }
    told |= {"seed": seed, "optimiser": optimiser.name, "schedule": schedule.name}
    told = {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}
    return TrainSettings(**{one.name: told[one.name] for one in fields(TrainSettings)})


def _note(task: str, val: Samples) -> Note:
    """Rows of predictions of the slides that validation shows."""

    def note(model: SlideModel, index: int, bag: Bag, output: SlideOutput) -> Row:
        return row_of(val.samples[index], bag, "val", task, model, output)

    return note


def _measure_for_choice(run: OneRun) -> Callable[[SlideModel, Sequence[Row]], dict[str, float]]:
    """The measure of the validation part after an epoch that the choice is made by."""
    wanted = run.config.selection.metric

    def measure(model: SlideModel, rows: Sequence[Row]) -> dict[str, float]:
        return {wanted: run.measuring(model).measure(rows, resamples=0)[wanted].value}

    return measure


def _predict(run: OneRun, model: SlideModel, folder: Path, tick: Tick) -> tuple[list[Row], float]:
    rows: list[Row] = []
    seconds, workers, task = 0.0, run.config.train.workers, run.cohort.task
    with kept_rows(folder, model, run.cohort) as kept:
        for part in MEASURED:
            samples = run.samples(part, None)
            found, spent = predict_samples(samples, part, task, model, tick, workers, kept)
            rows += found
            seconds += spent
    return rows, seconds


def _report(folder: Path) -> None:
    """report.html; a run that kept no slides to measure has none."""
    if not {"test", "val"}.isdisjoint(read_json(folder / METRICS)):
        write_report(folder)
