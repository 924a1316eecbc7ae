"""run_training: from a config to a folder of models, predictions and measures."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wsizoo.errors import DataError
from wsizoo.extraction.folders import check_writable
from wsizoo.files import locked
from wsizoo.names import suggest
from wsizoo.registry import Registry, default
from wsizoo.reports.run import write_report
from wsizoo.splits.files import write_split
from wsizoo.splits.making import make_splits
from wsizoo.splits.parts import Split
from wsizoo.train.cohort import Cohort, read_cohort
from wsizoo.train.config import RunConfig
from wsizoo.train.making import classes_of, task_of
from wsizoo.train.one_run import OneRun, train_one
from wsizoo.train.problems import some
from wsizoo.train.rehearsal import cannot_be_measured, check_choice
from wsizoo.train.run_folder import SPLIT, claim, is_first, writing
from wsizoo.train.summary import summarise

Say = Callable[[str], None]
Tick = Callable[[str, int, int], None]
"""(what, done, in all)"""


def run_training(
    config: RunConfig,
    out: Path | str,
    *,
    say: Say = lambda text: None,
    tick: Tick = lambda what, done, total: None,
    registry: Registry | None = None,
) -> Path:
    """Train, predict and measure what a config says, and write it all into a folder.

    Of several folds or seeds, each has a folder of its own in it, `fold<k>-seed<s>`, and their
    summary stands above them; see docs/train.md for the files. The same call goes on where an
    earlier one was stopped, and ends with the same predictions.

    Args:
        out: new, or that of an earlier call with this config.
        say: a line of what is done. tick: how far it is.

    Returns:
        The folder.

    Raises:
        DataError: the folder of another config, features or targets that are missing or do not
            fit, all told before anything is trained; a NaN loss, naming the slide.
        SpecError, NotFoundError: the config or its model. FingerprintError: as `wsizoo.load`.
    """
    registry, out = registry or default(), Path(out)
    cohort = read_cohort(
        config.data, task=task_of(config, registry), classes=classes_of(config, registry)
    )
    splits = splits_of(config, cohort)
    check_folds(splits)
    check_choice(config, cohort, splits, registry)
    say(told_of(cohort, splits))
    unmeasured = cannot_be_measured(config, cohort, splits, registry)
    for line in [*warnings_of(cohort, splits), *unmeasured]:
        say(line)
    if not is_first():
        return _each(config, cohort, splits, out, registry, say, tick)
    check_writable(out)
    with locked(out / ".run"):
        claim(out, config)
        return _each(config, cohort, splits, out, registry, say, tick)


def _each(
    config: RunConfig,
    cohort: Cohort,
    splits: Sequence[Split],
    out: Path,
    registry: Registry,
    say: Say,
    tick: Tick,
) -> Path:
    """Every fold and seed that is not finished, then their summary."""
    runs = [
        OneRun(dataclasses.replace(config, seeds=[seed]), cohort, split, fold, seed, registry)
        for fold, split in enumerate(splits)
        for seed in config.seeds
    ]
    if not runs:
        raise DataError("seeds is empty: nothing to train. Give it one: seeds=[0]")
    if len(runs) == 1:
        train_one(runs[0], out, say, tick)
        return out
    folders = [out / f"fold{run.fold}-seed{run.seed}" for run in runs]
    for i, (run, folder) in enumerate(zip(runs, folders, strict=True)):
        say(f"Run {i + 1} of {len(runs)}: {folder.name}")
        train_one(run, folder, say, tick)
    if is_first():
        with writing(out):
            write_split(out / SPLIT, splits, cohort.slides, cohort.patients, cohort.sites)
            if summarise(out, folders, cohort)["mean"]:
                write_report(out)
    return out


def splits_of(config: RunConfig, cohort: Cohort) -> list[Split]:
    """The folds of a config.

    Raises:
        DataError: as `make_splits` and `read_split`.
    """
    asked = config.split
    if asked.kind == "file" and asked.file is None:
        raise DataError("split.kind is file, and split.file names none: split.file=SPLIT.csv")
    known: dict[str, Any] = {}
    if cohort.task == "survival":
        known = {"times": cohort.values("time"), "events": cohort.values("event")}
    elif cohort.task == "regression":
        known = {"times": cohort.values("value")}
    if asked.kind == "column":
        if asked.column is None:
            raise DataError("split.kind is column, and split.column names none: split.column=NAME")
        known["column"] = column_of(cohort, asked.column)
    if asked.kind == "extrapolation":
        known["sizes"] = cohort.sizes()
    return make_splits(
        cohort.slides,
        cohort.patients,
        cohort.labels,
        sites=cohort.sites,
        file=asked.file,
        kind=asked.kind,
        fractions=asked.fractions,
        folds=asked.folds,
        val_fraction=asked.val_fraction,
        repeats=asked.repeats,
        seed=asked.seed,
        stratify=asked.stratify,
        site=asked.site,
        bins=config.data.bins,
        **known,
    )


def check_folds(splits: Sequence[Split]) -> None:
    """Raise DataError unless all folds can be measured on one part: test, or without it val."""
    for part in ("test", "val"):
        has = [bool(split.parts()[part]) for split in splits]
        if all(has):
            return
        if any(has):
            raise DataError(
                f"fold {has.index(False)} has no slides in its {part} part, fold {has.index(True)} "
                "has: folds are measured on the same part. Complete the split, or run that fold "
                "by itself"
            )


def column_of(cohort: Cohort, name: str) -> list[str]:
    """A column of the table, by slide. Raises DataError: there is none of that name."""
    columns = cohort.records[0].row
    if name not in columns:
        raise DataError(
            f"table '{cohort.config.table}' has no column '{name}' (split.column). "
            f"{suggest(name, columns, 'Columns: ')}"
        )
    return [record.row[name] for record in cohort.records]


def warnings_of(cohort: Cohort, splits: Sequence[Split]) -> list[str]:
    """What of the data and its split a reader of the results should know."""
    told = []
    if cohort.dropped:
        reasons: dict[str, list[str]] = {}
        for slide, reason in cohort.dropped:
            reasons.setdefault(reason, []).append(slide)
        each = [f"{len(names)} {reason}: {some(names)}" for reason, names in reasons.items()]
        told.append("\n  ".join([f"Left out {len(cohort.dropped)} slides:", *each]))
    for fold, split in enumerate(splits):
        parts = [{cohort.patients[row] for row in rows} for rows in split.parts().values()]
        leaks = sorted({p for a, b in itertools.combinations(parts, 2) for p in a & b})
        if leaks:
            told.append(
                f"Warning: {len(leaks)} patients are in two parts of fold {fold}, first "
                f"'{leaks[0]}': what is measured is too good. See wsizoo split audit"
            )
    return told


def told_of(cohort: Cohort, splits: Sequence[Split]) -> str:
    """One line of what there is."""
    patients = len({record.patient for record in cohort.records})
    sizes = "/".join(str(len(part)) for part in splits[0].parts().values())
    folds = f", {len(splits)} folds" if len(splits) > 1 else ""
    named = f" of {', '.join(cohort.classes)}" if cohort.classes else ""
    return (
        f"{len(cohort.records)} slides of {patients} patients, {cohort.task}{named}; "
        f"train/val/test {sizes}{folds}; patients: {cohort.of_patients}"
    )
