"""A run trained again without a part of its selector, to see what that part is worth."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from wsizoo.diagnosis.selector_answers import HARD, SOFT, Tick, answer
from wsizoo.diagnosis.selector_run import OpenRun, open_run
from wsizoo.measures.measured import Measured
from wsizoo.registry import Registry
from wsizoo.train.config import RunConfig, SplitConfig
from wsizoo.train.run import run_training, splits_of
from wsizoo.train.run_folder import SPLIT

Say = Callable[[str], None]


@dataclass(frozen=True)
class Ablated:
    """What is left of a run without a part.

    Args:
        name: what it goes without. override: of the config. folder: of the run.
        hard, soft: by the first measure of the task. overlap: mean over slides.
    """

    name: str
    override: str
    folder: Path
    hard: Measured
    soft: Measured | None
    overlap: float


def ablate(
    run: OpenRun, out: Path, device: str, registry: Registry, say: Say, tick: Tick
) -> list[Ablated]:
    """Train again with each override of the selector's `ablations`, same seed and parts.

    Args:
        out: each gets a folder in it; interrupted, the same call goes on there.

    Raises as `wsizoo.train.run.run_training`.
    """
    found = []
    for name, override in run.selector.ablations.items():
        folder = out / re.sub(r"\W+", "-", name)
        say(f"{run.name} {name}: trains again with {override}, in {folder}")
        run_training(without(run, override), folder, say=say, tick=tick, registry=registry)
        other = open_run(folder, run.part, device, registry)
        answers = answer(other, tick, only_soft=True)
        measure = run.measures[0]
        soft = None if other.missing else answers.measured(SOFT, measure)
        overlap = fmean(one.overlap for one in answers.gates)
        hard = answers.measured(HARD, measure)
        found.append(Ablated(name, override, folder, hard, soft, overlap))
    return found


def without(run: OpenRun, override: str) -> RunConfig:
    """The run's config with an override; of several folds its own, as a file of parts."""
    config = dataclasses.replace(
        run.config, overrides=[*run.config.overrides, override], seeds=[int(run.record["seed"])]
    )
    if len(splits_of(config, run.cohort)) == 1:
        return config
    parts = str((run.folder / SPLIT).absolute())
    return dataclasses.replace(config, split=SplitConfig(kind="file", file=parts))
