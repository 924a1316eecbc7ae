"""The cells of a benchmark: every model on every feature set, fold and seed, where it fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wsizoo.benchmark.cells import Cell
from wsizoo.benchmark.keys import content_key
from wsizoo.benchmark.plan import Asked, Candidate, installed_candidates, overrides_for
from wsizoo.errors import DataError, NotFoundError, PluginError, SpecError
from wsizoo.registry import Registry
from wsizoo.train.config import RunConfig

if TYPE_CHECKING:
    from wsizoo.splits.parts import Split
    from wsizoo.train.cohort import Cohort

Say = Callable[[str], None]


def make_cells(asked: Asked, splits: Path, registry: Registry, say: Say) -> tuple[list[Cell], str]:
    """All cells, and the task; each fold is written to a file, which its cells read.

    Raises: as `run_benchmark`.
    """
    from wsizoo.train.digests import whole_digest
    from wsizoo.train.rehearsal import check_choice
    from wsizoo.train.run import splits_of

    cohorts = {name: _cohort(asked, folder, registry) for name, folder in asked.features.items()}
    first = next(iter(cohorts.values()))
    for name, cohort in cohorts.items():
        if cohort.digest != first.digest:
            raise DataError(
                f"the features '{name}' are of {len(cohort.records)} slides, those of "
                f"'{next(iter(cohorts))}' of {len(first.records)}, or of others: they cannot be "
                "compared. Extract what is missing, or leave one set out"
            )
    base = asked.config()
    folds = splits_of(base, first)
    _check_tested(folds)
    files = [_split_file(splits, fold, split, first) for fold, split in enumerate(folds)]
    candidates = _fitting(asked, cohorts, folds[0].train, registry, say)
    for candidate in candidates:
        check_choice(asked.config(candidate), first, folds, registry)
    digests = {name: whole_digest(cohort) for name, cohort in cohorts.items()}
    cells = []
    for fold, (file, digest) in enumerate(files):
        for seed in base.seeds:
            for name, cohort in cohorts.items():
                for candidate in candidates:
                    config = _config(asked, candidate, name, cohort, registry)
                    split = replace(config.split, kind="file", file=str(file))
                    config = replace(config, split=split, seeds=[seed])
                    key = content_key(config, digests[name], digest, registry)
                    cells.append(Cell(candidate.name, name, fold, seed, config, key))
    return cells, first.task


def _check_tested(folds: Sequence[Split]) -> None:
    """Raise DataError where a fold tests nothing: models are compared by their test parts."""
    if empty := [str(fold) for fold, split in enumerate(folds) if not split.test]:
        raise DataError(
            f"fold {', '.join(empty)} of the split has no test part, expected one in each fold, by "
            "which the models are compared: split.fractions=[0.7,0.15,0.15]"
        )


def _cohort(asked: Asked, folder: str, registry: Registry) -> Cohort:
    from wsizoo.train.cohort import read_cohort
    from wsizoo.train.making import classes_of, task_of

    base = asked.config()
    task, classes = task_of(base, registry), classes_of(base, registry)
    return read_cohort(replace(base.data, features=folder), task=task, classes=classes)


def _split_file(folder: Path, fold: int, split: Split, cohort: Cohort) -> tuple[Path, str]:
    """The file of a fold, named by its content, and its digest."""
    from wsizoo.splits.files import split_digest, split_rows, write_split

    digest = split_digest(split_rows(split, cohort.slides))
    file = folder / f"fold{fold}-{digest[:12]}.csv"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_split(file, split, cohort.slides, cohort.patients, cohort.sites)
    return file, digest


def _config(
    asked: Asked, candidate: Candidate, features: str, cohort: Cohort, registry: Registry
) -> RunConfig:
    """A candidate's run on one set of features."""
    config = asked.config(candidate)
    overrides = overrides_for(candidate, config, cohort.bag(0), registry)
    data = replace(config.data, features=asked.features[features])
    return replace(config, data=data, overrides=overrides)


def _fitting(
    asked: Asked,
    cohorts: Mapping[str, Cohort],
    train: Sequence[int],
    registry: Registry,
    say: Say,
) -> list[Candidate]:
    """The models that fit every set of features; a named one that does not is an error."""
    candidates = asked.models
    if candidates is None:
        candidates = tuple(installed_candidates(asked.config().model, registry))
    kept: list[Candidate] = []
    reasons: dict[str, str] = {}
    for candidate in candidates:
        for name, cohort in cohorts.items():
            config = _config(asked, candidate, name, cohort, registry)
            reason = why_it_does_not_fit(config, cohort, train, registry)
            if reason and asked.models is not None:
                raise SpecError(f"the model '{candidate.name}' does not fit '{name}': {reason}")
            if reason:
                reasons.setdefault(candidate.name, reason)
        if candidate.name not in reasons:
            kept.append(candidate)
    for name, reason in reasons.items():
        say(f"left out {name}: {reason}")
    if not kept:
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise SpecError(f"no model fits these slides and this task. {told}")
    return kept


def why_it_does_not_fit(
    config: RunConfig, cohort: Cohort, train: Sequence[int], registry: Registry
) -> str | None:
    """Why a model cannot be built for these slides and this task, or None.

    Args:
        train: rows of a training part, from which what the config leaves open is filled in.
    """
    from wsizoo.train.loop import check_steps
    from wsizoo.train.making import make_model

    try:
        model = make_model(config, cohort, train, 0, registry)
        check_steps(model, config.train.batch_size)
    except (SpecError, NotFoundError, PluginError) as error:
        return str(error)
    bag = cohort.bag(0)
    part = model.aggregator or model.whole
    if part is not None and (part.reads == "pixels") != (bag.features.dim() == 4):
        return f"it reads {part.reads}, the files hold {tuple(bag.features.shape)[1:]} a patch"
    if part is not None and part.uses_coords and (bag.coords is None or bag.spacing is None):
        return "it needs coordinates and spacing, which the feature files lack"
    return None
