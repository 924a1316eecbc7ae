"""What the model of a run says of itself: data, results, intended use, limits; for its card."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsizoo.card import NOT_STATED, composition
from wsizoo.model import SlideModel
from wsizoo.spec import model_record
from wsizoo.splits.parts import Split
from wsizoo.train.cohort import Cohort
from wsizoo.train.config import RunConfig

PREDICTS = {
    "classification": "the class of a slide ({})",
    "survival": "the risk of a patient in discrete time bins",
    "regression": "a number of a slide",
    "segmentation": "the class of each patch ({})",
}


def training_facts(
    config: RunConfig,
    cohort: Cohort,
    split: Split,
    record: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """What `wsizoo.save` keeps as `training`, and the card shows; no path of this computer.

    Args:
        record: run.json. metrics: metrics.json.
    """
    data = Path(config.data.table).stem
    patients = len({each.patient for each in cohort.records})
    parts = ", ".join(f"{len(rows)} {name}" for name, rows in split.parts().items())
    part = "test" if "test" in metrics else "val"
    facts = {
        "data": f"{data}: {len(cohort.records)} slides of {patients} patients, digest "
        f"{cohort.digest}",
        "split": f"{config.split.kind}, fold {record['fold']}: {parts} slides, digest "
        f"{record['split_digest']}",
        "seed": record["seed"],
        "recipe": None if config.recipe is None else Path(config.recipe).stem,
        "adapted_from": None if config.init is None else _source(config.init),
        "trained_with": f"wsizoo {record['version']}",
        "intended_use": _intended(cohort, record),
        "limits": _limits(data, cohort, split, part),
    }
    if part in metrics:
        level, values = metrics["level"], metrics[part]
        facts["metrics"] = {"data": data, "part": part, "level": level, "values": values}
    return {key: value for key, value in facts.items() if value is not None}


def name_as_trained(model: SlideModel, config: RunConfig) -> None:
    """Give a trained model a name, a summary and a licence of its own.

    Those of the entry that it was built from speak of that entry's weights, encoder and head. Its
    licence stays where the weights began as those.
    """
    parts = composition(model_record(model.spec), model.requires.to_json())
    ordered = [*parts[1:], parts[0]] if model.requires.encoder else parts
    model.name = re.sub(r"[^\w.]+", "-", "-".join(ordered))
    model.spec = dataclasses.replace(
        model.spec,
        summary=f"{' -> '.join(parts)}, trained on slides of '{Path(config.data.table).stem}'",
        licence=model.spec.licence if config.init else NOT_STATED,
        results=[],
    )


def _source(init: str) -> str:
    """Whose weights they were: an address on the Hub as it is, of a folder its name."""
    return init if init.startswith("hf:") else Path(init).name


def _intended(cohort: Cohort, record: Mapping[str, Any]) -> str:
    what = PREDICTS[cohort.task].format(", ".join(cohort.classes or ()))
    encoder = record["encoder"].get("encoder")
    made = f"{encoder} features" if encoder else "features made as those it was trained on"
    return f"Research: it predicts {what} from {made}, of slides like those it was trained on."


def _limits(data: str, cohort: Cohort, split: Split, part: str) -> str:
    n = len(split.parts()[part])
    told = {
        "test": f"Measured on {n} slides of the same table that were held out",
        "val": f"Measured only on the {n} validation slides that also chose its weights",
    }[part]
    return (
        f"Research only, not validated for diagnosis. Trained on {len(split.train)} slides of "
        f"'{data}'. {told}: other hospitals, scanners and stains were not tested."
    )
