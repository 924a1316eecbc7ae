"""report.html of a run, or of a folder of runs: one file, from the files that training left."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from wsizoo.errors import DataError
from wsizoo.measures.measured import ALIKE
from wsizoo.measures.names import MAIN, UNDEFINED, title
from wsizoo.reports.files import RunFiles, cells_of, check_not_benchmark, read_run, shown_path
from wsizoo.reports.numbers import PAGE, PARTS, add_measures, add_runs
from wsizoo.reports.sections import Shown, add_predictions
from wsizoo.reports.selector import add_diagnosis
from wsizoo.reports.slides import add_slides
from wsizoo.viz.charts import curve_chart
from wsizoo.viz.report import Report
from wsizoo.viz.svg import SERIES

FEW = 100  # patients; of fewer the report says that intervals are wide
FEW_OF_A_CLASS = 10
FEW_DIFFERENT = 5  # values of runs that are told one by one
SPANNED = frozenset(
    {"Parameters", "Slides", "Training time", "Peak memory", "Peak memory of the GPU"}
)  # of several runs: from the least to the most
NUMBER = re.compile(r"\d[\d,]*\d|\d")


def write_report(run: Path | str) -> Path:
    """Write RUN/report.html from the files of a run, or of a folder of folds and seeds.

    Returns:
        The page; it opens from file:// and fetches nothing.

    Raises:
        DataError: a file is missing, empty or damaged; lifelines is not installed.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise DataError(f"no run at '{folder}', expected the folder that -o named: wsizoo train")
    check_not_benchmark(folder)
    cells = cells_of(folder)
    report = _report_of_runs(folder, cells) if cells else _report_of_one(read_run(folder))
    report.write(folder / PAGE)
    return folder / PAGE


def _report_of_one(run: RunFiles) -> Report:
    rows = run.reported()
    report = Report(str(run.facts.get("model", run.folder.name)), _subtitle(run, len(rows)))
    report.heading("Results")
    _add_part_note(report, run)
    add_measures(report, run)
    _add_what(report, [run])
    _add_learning(report, run)
    add_predictions(report, Shown(run.task, run.classes, {run.folder.name: rows}, run.level))
    add_diagnosis(report, run.folder)
    _add_limits(report, [run])
    add_slides(report, {"": run})
    _add_config(report, run)
    return report


def _report_of_runs(folder: Path, cells: Sequence[Path]) -> Report:
    runs = {cell.name: read_run(cell) for cell in cells}
    first, *others = runs.values()
    for other in others:
        if (other.task, other.classes, other.part) != (first.task, first.classes, first.part):
            raise DataError(
                f"'{other.folder}' is of another task, other classes or another part than "
                f"'{first.folder}': runs of one report must agree. Move it elsewhere"
            )
    rows = {name: run.reported() for name, run in runs.items()}
    tested = {row[first.level] for of_run in rows.values() for row in of_run}
    subtitle = f"{_subtitle(first, len(tested))}, {len(runs)} runs"
    report = Report(str(first.facts.get("model", folder.name)), subtitle)
    report.heading("Results")
    _add_part_note(report, first)
    add_runs(report, folder, runs)
    _add_what(report, list(runs.values()))
    _add_learning_of_runs(report, runs)
    add_predictions(report, Shown(first.task, first.classes, rows, first.level))
    add_diagnosis(report, folder)
    _add_limits(report, list(runs.values()))
    add_slides(report, runs)
    _add_config(report, first)
    return report


def _subtitle(run: RunFiles, n: int) -> str:
    return f"{run.task.capitalize()}, {PARTS[run.part]}: {n} {run.level}s"


def _add_part_note(report: Report, run: RunFiles) -> None:
    if run.part != "test":
        report.text(
            "There is no test part: these numbers are of the validation part, which chose the "
            "epoch. They are too good to be reported as results."
        )


def _add_what(report: Report, runs: Sequence[RunFiles]) -> None:
    """What was run, on what, with what; where runs differ, all that they say."""
    told = [_what(run) for run in runs]
    names = dict.fromkeys(name for one in told for name in one)
    each = {name: dict.fromkeys(one[name] for one in told if name in one) for name in names}
    report.heading("What was run")
    report.facts({name: _of_all(name, list(values)) for name, values in each.items()})


def _of_all(name: str, values: Sequence[str]) -> str:
    """The different values of several runs as one text."""
    if name in SPANNED and len({NUMBER.sub("", value) for value in values}) == 1:
        columns = zip(*(NUMBER.findall(value) for value in values), strict=True)
        spans = iter([_span(column) for column in columns])
        return NUMBER.sub(lambda _: next(spans), values[0])
    if len(values) > FEW_DIFFERENT:
        return f"{len(values)} different"
    return ("; " if any(", " in value for value in values) else ", ").join(values)


def _span(numbers: Sequence[str]) -> str:
    ordered = sorted(numbers, key=lambda text: int(text.replace(",", "")))
    return ordered[0] if ordered[0] == ordered[-1] else f"{ordered[0]} to {ordered[-1]}"


def _what(run: RunFiles) -> dict[str, str]:
    """Names and values of one run; what its files do not state is left out."""
    facts, made = run.facts, run.environment
    data = run.config.get("data") or _shown_paths(facts.get("data") or {}, run.folder)
    libraries = {**(made.get("plugins") or {}), **(made.get("libraries") or {})}
    versions = {"wsizoo": facts.get("version"), **libraries}
    slides = facts.get("slides") or {}
    shown = {
        "Model": facts.get("model"),
        "Composition": " -> ".join(facts.get("composition") or ()),
        "Evaluated": shown_path(str(facts.get("evaluated") or ""), run.folder),
        "Parameters": _unit(facts.get("parameters"), ",", ""),
        "Recipe": run.config.get("recipe"),
        "Starts from": run.config.get("init"),
        "Table": data.get("table"),
        "Features": data.get("features"),
        "Encoder": _encoder(facts.get("encoder")),
        "Classes": ", ".join(run.classes),
        "Slides": ", ".join(f"{n} {part}" for part, n in slides.items()),
        "Split": _short(facts.get("split_digest")),
        "Data": _short(facts.get("data_digest")),
        "Seed": facts.get("seed"),
        "Fold": facts.get("fold"),
        "Training time": _unit(facts.get("seconds"), ".0f", " s"),
        "Peak memory": _unit(facts.get("peak_mb"), ".0f", " MiB"),
        "Peak memory of the GPU": _unit(facts.get("gpu_peak_mb"), ".0f", " MiB"),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "Python": " on ".join(str(made[k]) for k in ("python", "platform") if made.get(k)),
    }
    return {name: str(value) for name, value in shown.items() if value not in (None, "")}


def _shown_paths(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What an evaluation says of its data, as `RunFiles.config` has that of a run."""
    return {
        key: shown_path(value, folder) if isinstance(value, str) else value
        for key, value in data.items()
    }


def _add_learning(report: Report, run: RunFiles) -> None:
    """Loss and other measures by epoch."""
    report.heading("Learning curves")
    if not run.epochs:
        report.text("There is no epochs.csv: here a model was evaluated, not trained.")
        return
    columns = {key: [_float(row.get(key)) for row in run.epochs] for key in run.epochs[0]}
    epochs = columns.pop("epoch")
    losses = {
        name: columns.pop(key)
        for name, key in (("training", "train_loss"), ("validation", "val_loss"))
        if key in columns
    }
    best = run.facts.get("best_epoch")
    mark = None if best is None else (float(best), f"kept: epoch {best}")
    kept = "" if best is None else " The upright line is the epoch whose weights were kept."
    drawn = []
    if any(math.isfinite(v) for values in losses.values() for v in values):
        drawn.append((curve_chart("Loss", epochs, losses, mark=mark), f"Loss by epoch.{kept}"))
    for key, values in columns.items():
        if key.startswith("val_") and any(map(math.isfinite, values)):
            name = title(key.removeprefix("val_"))
            caption = f"{name} of the validation part by epoch.{kept}"
            drawn.append((curve_chart(name, epochs, {"validation": values}, mark=mark), caption))
    report.pair(drawn)


def _add_learning_of_runs(report: Report, runs: Mapping[str, RunFiles]) -> None:
    """Loss on the validation part, a line a run, while they can be told apart."""
    losses = {
        name: {_float(row["epoch"]): _float(row.get("val_loss")) for row in run.epochs}
        for name, run in runs.items()
    }
    known = {n: of for n, of in losses.items() if any(map(math.isfinite, of.values()))}
    if not 0 < len(known) <= SERIES:
        return
    epochs = sorted({epoch for of_run in known.values() for epoch in of_run})
    lines = {name: [of_run.get(e, math.nan) for e in epochs] for name, of_run in known.items()}
    report.heading("Learning curves")
    caption = "Loss of the validation part by epoch. Training losses are in the runs' own reports."
    report.figure(curve_chart("Loss", epochs, lines), caption)


def _add_limits(report: Report, runs: Sequence[RunFiles]) -> None:
    first = runs[0]
    patients = {row["patient"] for run in runs for row in run.reported_slides()}
    report.heading("Limits")
    report.text("Research only. Not validated for diagnosis.")
    if len(patients) < FEW:
        report.text(
            f"{len(patients)} patients were tested: intervals are wide, and models whose intervals "
            "overlap much are not told apart. Compare two models by a paired test instead."
        )
    labels = [row["label"] for row in first.reported()] if first.task == "classification" else []
    rare = [c for c in first.classes if labels and labels.count(c) < FEW_OF_A_CLASS]
    if rare:
        report.text(
            f"Fewer than {FEW_OF_A_CLASS} {first.level}s"
            + (" a run" if len(runs) > 1 else "")
            + f" have the label {', '.join(rare)}: what is measured of such a class can change "
            "with a single one."
        )
    report.text(
        "Intervals draw patients anew from those that were tested. They say nothing of other "
        "hospitals, scanners or stainings, and leave out that training again gives another model."
    )
    main = MAIN[first.task]
    if lacking := sum(run.measured().get(main, {}).get("value") is None for run in runs):
        whose = f" of {lacking} of {len(runs)} runs" if len(runs) > 1 else ""
        report.text(f"{title(main)}{whose} is not defined (n/a): {UNDEFINED[first.task]}.")
    measured = [one for run in runs for one in run.measured().values()]
    if any(one.get("method") == ALIKE for one in measured):
        report.text(
            f"Measures without an interval ({ALIKE}) are not certain: where every tested patient "
            "was right, drawing them anew finds no wrong one."
        )
    if len(runs) > 1:
        report.text(
            "Runs that share data are not independent: their standard deviation is no standard "
            "error. Probabilities and risks of different runs are not on one scale."
        )


def _add_config(report: Report, run: RunFiles) -> None:
    if run.config:
        report.heading("Configuration")
        report.code(yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True))


def _unit(value: Any, style: str, unit: str) -> str | None:
    return f"{value:{style}}{unit}" if isinstance(value, int | float) else None


def _short(digest: Any) -> str | None:
    return f"sha256 {str(digest)[:16]}" if digest else None


def _encoder(told: Any) -> str | None:
    """A fingerprint as text."""
    if isinstance(told, Mapping):
        return ", ".join(f"{k} {v}" for k, v in told.items() if v not in (None, "", [], {}))
    return None if told is None else str(told)


def _float(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
