"""A training run, opened to look at its selector: model as it was trained, data, parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.measures.names import MAIN
from wsizoo.model import SlideModel
from wsizoo.registry import Registry
from wsizoo.reports.files import cells_of, check_not_benchmark
from wsizoo.selection import SoftSelector
from wsizoo.splits.files import read_split, split_digest, split_rows
from wsizoo.splits.parts import Split
from wsizoo.train.checkpointing import read_checkpoint
from wsizoo.train.cohort import Cohort, read_cohort
from wsizoo.train.config import RunConfig, load_config
from wsizoo.train.predicting import edges_of, level_of
from wsizoo.train.run_folder import CONFIG, FINISHED, RUN, SPLIT, is_finished, read_record
from wsizoo.train.samples import Samples
from wsizoo.weights import weights_digest
from wsizoo.zoo import load

MEASURES = {
    "classification": ("accuracy", "auc"),
    "survival": (MAIN["survival"],),
    "regression": (MAIN["regression"],),
}
"""Of each task that is diagnosed; the verdict goes by the first."""


@dataclass(frozen=True, eq=False)
class OpenRun:
    """A run whose selector is looked at.

    Args:
        name: of its folder. model: in eval mode. selector: the model's.
        part: that is evaluated. missing: why the soft path cannot be shown, "" where it can.
    """

    name: str
    folder: Path
    config: RunConfig
    record: Mapping[str, Any]
    cohort: Cohort
    split: Split
    model: SlideModel
    selector: SoftSelector
    part: str
    missing: str = ""

    @property
    def task(self) -> str:
        return self.cohort.task

    @property
    def level(self) -> str:
        """What is measured: each slide, or each patient."""
        return level_of(self.task, self.config.data.patient_slides)

    @property
    def measures(self) -> tuple[str, ...]:
        return MEASURES[self.task]

    def retrain(self, whole: bool = True) -> str:
        """What to type to have its checkpoints again; whole: with the path of the run."""
        folder = self.folder if whole else Path(self.name)
        return f"wsizoo train {folder / CONFIG} -o {folder}-2"

    def samples(self, part: str, for_training: bool = False) -> Samples:
        """The bags of a part; for training with times as the head's bins."""
        edges = edges_of(self.model) if for_training else None
        return Samples(self.cohort, self.split.parts()[part], edges)


def runs_in(folders: Sequence[Path]) -> list[Path]:
    """The runs that folders are, or hold by fold and seed.

    Raises:
        DataError: there is no such folder, or it is a benchmark's.
    """
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise DataError(
                f"no run at '{folder}', expected the folder that -o of wsizoo train named"
            )
        check_not_benchmark(folder)
        found += cells_of(folder) or [folder]
    return found


def open_run(folder: Path, part: str | None, device: str, registry: Registry) -> OpenRun:
    """A finished run with its model and data.

    The published weights lack what a selector needs for training alone, so all tensors come from
    the checkpoint that the run ended with. Where that is gone, `missing` says so.

    Args:
        part: "test" or "val"; None: test, or without it val.

    Raises:
        DataError: no finished run, no selector that learns softly, an empty part, data that
            changed since, a task of which slides have no answer. As `wsizoo.load`.
    """
    config, record = _finished(folder)
    model = load(folder, registry=registry)
    selector = _soft_selector(model, folder)
    task = str(record["task"])
    if task not in MEASURES:
        raise DataError(
            f"'{folder}' is of {task}: what a selector keeps is measured by answers for slides, "
            f"so the diagnosis takes runs of {', '.join(MEASURES)}"
        )
    cohort = read_cohort(config.data, task=task, classes=list(model.classes))
    (split,) = read_split(folder / SPLIT, cohort.slides, cohort.patients)
    parts = split_digest(split_rows(split, cohort.slides))
    is_finished(folder, {**cohort.digests, "split_digest": parts})
    part = _part(folder, split, part)
    missing = _fill(model, folder, config)
    model.to(device).eval()
    name = folder.absolute().name
    return OpenRun(name, folder, config, record, cohort, split, model, selector, part, missing)


def _finished(folder: Path) -> tuple[RunConfig, dict[str, Any]]:
    if not (folder / CONFIG).is_file():
        what = "an evaluation or prediction" if (folder / RUN).is_file() else "no run"
        raise DataError(
            f"'{folder}' is {what}: it holds no {CONFIG}. Give the folder of a training: "
            "wsizoo train CONFIG -o RUN"
        )
    record = read_record(folder)
    if record.get("state") != FINISHED:
        raise DataError(
            f"the run '{folder}' is not finished. To go on: wsizoo train {folder / CONFIG} -o "
            f"{folder}"
        )
    return load_config(folder / CONFIG), record


def _soft_selector(model: SlideModel, folder: Path) -> SoftSelector:
    selector = model.selector
    hint = 'Train one that has: wsizoo train CONFIG -o RUN "overrides=[selector=sparselearn]"'
    if selector is None:
        raise DataError(
            f"the model of '{folder}', '{model.name}', has no selector: every patch counts, there "
            f"is nothing to diagnose. {hint}"
        )
    if not isinstance(selector, SoftSelector):
        name = (model.spec.selector or {}).get("name", type(selector).__name__)
        raise DataError(
            f"the selector '{name}' of '{folder}' learns nothing softly, so there is no step from "
            f"soft to hard to look at. {hint} (any wsizoo.selection.SoftSelector)"
        )
    return selector


def _part(folder: Path, split: Split, asked: str | None) -> str:
    """The part to evaluate, which has slides."""
    sizes = {name: len(rows) for name, rows in split.parts().items() if name != "train"}
    for name in (asked,) if asked else ("test", "val"):
        if sizes.get(name):
            return name
    told = " and ".join(f"{n} in its {name} part" for name, n in sizes.items())
    raise DataError(
        f"'{folder}' kept no slides to evaluate ({told}); train with some: "
        "split.fractions=[0.7,0.15,0.15]"
    )


def _fill(model: SlideModel, folder: Path, config: RunConfig) -> str:
    """All tensors as training left them, where they are there; else what is missing.

    Raises:
        DataError: the checkpoint is of another model than the run's, or damaged.
    """
    file = folder / "checkpoints" / f"{config.selection.checkpoint}.ckpt"
    if not file.is_file():
        return (
            f"'checkpoints/{file.name}' is not there, and the parts that a selector needs for "
            "training alone are in no published weights"
        )
    published = weights_digest(model.inference_state())
    try:
        model.load_state_dict(_tensors(read_checkpoint(file)))
    except (RuntimeError, KeyError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"'{file}' does not fit the model of '{folder}': {first}") from error
    if weights_digest(model.inference_state()) != published:
        raise DataError(
            f"'{file}' holds other weights than '{folder / 'model'}': it is of another training. "
            "Bring back its own, or take it away to go without"
        )
    return ""


def _tensors(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights that a training ends with: of its best epoch, or of its last, or their mean."""
    if "model" in content:
        return dict(content["model"])
    stepper = content["stepper"]
    if stepper["ema"] is None:
        return dict(stepper["model"])
    mean = stepper["ema"]
    return {key.removeprefix("module."): mean[key] for key in mean if key.startswith("module.")}
