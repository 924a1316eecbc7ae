"""Predictions as rows of predictions.csv: one a slide, and their means, one a patient.

Numbers are rounded before anything is measured, so that what stands in the file gives the measures
that stand beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.interfaces import SlideOutput
from wsizoo.model import SlideModel
from wsizoo.prediction_files import Row
from wsizoo.viz.classes import read_classes

DIGITS = 7  # significant ones that float32 has
COUNTS = ("tp", "fp", "fn")


def classification_row(model: SlideModel, output: SlideOutput, target: Mapping[str, Any]) -> Row:
    """label, predicted (names of classes), and a probability `p_CLASS` each."""
    if output.logits is None:
        raise DataError(
            f"'{model.name}' gives no logits of a slide: it cannot be measured by class"
        )
    found = read_classes(model, output.logits)
    shown = {
        f"p_{name}": rounded(p) for name, p in zip(found.names, found.probabilities, strict=True)
    }
    predicted = found.names[int(found.called)]
    return {"label": found.names[int(target["label"])], "predicted": predicted, **shown}


def survival_row(model: SlideModel, output: SlideOutput, target: Mapping[str, Any]) -> Row:
    """time, event, risk (larger is worse), and `s_t`: the share that outlives bin t."""
    risk = output.value if output.risk is None else output.risk
    if risk is None:
        raise DataError(f"'{model.name}' gives neither risk nor value: give it head=survival")
    row = {"time": float(target["time"]), "event": int(target["event"]), "risk": rounded(risk)}
    if output.hazards is None:
        return row
    survival = torch.cumprod(1 - output.hazards.double(), -1)  # (T,)
    return {**row, **{f"s_{t}": rounded(s) for t, s in enumerate(survival)}}


def regression_row(model: SlideModel, output: SlideOutput, target: Mapping[str, Any]) -> Row:
    """value and predicted."""
    if output.value is None:
        raise DataError(f"'{model.name}' gives no value: give it head=regression")
    return {"value": float(target["value"]), "predicted": rounded(output.value)}


def segmentation_row(model: SlideModel, output: SlideOutput, target: Mapping[str, Any]) -> Row:
    """Dice and IoU of the patches of one slide, and the counts that they come from.

    Every class but the first is positive; of several the counts are of all together, and beside
    them stand those of each, `tp_CLASS`.
    """
    if output.instance_logits is None:
        raise DataError(f"'{model.name}' gives no class a patch: give it head=segmentation")
    found = read_classes(model, output.instance_logits)
    given = _patch_classes(torch.as_tensor(target["instances"]), model)
    called = found.called.to(given.device)
    if output.kept is not None:  # what a selector left out was called the first class
        kept = output.kept.to(given.device)
        called = torch.zeros_like(called).index_copy(0, kept, called[kept])
    known = given >= 0
    given, called = given[known], called[known]
    positive = list(range(1, len(found.names)))
    each = [_counts(given == c, called == c) for c in positive]
    row = {key: sum(counts[key] for counts in each) for key in COUNTS}
    if len(positive) > 1:
        for c, counts in zip(positive, each, strict=True):
            row |= {f"{key}_{found.names[c]}": count for key, count in counts.items()}
    return {**overlap_of(row), **row}


def _counts(given: Tensor, called: Tensor) -> dict[str, int]:
    """Patches (N,) that are of a class and called so, called so only, and missed."""
    wanted = ((given & called), (~given & called), (given & ~called))
    return {key: int(flags.sum()) for key, flags in zip(COUNTS, wanted, strict=True)}


def _patch_classes(labels: Tensor, model: SlideModel) -> Tensor:
    """(N,) class of each patch, -1 for unknown; shares become classes by the head's threshold."""
    threshold = getattr(model.head, "threshold", None)
    if threshold is None:
        return labels.long()
    return torch.where(labels < 0, -1, (labels >= threshold).long())


def overlap_of(counts: Mapping[str, int]) -> dict[str, float | None]:
    """Dice and IoU of counts; None where nothing is positive and nothing was called so."""
    tp, wrong = counts["tp"], counts["fp"] + counts["fn"]
    if tp + wrong == 0:
        return {"dice": None, "iou": None}
    return {"dice": rounded(2 * tp / (2 * tp + wrong)), "iou": rounded(tp / (tp + wrong))}


ROWS = {
    "classification": classification_row,
    "survival": survival_row,
    "regression": regression_row,
    "segmentation": segmentation_row,
}


def prediction(task: str, model: SlideModel, output: SlideOutput, target: Mapping[str, Any]) -> Row:
    """What a model says of one bag beside what is true, in the columns of the task.

    Args:
        output: of that bag. target: what the table states; times in its unit, not as bins.

    Raises:
        DataError: the model gives no output of this task.
    """
    return ROWS[task](model, output, target)


def by_patient(rows: Sequence[Row], task: str) -> list[Row]:
    """One row a patient and part: the mean over its slides of what was predicted.

    Raises:
        DataError: slides of a patient whose targets differ.
    """
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        grouped.setdefault((row["patient"], row["part"]), []).append(row)
    return [_mean_row(same, task) for same in grouped.values()]


def _mean_row(rows: Sequence[Row], task: str) -> Row:
    first = {key: value for key, value in rows[0].items() if key != "slide"}
    known = {"classification": ("label",), "survival": ("time", "event"), "regression": ("value",)}
    for key in known.get(task, ()):
        if any(row[key] != first[key] for row in rows):
            values = ", ".join(sorted({str(row[key]) for row in rows}))
            raise DataError(
                f"the slides of patient '{first['patient']}' have several values of {key}: "
                f"{values}. A patient needs one; or let each slide stand for itself: "
                "data.patient_slides=each"
            )
    if task == "segmentation":
        counted = [key for key in first if key.partition("_")[0] in COUNTS]
        counts = {key: sum(row[key] for row in rows) for key in counted}
        return {**first, "slides": len(rows), **overlap_of(counts), **counts}
    means = {key: rounded(sum(row[key] for row in rows) / len(rows)) for key in _answers(first)}
    row = {**first, **means}
    if task == "classification":
        row["predicted"] = max(means, key=lambda name: means[name]).removeprefix("p_")
    return {**row, "slides": len(rows)}


def _answers(row: Row) -> list[str]:
    """Columns that a model filled with numbers."""
    named = [key for key in row if key.startswith(("p_", "s_"))]
    return named + [k for k in ("risk", "predicted") if k in row and not isinstance(row[k], str)]


def one_target_each(rows: Sequence[Row], task: str) -> bool:
    """Whether the slides of every patient have the same target."""
    try:
        by_patient(rows, task)
    except DataError:
        return False
    return True


def rounded(value: Any) -> float:
    """A number of `DIGITS` significant digits."""
    return float(f"{float(value):.{DIGITS}g}")
