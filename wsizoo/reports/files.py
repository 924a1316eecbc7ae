"""The files of a finished run, as a report reads them."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsizoo.errors import DataError
from wsizoo.prediction_files import COLUMNS, PATIENTS, PREDICTIONS, Row, read_rows
from wsizoo.yaml_data import read_yaml

CELL = re.compile(r"fold(\d+)-seed(\d+)")  # a run of several


@dataclass(frozen=True)
class RunFiles:
    """What one run left.

    Args:
        facts: run.json. metrics: metrics.json. environment: environment.json.
        config: config.yaml with paths as `shown_path` gives them, {} of an evaluation.
        epochs: epochs.csv, [] where nothing was trained.
        slides, patients: predictions.csv and predictions_patients.csv, rows of all parts.
        part: which rows are reported, "test", or "val" where nothing was kept for a test.
    """

    folder: Path
    facts: Mapping[str, Any]
    metrics: Mapping[str, Any]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    epochs: Sequence[Mapping[str, str]] = field(repr=False)
    slides: Sequence[Row] = field(repr=False)
    patients: Sequence[Row] = field(repr=False)
    part: str

    @property
    def task(self) -> str:
        """Of `COLUMNS`."""
        return str(self.facts["task"])

    @property
    def classes(self) -> list[str]:
        """Names of classes; [] for other tasks."""
        return [str(name) for name in self.facts.get("classes") or []]

    @property
    def level(self) -> str:
        """What was measured, "patient" or "slide"."""
        return str(self.metrics.get("level", "slide"))

    def reported(self) -> list[Row]:
        """Rows of the reported part, one a patient or slide, as they were measured."""
        of_level = self.patients if self.level == "patient" else self.slides
        return [row for row in of_level if row["part"] == self.part]

    def reported_slides(self) -> list[Row]:
        """Rows of the reported part, one a slide."""
        return [row for row in self.slides if row["part"] == self.part]

    def measured(self, part: str = "") -> dict[str, dict[str, Any]]:
        """Measures of a part (the reported one) with their intervals, by name."""
        return dict(self.metrics.get(part or self.part) or {})


def cells_of(run: Path) -> list[Path]:
    """The runs that a folder of several holds, by fold and seed."""
    found = [(CELL.fullmatch(path.name), path) for path in run.iterdir() if path.is_dir()]
    keyed = [((int(m[1]), int(m[2])), path) for m, path in found if m]
    return [path for _, path in sorted(keyed)]


def check_not_benchmark(folder: Path) -> None:
    """Raise DataError for the folder of a benchmark, which has a page of its own."""
    if (folder / "cells").is_dir() and not (folder / "run.json").exists():
        raise DataError(
            f"'{folder}' is the folder of a benchmark, expected that of a run. wsizoo benchmark "
            f"CONFIG -o {folder} keeps what is finished and writes its benchmark.html anew; each "
            f"run's report: wsizoo report {folder / 'cells'}/RUN"
        )


def read_run(folder: Path) -> RunFiles:
    """Read the files of one run.

    Raises:
        DataError: a file is missing, empty or damaged, or holds another task's columns.
    """
    facts, metrics = read_object(folder / "run.json"), read_object(folder / "metrics.json")
    if facts.get("task") not in COLUMNS:
        raise DataError(
            f"'{folder / 'run.json'}' states the task {facts.get('task')!r}, expected one of "
            f"{', '.join(COLUMNS)}"
        )
    slides = _predictions(folder / PREDICTIONS, facts["task"])
    by_patient = metrics.get("level") == "patient"
    config = folder / "config.yaml"
    environment, epochs = folder / "environment.json", folder / "epochs.csv"
    return RunFiles(
        folder=folder,
        facts=facts,
        metrics=metrics,
        config=_config(config) if config.exists() else {},
        environment=read_object(environment) if environment.exists() else {},
        epochs=_epochs(epochs) if epochs.exists() else [],
        slides=slides,
        patients=_predictions(folder / PATIENTS, facts["task"]) if by_patient else [],
        part=_part(folder, slides),
    )


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a run. Raises DataError: missing or damaged."""
    try:
        found = json.loads(_text(path))
    except ValueError as error:
        raise DataError(f"'{path}' is damaged ({error}). {_again(path)}") from None
    if not isinstance(found, dict):
        raise DataError(f"'{path}' holds no JSON object. {_again(path)}")
    return found


def _predictions(path: Path, task: str) -> list[Row]:
    try:
        rows = read_rows(path, task)
    except DataError as error:
        raise DataError(f"{error}. {_again(path)}") from None
    if not rows:
        raise DataError(f"'{path}' holds no row. {_again(path)}")
    return rows


def _epochs(path: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader(_text(path).splitlines()))
    if not rows or "epoch" not in rows[0]:
        raise DataError(f"'{path}' holds no epoch. {_again(path)}")
    return rows


def _part(folder: Path, rows: Sequence[Row]) -> str:
    parts = {row["part"] for row in rows}
    for part in ("test", "val"):
        if part in parts:
            return part
    raise DataError(
        f"'{folder / PREDICTIONS}' has rows of {', '.join(sorted(parts))} only: a report "
        "needs a test part. Give the split one: split.fractions=[0.7,0.15,0.15]"
    )


def _config(path: Path) -> dict[str, Any]:
    try:
        found = read_yaml(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' is damaged ({error}). {_again(path)}") from None
    return dict(_shown(found, path.parent)) if isinstance(found, dict) else {}


def _shown(value: Any, run: Path) -> Any:
    if isinstance(value, dict):
        return {key: _shown(one, run) for key, one in value.items()}
    if isinstance(value, list):
        return [_shown(one, run) for one in value]
    return shown_path(value, run) if isinstance(value, str) else value


def shown_path(text: str, run: Path) -> str:
    """A path as anybody may see it: of this computer no more than what is in a run or beside it.

    Args:
        text: other than an absolute path (or KEY=PATH) it stays as it is. run: folder of the run,
            or of one of several.

    Returns:
        The path relative to the run; of one that lies elsewhere `.../NAME`.
    """
    key = found[0] if (found := re.match(r"[\w.]+=", text)) else ""
    whole = Path(text.removeprefix(key))
    if not whole.is_absolute():
        return text
    top = _top(run.absolute())
    near = whole.is_relative_to(top.parent) and top.parent != Path(top.anchor)
    path = Path(os.path.relpath(whole, top)) if near else Path("...", whole.name)
    return key + path.as_posix()


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise DataError(
            f"no {path.name} that can be read in '{path.parent}'. {_again(path)}"
        ) from None
    if not text.strip():
        raise DataError(f"'{path}' is empty. {_again(path)}")
    return text


def _top(run: Path) -> Path:
    """The folder that -o named."""
    return run.parent if CELL.fullmatch(run.name) else run


def _again(path: Path) -> str:
    """What to type."""
    run = _top(path.parent)
    if not (run / "config.yaml").exists():
        return f"expected '{run}' to be what -o of wsizoo train or wsizoo evaluate named"
    return (
        "A finished run has it; the command that began the run goes on where it stopped: "
        f"wsizoo train {run / 'config.yaml'} -o {run}"
    )
