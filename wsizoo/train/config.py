"""What a training run is, in data: a YAML file, a recipe under it, `key=value` texts over it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

import yaml

from wsizoo.errors import SpecError
from wsizoo.names import suggest
from wsizoo.structured import MISSING, structured
from wsizoo.train.config_content import Source, read_whole

INFINITY = math.inf


def _one_of(default: str | None, *allowed: str) -> Any:
    return field(default=default, metadata={"allowed": allowed})


def _number(default: float | None, least: float, most: float = INFINITY) -> Any:
    return field(default=default, metadata={"least": least, "most": most})


@dataclass(frozen=True)
class DataConfig:
    """The slides, their features and their targets.

    Args:
        table: csv or tsv, also zipped, a row a slide.
        features: folder with a feature file a slide.
        file: column of the table with the feature file of each slide, within `features` (or the
            table's folder); null: the file is looked up by the name of the slide.
        encoder, slide_mpp, coords_mpp, collisions, format: what feature files of other tools do
            not state, see `wsizoo.formats.read.ReadAs`.
        task: null: that of the model's head.
        slide, patient, site, label, time, event, censorship, value: columns of the table. With
            `censorship` (1: censored) there is no need of `event` (1: seen). Patients ("patient")
            and sites (null) are looked for as `wsizoo.tables.find_origins` does, unless a column of
            another name is told; with patient null every slide is a patient of its own.
        classes: in order; null: all labels of the table, sorted.
        bins, bins_from: of survival times, an equal number of events in each: of the training
            part, or, as papers did, of the whole cohort.
        instances: folder with the labels of each slide's patches.
        patient_slides: what a sample is: a slide ("each"), all slides of a patient as one bag
            ("concat"), a slide, but the mean over a patient's slides is measured ("late_mean").
            Survival is measured by patient, with "each" too.
        missing: slides without features or target: an error, or left out ("drop").
    """

    table: str = MISSING
    features: str | None = None
    file: str | None = None
    encoder: str | None = None
    slide_mpp: float | None = _number(None, 0)
    coords_mpp: float | None = _number(None, 0)
    collisions: str = _one_of("error", "error", "nearest", "mean", "first")
    format: str | None = None
    task: str | None = _one_of(None, "classification", "survival", "regression", "segmentation")
    slide: str = "slide"
    patient: str | None = "patient"
    site: str | None = None
    label: str = "label"
    classes: list[str] | None = None
    time: str = "time"
    event: str = "event"
    censorship: str | None = None
    bins: int = _number(4, 2)
    bins_from: str = _one_of("train", "train", "whole_cohort")
    value: str = "value"
    instances: str | None = None
    patient_slides: str = _one_of("each", "each", "concat", "late_mean")
    missing: str = _one_of("error", "error", "drop")


@dataclass(frozen=True)
class SplitConfig:
    """Which slides train, validate and test; see `wsizoo.splits.making`.

    Args:
        kind: "holdout" by `fractions`, "kfold", a `file` of parts, a `column` of the table, or
            "extrapolation": small slides train, large ones test.
        fractions: of train, val and test, which sum to 1; none: 0.7, 0.15, 0.15, for
            "extrapolation" 0.6, 0.2, 0.2.
        val_fraction: of what is left of a fold to train on.
        repeats: holdouts, or k-folds, with seeds `seed`, `seed` + 1, ...
        stratify: parts have the classes, or events, of the whole in like shares.
        site: "preserve": no site (hospital) is in two parts.
    """

    kind: str = _one_of("holdout", "holdout", "kfold", "file", "column", "extrapolation")
    file: str | None = None
    column: str | None = None
    fractions: list[float] = field(default_factory=list)
    folds: int = _number(5, 2)
    val_fraction: float = _number(0.15, 0, 1)
    repeats: int = _number(1, 1)
    seed: int = _number(0, 0)
    stratify: bool = True
    site: str = _one_of("mix", "mix", "preserve")


@dataclass(frozen=True)
class OptimiserConfig:
    """What turns gradients into steps."""

    name: str = _one_of("adamw", "adamw", "adam", "radam", "sgd")
    lr: float = _number(1e-4, 0)
    weight_decay: float = _number(1e-5, 0)
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    momentum: float = _number(0.9, 0, 1)
    lookahead: int | None = _number(None, 1)


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate goes: up over `warmup_epochs`, then by a cosine to `end_factor` of
    itself, or ("step") to `fall_factor` of itself after each of the epochs `falls`.
    """

    name: str = _one_of("cosine", "cosine", "constant", "step")
    warmup_epochs: float = _number(0.0, 0)
    end_factor: float = _number(0.0, 0, 1)
    falls: list[int] = field(default_factory=list)
    fall_factor: float = _number(0.1, 0, 1)


@dataclass(frozen=True)
class TrainConfig:
    """The loop.

    Args:
        batch_size: slides packed into a step. accumulate: steps to a change of the weights.
        clip: largest norm of a gradient. ema: decay of the mean of weights.
        precision: "32-true", "bf16-mixed", "16-mixed", as Lightning Fabric has it.
        patience: epochs without a better value of the selection's metric before the end.
        min_epochs: before which patience ends nothing.
        workers: threads that read features.
        class_weights: "inverse": of the classes' frequency in the training part, 1 in the mean
            over its slides; also where one slide is a step.
        max_patches: of a slide in training, drawn anew each time.
        checkpoint_steps: steps between writes of the last checkpoint within an epoch.
        loggers: of "tensorboard" and "wandb", beside the csv and JSON lines that are always there.
    """

    epochs: int = _number(20, 1)
    batch_size: int = _number(1, 1)
    accumulate: int = _number(1, 1)
    clip: float | None = _number(None, 0)
    precision: str = _one_of("32-true", "32-true", "bf16-mixed", "16-mixed")
    ema: float | None = _number(None, 0, 1)
    patience: int | None = _number(None, 1)
    min_epochs: int = _number(1, 1)
    workers: int = _number(2, 0)
    device: str = "auto"
    class_weights: str | None = _one_of(None, "inverse")
    label_smoothing: float = _number(0.0, 0, 1)
    max_patches: int | None = _number(None, 1)
    checkpoint_steps: int | None = _number(None, 1)
    loggers: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class AugmentConfig:
    """How the coordinates of a training slide are changed: `wsizoo.augment`, field by field."""

    mirror: float = _number(0.75, 0, 1)
    shear: float = _number(0.75, 0, 1)
    rotate: float = _number(0.75, 0, 1)
    shear_degrees: float = _number(10.0, 0, 89)
    rotate_degrees: float = _number(30.0, 0, 360)
    quarter_turns: bool = False
    drop: float = _number(0.0, 0, 1)
    end: float = _number(0.2, 0, 1)
    decay: str = _one_of("cosine", "cosine", "linear")


@dataclass(frozen=True)
class SelectionConfig:
    """Which epoch's weights are kept: the best of the validation part by `metric`, or the last."""

    metric: str = "loss"
    checkpoint: str = _one_of("best", "best", "last")


@dataclass(frozen=True)
class RunConfig:
    """A training run, whole.

    Args:
        recipe: what this file starts from: a shipped recipe, or another file.
        model: what `wsizoo.build` takes. overrides: of it, after the recipe's, of which none is
            lost; `head.classes` comes from the data.
        init: adapt the trained weights of this name or folder, in place of random ones;
            the composition is theirs, and what a recipe changes in its model has to be said again
            in `overrides`, as of the head.
        augment: null: none.
        seeds: a run each.
    """

    recipe: str | None = None
    model: str = MISSING
    overrides: list[str] = field(default_factory=list)
    init: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    augment: AugmentConfig | None = None
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    seeds: list[int] = field(default_factory=lambda: [0])


GROUPS = {
    "data": "{table: slides.csv, features: features}",
    "split": "{kind: kfold}",
    "optimiser": "{lr: 1e-4}",
    "schedule": "{name: constant}",
    "train": "{epochs: 20}",
    "augment": "{mirror: 0.5}, or null",
    "selection": "{metric: auc}",
}
OF_GROUP = {
    "data": DataConfig,
    "split": SplitConfig,
    "optimiser": OptimiserConfig,
    "schedule": ScheduleConfig,
    "train": TrainConfig,
    "augment": AugmentConfig,
    "selection": SelectionConfig,
}


def load_config(source: Source, overrides: Sequence[str] = ()) -> RunConfig:
    """A run from its YAML file (or its content), checked.

    A recipe lies under the file, the overrides lie over it; `overrides` of the model add up. A file
    that states every key, as a run's config.yaml, needs its recipe no more. Paths in a file are
    relative to its folder, those in overrides to the current one; in the result they are absolute.

    Args:
        overrides: `"optimiser.lr=1e-3"`, `"seeds=[0,1,2]"`, `"augment=null"`.

    Raises:
        NotFoundError: no such file or recipe.
        SpecError: an unknown key (the near one named), a wrong type, a value out of its range.
    """
    whose, content = read_whole(source, overrides, _says_all)
    if "${" in str(content):
        raise SpecError(f"{whose} holds '${{': a config is data, nothing is computed")
    for group, such in GROUPS.items():
        value = content.get(group, {})
        if not isinstance(value, dict) and (value is not None or group != "augment"):
            raise SpecError(f"{whose}: {group} is {value!r}, expected keys, such as {such}")
    _check_keys(whose, content)
    config = structured(RunConfig, whose, content, typed=True)
    _check(whose, config)
    if len(set(config.seeds)) < len(config.seeds):
        raise SpecError(f"{whose}: seeds is {config.seeds}, expected each once: a seed is a run")
    return config


def _says_all(content: Mapping[str, Any]) -> bool:
    """Whether every key is stated, as `to_yaml` does."""
    for one in fields(RunConfig):
        group, stated = one.default_factory, content.get(one.name)
        keys: set[str] = {each.name for each in fields(group)} if is_dataclass(group) else set()
        if one.name not in content or (
            keys and not (isinstance(stated, dict) and keys <= {*stated})
        ):
            return False
    return True


def to_yaml(config: RunConfig) -> str:
    """Every key with its value; `load_config` of it is the same config."""
    return str(yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True))


def config_digest(config: RunConfig) -> str:
    """sha256 hex of all values."""
    return hashlib.sha256(to_yaml(config).encode()).hexdigest()


def _check_keys(whose: str, content: Mapping[str, Any]) -> None:
    """Raise SpecError for a key that stands outside of the one group that has it."""
    for key in content:
        if key in _names(RunConfig):
            continue
        owners = [name for name, group in OF_GROUP.items() if key in _names(group)]
        if len(owners) == 1:
            raise SpecError(f"{whose}: unknown field '{key}'. Did you mean '{owners[0]}.{key}'?")


def _names(group: Any) -> set[str]:
    return {one.name for one in fields(group)}


def _check(whose: str, of: Any, prefix: str = "") -> None:
    """Raise SpecError where a value is not among those allowed, or out of its range."""
    for one in fields(of):
        value, name = getattr(of, one.name), prefix + one.name
        if is_dataclass(value):
            _check(whose, value, f"{name}.")
            continue
        allowed, least = one.metadata.get("allowed"), one.metadata.get("least", -INFINITY)
        if allowed and value is not None and value not in allowed:
            hint = suggest(value, allowed, "Expected: ")
            raise SpecError(f"{whose}: {name} is '{value}'. {hint}")
        most = one.metadata.get("most", INFINITY)
        if isinstance(value, int | float) and not least <= value <= most:
            expected = f"{least:g} or more" if most == INFINITY else f"{least:g} to {most:g}"
            raise SpecError(f"{whose}: {name} is {value}, expected {expected}")
