"""evaluate_run: a trained model on another part, or on other data, measured as a run is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wsizoo
from wsizoo.card import composition
from wsizoo.errors import DataError, SpecError
from wsizoo.extraction.folders import check_device, check_writable
from wsizoo.files import write_json
from wsizoo.model import SlideModel
from wsizoo.prediction_files import Row
from wsizoo.publish import model_folder
from wsizoo.registry import Registry, default
from wsizoo.reports.run import write_report
from wsizoo.reports.slides import HEATMAPS
from wsizoo.spec import model_record
from wsizoo.splits.files import read_split, split_digest
from wsizoo.train.cohort import Cohort, read_cohort
from wsizoo.train.config import RunConfig, load_config
from wsizoo.train.environment import environment, forget_peaks, peaks
from wsizoo.train.headers import check_features
from wsizoo.train.heatmaps import draw_heatmaps
from wsizoo.train.kept_rows import kept_rows
from wsizoo.train.predicting import (
    Censoring,
    Measuring,
    edges_of,
    level_of,
    predict_samples,
    told_of,
)
from wsizoo.train.processes import found_device
from wsizoo.train.run import warnings_of
from wsizoo.train.run_folder import (
    CONFIG,
    ENVIRONMENT,
    FINISHED,
    RUN,
    SPLIT,
    read_record,
    write_record,
    writing,
)
from wsizoo.train.samples import Samples
from wsizoo.train.seen import ALL, chosen_parts, parts_of_others
from wsizoo.weights import weights_digest
from wsizoo.zoo import load

Say = Callable[[str], None]
Parts = Mapping[str, Sequence[int]]
Tick = Callable[[str, int, int], None]


MANY = 100  # slides, of which each tenth is told


def _nothing(text: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class _Source:
    """What is evaluated: its model, its config where it is a run, and that run's record."""

    name: str
    folder: Path | None
    model: SlideModel
    config: RunConfig
    record: dict[str, Any]


def evaluate_run(
    source: Path | str,
    out: Path | str,
    overrides: Sequence[str] = (),
    *,
    part: str | None = None,
    device: str = "auto",
    heatmaps: int = 0,
    overwrite: bool = False,
    say: Say = _nothing,
    tick: Tick = lambda what, done, total: None,
    registry: Registry | None = None,
) -> Path:
    """Predict and measure, and write what a run writes but for what is of training.

    Interrupted, the same call goes on where it was: a slide is not predicted again while model,
    table and its files are what they were.

    Args:
        source: folder of a run, which says what its data were; or a model as `wsizoo.load` takes,
            with the data in `overrides`.
        out: new, or that of the same evaluation: this model on these slides.
        overrides: what the config says of the data: `"data.table=other.csv"`,
            `"data.features=other"`.
        part: of the run's split: "test" (default), "val", or "all" three. In a changed table
            slides that the split knows, itself or by their patients, stay what they are, and what
            it does not know is of the test part; what is left out is told. Of data that it knows
            nothing of all slides are taken, as a test part.
        device: "auto": a GPU where there is one.
        heatmaps: of so many slides, see `wsizoo.train.heatmaps.draw_heatmaps`; those of an earlier
            evaluation are removed.
        overwrite: replace another evaluation in `out`.

    Returns:
        The folder.

    Raises:
        DataError: a part of other data, a label that is none of the model's classes, features that
            do not fit; a folder that holds something else, or another evaluation. SpecError: no
            table, overrides that are not of the data.
    """
    registry, out, device = registry or default(), Path(out), found_device(device)
    check_device(device)
    found = _source(source, overrides, registry)
    model = found.model.to(device)
    task = _task_of(found)
    cohort = read_cohort(found.config.data, task=task, classes=list(model.classes))
    for line in warnings_of(cohort, []):
        say(line)
    known, parts, censoring = _parts(found, cohort, part, say)
    check_features(model, cohort)
    _check_out(out, same := _identity(found, cohort, parts), overwrite)
    rows, seconds = _predict(found, cohort, parts, out, say, tick)
    _remove_heatmaps(out)
    measuring = Measuring(task, level_of(task, found.config.data.patient_slides), model, censoring)
    left = {"left_out": _left_out(cohort, known, parts)}
    record = _record(found, cohort, parts, seconds / max(len(rows), 1)) | same | left
    with writing(out):
        metrics = measuring.write(out, rows, {"data_digest": cohort.digest, **left})
        write_json(out / ENVIRONMENT, environment(registry))
        write_record(out, record, FINISHED)
        write_report(out)
    say(told_of(metrics, found.name, task))
    if heatmaps:
        draw_heatmaps(out, cohort, model, heatmaps, tick)
        write_report(out)
    return out


def _task_of(found: _Source) -> str:
    task = str(getattr(found.model.head, "task", None) or found.config.data.task or "")
    if not task:
        raise SpecError(
            f"'{found.model.name}' does not say its task. Say it: data.task=classification"
        )
    return task


def _remove_heatmaps(out: Path) -> None:
    """Those of an earlier evaluation, of another model or table."""
    for old in (out / HEATMAPS).glob("*.png"):
        old.unlink()


def _left_out(cohort: Cohort, known: Parts, measured: Parts) -> dict[str, int]:
    """How many slides of the table are not measured: of which part, or "dropped" by data.missing.

    "no part": of those that the run's split leaves out itself.
    """
    counts = {name: len(rows) for name, rows in known.items() if name not in measured}
    counts["no part"] = len(cohort) - sum(map(len, known.values()))
    counts["dropped"] = len(cohort.dropped)
    return {name: n for name, n in counts.items() if n}


def _record(
    found: _Source, cohort: Cohort, parts: Parts, seconds_per_slide: float
) -> dict[str, Any]:
    """run.json of an evaluation."""
    model = found.model
    return {
        "version": wsizoo.__version__,
        "model": model.name,
        "composition": composition(model_record(model.spec), model.requires.to_json()),
        "task": cohort.task,
        "classes": list(model.classes) or None,
        "edges": edges_of(model),
        "encoder": model.requires.to_json(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": vars(found.config.data),
        "split_digest": found.record.get("split_digest"),
        "trained_on": found.record.get("data_digest"),
        "slides": {name: len(chosen) for name, chosen in parts.items()},
        "seconds_per_slide": round(seconds_per_slide, 6),
        **peaks(),
    }


def _identity(found: _Source, cohort: Cohort, measured: Parts) -> dict[str, Any]:
    """What makes an evaluation this one: which model on which slides, as run.json tells it."""
    parts = [(cohort.slides[row], part) for part, rows in measured.items() for row in rows]
    return {
        "evaluated": found.name,
        "weights_digest": weights_digest(found.model.inference_state()),
        **cohort.digests,
        "parts": list(measured),
        "measured_digest": split_digest(parts),
    }


def _source(source: Path | str, overrides: Sequence[str], registry: Registry) -> _Source:
    folder = Path(source)
    if others := [text for text in overrides if not text.startswith(("data.", "train.workers="))]:
        raise SpecError(
            f"'{others[0]}' changes nothing: an evaluation takes what a run says of its data, "
            "data.KEY=VALUE, and train.workers. To train it otherwise: wsizoo train"
        )
    if not (folder / RUN).is_file() and not (folder / CONFIG).is_file():
        if not any(text.startswith("data.table=") for text in overrides):
            raise SpecError(
                f"'{source}' is a model and no run, so on which data? Say it: data.table=T.csv "
                "data.features=FOLDER"
            )
        config = load_config({"model": str(source)}, overrides)
        return _Source(str(source), None, load(source, registry=registry), config, {})
    config = load_config(folder / CONFIG, overrides)
    model = load(model_folder(folder).absolute(), registry=registry)
    return _Source(folder.name, folder, model, config, read_record(folder))


def _parts(
    found: _Source, cohort: Cohort, part: str | None, say: Say
) -> tuple[Parts, Parts, Censoring | None]:
    """Rows of the cohort by the name of their part, all and those that are to be measured.

    And times and events that the run trained on.

    Of other data these say nothing: it tells itself how its patients are censored.
    """
    known = None
    if found.folder is not None:
        if cohort.digest == found.record.get("data_digest"):
            say = _nothing  # the run's own parts are no news
            (split,) = read_split(found.folder / SPLIT, cohort.slides, cohort.patients)
            known = split.parts()
        else:
            known = parts_of_others(found.folder / SPLIT, cohort, say)
    if known is None:
        if part not in (None, ALL):
            raise DataError(
                f"part '{part}' is of the data that '{found.name}' was trained on; these are "
                "others, of which all slides are taken: leave --part out"
            )
        every = {"test": list(range(len(cohort.records)))}
        return every, every, None
    chosen = chosen_parts(known, part, found.name, say)
    censoring = found.record.get("censoring")
    return known, chosen, censoring and (censoring["times"], censoring["events"])


def _check_out(out: Path, same: Mapping[str, Any], overwrite: bool) -> None:
    """Raise DataError where something else than this evaluation would be written over."""
    check_writable(out)
    others = [path.name for path in out.iterdir() if not path.name.startswith(".")]
    record = read_record(out)
    if others and "evaluated" not in record:
        raise DataError(f"'{out}' holds {others[0]} and is no evaluation; choose another: -o OUT")
    differing = [key for key, value in same.items() if record.get(key) != value]
    if others and differing and not overwrite:
        key = differing[0]
        raise DataError(
            f"'{out}' holds another evaluation: {key} was {record.get(key)!r:.40}, is "
            f"{same[key]!r:.40}. Choose another folder, -o OUT, or replace it: --overwrite"
        )


def _predict(
    found: _Source,
    cohort: Cohort,
    parts: Parts,
    out: Path,
    say: Say,
    tick: Tick,
) -> tuple[list[Row], float]:
    """All rows, of which those that an interrupted evaluation left in `out` are not made again."""
    forget_peaks()
    rows: list[Row] = []
    seconds, workers = 0.0, found.config.train.workers
    with kept_rows(out, found.model, cohort) as kept:
        if kept.found:
            say(f"Going on: {len(kept.found)} slides were predicted before the interruption")
        for part, chosen in parts.items():
            told = _saying_tenths(say, tick)
            samples = Samples(cohort, chosen)
            each, spent = predict_samples(
                samples, part, cohort.task, found.model, told, workers, kept
            )
            rows += each
            seconds += spent
    return rows, seconds


def _saying_tenths(say: Say, tick: Tick) -> Tick:
    """A tick that also says each tenth of many slides, for logs, where no bar is seen."""

    def told(what: str, done: int, total: int) -> None:
        tick(what, done, total)
        if total >= MANY and done < total and done * 10 // total > (done - 1) * 10 // total:
            say(f"{done} of {total} {what}")

    return told
