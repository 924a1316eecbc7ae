"""From a row of a table to what a slide is trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from wsizoo.errors import DataError, SpecError
from wsizoo.names import suggest
from wsizoo.tables import Table, is_nothing
from wsizoo.train.config import DataConfig

TASKS = ("classification", "survival", "regression", "segmentation")
TRUE, FALSE = ("1", "true", "yes"), ("0", "false", "no")
Target = Mapping[str, float | int]


class LackingError(DataError):
    """A row that has no target; such slides may be left out on request."""


class UnreadableError(DataError):
    """A row whose target cannot be understood; never left out."""


def target_columns(config: DataConfig, task: str) -> dict[str, str]:
    """Columns that a task reads: key of the config -> name in the table. Raises SpecError."""
    if task not in TASKS:
        raise SpecError(f"No task '{task}'. {suggest(task, TASKS, 'Tasks: ')} Say data.task=TASK")
    if task == "survival":
        seen = "event" if config.censorship is None else "censorship"
        return {"time": config.time, seen: getattr(config, seen)}
    return {"classification": {"label": config.label}, "regression": {"value": config.value}}.get(
        task, {}
    )


def target_of(
    row: Mapping[str, str], config: DataConfig, task: str, classes: Sequence[str]
) -> Target:
    """The target of a row: `label`, an index of `classes`; `time` and `event`; or `value`.

    Times are as the table has them, in its unit. Of segmentation it is empty: labels of patches lie
    in files.

    Raises:
        LackingError, UnreadableError.
    """
    cells = {key: row[name] for key, name in target_columns(config, task).items()}
    for key, cell in cells.items():
        if is_nothing(cell) and cell not in classes:
            raise LackingError(f"have no {key} (column {getattr(config, key)})")
    if task == "classification":
        if cells["label"] not in classes:
            raise LackingError(f"have a label that is not in data.classes ({', '.join(classes)})")
        return {"label": classes.index(cells["label"])}
    if task == "survival":
        time = _number("time", cells["time"])
        if time < 0:
            raise UnreadableError("have a negative time")
        if config.censorship is None:
            return {"time": time, "event": _flag("event", cells["event"])}
        return {"time": time, "event": 1 - _flag("censorship", cells["censorship"])}
    return {key: _number(key, cell) for key, cell in cells.items()}


def classes_of(table: Table, column: str, known: Sequence[str] = ()) -> tuple[str, ...]:
    """The classes in order: those that are `known`, else all labels of the table, sorted.

    Raises:
        DataError: fewer than two, or one twice.
    """
    found = list(known) or _sorted(row[column] for row in table.rows)
    if len(found) < 2 or len(set(found)) != len(found):
        raise DataError(
            f"table '{table.path}', column {column}: the classes are {found}, expected two or "
            "more, each once. Say which: data.classes=[normal,tumour]"
        )
    return tuple(found)


def _sorted(labels: Iterable[str]) -> list[str]:
    """Those that say something, each once; numbers by size."""
    found = {label for label in labels if not is_nothing(label)}
    numbers = all(label.isdecimal() for label in found)
    return sorted(found, key=lambda label: (int(label) if numbers else 0, label))


def _number(key: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UnreadableError(f"have a {key} that is no number, such as '{cell}'")
    return value


def _flag(key: str, cell: str) -> int:
    text = cell.lower().removesuffix(".0")
    if text not in TRUE + FALSE:
        raise UnreadableError(f"have {key} '{cell}', expected 1 or 0")
    return int(text in TRUE)
