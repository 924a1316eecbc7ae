"""What can be measured of a part, told before anything is trained by measuring made-up answers.

Which measures there are depends on the task, its classes and whether the head has bins of time;
which of them are defined depends on what is true of the slides. A model's answers change neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from wsizoo.errors import DataError, SpecError
from wsizoo.measures.names import MAIN, UNDEFINED, title
from wsizoo.names import suggest
from wsizoo.prediction_files import Row
from wsizoo.registry import Registry
from wsizoo.splits.parts import Split
from wsizoo.train.cohort import Cohort
from wsizoo.train.config import RunConfig
from wsizoo.train.making import has_bins
from wsizoo.train.measuring import measure_rows
from wsizoo.train.predicting import level_of
from wsizoo.train.predictions import COUNTS, by_patient


def check_choice(
    config: RunConfig, cohort: Cohort, splits: Sequence[Split], registry: Registry
) -> None:
    """See that every fold can choose its epoch as `selection` says.

    Raises:
        SpecError: the task has no such measure, the near one is named.
        DataError: no validation part, or one of which the measure is not defined.
    """
    wanted, binned = config.selection.metric, has_bins(config, registry)
    chooses = config.selection.checkpoint == "best" or config.train.patience is not None
    for fold, split in enumerate(splits):
        if chooses and not split.val:
            raise DataError(
                f"fold {fold} has no validation slides to choose the best epoch by. Give it some: "
                "split.val_fraction=0.15; or keep the last: selection.checkpoint=last "
                "train.patience=null"
            )
        if wanted == "loss" or not split.val:
            continue
        found = rehearsed(config, cohort, split.val, binned)
        if wanted not in found:
            hint = suggest(wanted, ["loss", *found], "Measures: ")
            raise SpecError(f"selection.metric is '{wanted}', which {cohort.task} lacks. {hint}")
        if chooses and math.isnan(found[wanted]):
            why = f": {UNDEFINED[cohort.task]}" if wanted == MAIN[cohort.task] else ""
            raise DataError(
                f"selection.metric is '{wanted}', which is not defined of the validation part of "
                f"fold {fold} ({len(split.val)} slides){why}. Give it more patients, or choose by "
                "the loss: selection.metric=loss"
            )


def cannot_be_measured(
    config: RunConfig, cohort: Cohort, splits: Sequence[Split], registry: Registry
) -> list[str]:
    """A line a fold whose main measure will not be defined."""
    main, binned, told = MAIN[cohort.task], has_bins(config, registry), []
    for fold, split in enumerate(splits):
        part, rows = ("test", split.test) if split.test else ("val", split.val)
        if rows and math.isnan(rehearsed(config, cohort, rows, binned)[main]):
            told.append(
                f"Warning: the {title(main)} of the {part} part of fold {fold} ({len(rows)} "
                f"slides) will not be defined: {UNDEFINED[cohort.task]}. Give it more patients"
            )
    return told


def rehearsed(
    config: RunConfig, cohort: Cohort, rows: Sequence[int], binned: bool
) -> dict[str, float]:
    """The measures of made-up answers, by name; NaN: not defined of these slides.

    Args:
        rows: of the cohort. binned: the head has bins of time.
    """
    made = [_row(cohort, row, (i + 1) / (len(rows) + 1), binned) for i, row in enumerate(rows)]
    level = level_of(cohort.task, config.data.patient_slides)
    measured = measure_rows(
        by_patient(made, cohort.task) if level == "patient" else made,
        cohort.task,
        classes=cohort.classes,
        edges=[min(float(row["time"]) for row in made)] if binned else None,
        resamples=0,
    )
    return {name: one.value for name, one in measured.items()}


def _row(cohort: Cohort, row: int, share: float, binned: bool) -> Row:
    """A row of predictions, whose answers differ from slide to slide.

    Args:
        share: in (0, 1), to make them of.
    """
    record = cohort.records[row]
    named = {"slide": record.slide, "patient": record.patient, "part": ""}
    return {**named, **_answers(cohort, record.target, share, binned)}


def _answers(
    cohort: Cohort, target: Mapping[str, Any], share: float, binned: bool
) -> dict[str, Any]:
    if cohort.task == "classification":
        first, second, *others = cohort.classes
        shares = {f"p_{first}": share, f"p_{second}": 1 - share}
        label = cohort.classes[int(target["label"])]
        return {"label": label, **shares, **{f"p_{name}": 0.0 for name in others}}
    if cohort.task == "survival":
        bins = {"s_0": 1 - share / 2, "s_1": 1 - share} if binned else {}
        return {"time": target["time"], "event": target["event"], "risk": share, **bins}
    if cohort.task == "regression":
        return {"value": target["value"], "predicted": share}
    counts: dict[str, Any] = dict.fromkeys(COUNTS, 1)  # what patches are is read with them
    return counts
