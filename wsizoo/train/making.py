"""The model of a run: what its config leaves open is filled in from the training part."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from wsizoo.errors import SpecError
from wsizoo.interfaces import Head
from wsizoo.losses import cross_entropy, inverse_frequencies, positive_weight
from wsizoo.measures.times import time_edges
from wsizoo.model import SlideModel
from wsizoo.objectives import TaskLoss
from wsizoo.registry import Entry, Registry
from wsizoo.spec import ModelSpec, model_spec
from wsizoo.stored import CONFIG, PUBLISHER, find_stored, read_config
from wsizoo.tables import read_table
from wsizoo.train.cohort import Cohort, origins_of, slide_name
from wsizoo.train.config import DataConfig, RunConfig
from wsizoo.train.row_targets import LackingError, Target, target_of
from wsizoo.train.samples import Samples
from wsizoo.yaml_data import read_yaml
from wsizoo.zoo import adapt, assemble

SEGMENTATION = "segmentation"
SPEC_SUFFIXES = (".yaml", ".yml")


def spec_of(config: RunConfig, registry: Registry) -> ModelSpec:
    """What the config's model is, with its overrides, before the data has been seen.

    Raises:
        NotFoundError, SpecError: as `wsizoo.build`.
    """
    if config.init:
        return find_stored(config.init, registry).spec_with(config.overrides)
    entry = _entry(config.model, registry)
    return model_spec(entry.name, entry.record, config.overrides)


def task_of(config: RunConfig, registry: Registry) -> str:
    """What is predicted: stated in the data's config, else by the model's head.

    Raises:
        SpecError: a model without a head, and no task stated.
    """
    head = spec_of(config, registry).head
    if head is None:
        if config.data.task:
            return config.data.task
        raise SpecError(
            f"'{config.model}' has no head, so its task is not known. Give it one: "
            'overrides=["head=classification"], or of a whole model say: data.task=classification'
        )
    task = str(_head_class(head, registry).task)
    if config.data.task not in (None, task):
        raise SpecError(
            f"data.task is {config.data.task}, the head '{head['name']}' of '{config.model}' is of "
            f'{task}. Give it another: overrides=["head={config.data.task}"]'
        )
    return task


def _head_class(head: dict[str, Any], registry: Registry) -> Any:
    name = str(head["name"])
    return registry.plugins.load("head", name, registry.plugin_of("head", name))


def classes_of(config: RunConfig, registry: Registry) -> list[str]:
    """Names of classes in their order, where somebody has stated them; [] : the table's labels.

    Those that a registry entry has for its own weights count only for labels of patches, which no
    table lists.

    Raises:
        SpecError: data.classes and head.classes of the overrides differ; or labels are of patches,
            and nobody names their classes.
    """
    found = _stated_classes(config, registry)
    if not found and spec_of(config, registry).head and task_of(config, registry) == SEGMENTATION:
        raise SpecError(
            "labels of patches are numbers: say which classes they are, in order, the negative one "
            "first: data.classes=[normal,tumour]"
        )
    return found


def _stated_classes(config: RunConfig, registry: Registry) -> list[str]:
    stated, own = config.data.classes, spec_of(config, registry).classes
    overridden = any(text.startswith(("head.classes=", "head={")) for text in config.overrides)
    if not overridden and config.model in registry.models:
        return stated or (own if task_of(config, registry) == SEGMENTATION else [])
    if overridden and stated and own and stated != own:
        raise SpecError(
            f"data.classes is {stated}, head.classes in overrides {own}: state one of them"
        )
    return stated or own


def make_model(
    config: RunConfig, cohort: Cohort, train: Sequence[int], seed: int, registry: Registry
) -> SlideModel:
    """Build, or adapt, the model for this data.

    Filled in where the config is silent: head.classes; head.edges, from the events of the training
    part (`data.bins_from=whole_cohort`: of the whole table, patients without features too);
    head.pos_weight of one logit, from the patches of the training part.

    Args:
        train: rows of the cohort. seed: of random weights.
    """
    spec = spec_of(config, registry)
    overrides = [*config.overrides, *_from_data(config, spec, cohort, train, registry)]
    if config.init:
        return adapt(config.init, *overrides, seed=seed, registry=registry)
    entry = _entry(config.model, registry)
    return assemble(entry, model_spec(entry.name, entry.record, overrides), registry, seed)


def _entry(name: str, registry: Registry) -> Entry:
    """A registry entry, the composition of a saved model's folder, or of a YAML file."""
    path = Path(name)
    if path.suffix in SPEC_SUFFIXES:
        try:
            record = read_yaml(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SpecError(f"the model's file '{name}' cannot be read: {error}") from error
        return Entry(path.stem, record, f"file '{name}'")
    if name not in registry.models and (path / CONFIG).is_file():
        stored = read_config(path / CONFIG)
        return Entry(stored["name"], stored["spec"], PUBLISHER)
    return registry.model(name)


def _from_data(
    config: RunConfig,
    spec: ModelSpec,
    cohort: Cohort,
    train: Sequence[int],
    registry: Registry,
) -> list[str]:
    """Overrides that the data decides."""
    if spec.model is not None:
        return _of_whole(spec, cohort, registry)
    head = spec.head or {}
    if cohort.task in ("classification", "segmentation") and spec.classes != list(cohort.classes):
        found = [f"head.classes={json.dumps(list(cohort.classes))}"]
    elif _takes_edges(head, registry) and not head.get("edges"):
        found = _edges(config, cohort, train)
    else:
        found = []
    if cohort.task == "segmentation" and head.get("one_logit") and head.get("pos_weight") is None:
        found.append(f"head.pos_weight={_pos_weight(head, cohort, train)!r}")
    return found


def has_bins(config: RunConfig, registry: Registry) -> bool:
    """Whether the model's head has bins of time."""
    return _takes_edges(spec_of(config, registry).head or {}, registry)


def _takes_edges(head: dict[str, Any], registry: Registry) -> bool:
    return bool(head) and "edges" in inspect.signature(_head_class(head, registry)).parameters


def _of_whole(spec: ModelSpec, cohort: Cohort, registry: Registry) -> list[str]:
    """Classes of a whole model whose constructor takes them."""
    part: dict[str, Any] = dict(spec.model or {})
    made = registry.plugins.load("model", str(part["name"]), spec.plugin)
    takes = "classes" in inspect.signature(made).parameters and not part.get("classes")
    return [f"model.classes={json.dumps(list(cohort.classes))}"] if takes and cohort.classes else []


def _edges(config: RunConfig, cohort: Cohort, train: Sequence[int]) -> list[str]:
    """Bins of time, an equal number of events in each; a patient counts once.

    Raises:
        SpecError: `head.bins` among the overrides. DataError: as `time_edges`.
    """
    if stated := [text for text in config.overrides if text.startswith("head.bins=")]:
        raise SpecError(f"bins of times come from data.bins: leave out {stated[0]} of overrides")
    if config.data.bins_from == "train":
        of_patient = {cohort.records[row].patient: cohort.records[row].target for row in train}
    else:
        of_patient = _targets_of_table(config.data, cohort.task)
    times = [target["time"] for target in of_patient.values()]
    events = [target["event"] for target in of_patient.values()]
    edges = time_edges(times, events, config.data.bins).tolist()
    return [f"head.bins={len(edges) + 1}", f"head.edges={json.dumps(edges)}"]


def _targets_of_table(config: DataConfig, task: str) -> dict[str, Target]:
    """The target of every patient of the table that has one, with feature files or without."""
    table = read_table(config.table)
    names = [slide_name(row[config.slide]) for row in table.rows]
    found = {}
    for patient, row in zip(origins_of(table, names, config).patients, table.rows, strict=True):
        with contextlib.suppress(LackingError):
            found[patient] = target_of(row, config, task, ())
    return found


def _pos_weight(head: dict[str, Any], cohort: Cohort, train: Sequence[int]) -> float:
    """Negative patches of the training part for each positive one."""
    threshold = float(head.get("threshold") or 0.5)
    labels = []
    for row in train:
        share = torch.as_tensor(cohort.labels_of_patches(row))
        labels.append(torch.where(share < 0, -1, (share >= threshold).long()))
    return positive_weight(torch.cat(labels))


def task_loss_of(
    config: RunConfig, cohort: Cohort, train: Sequence[int], head: Head | None = None
) -> TaskLoss | None:
    """The loss that the config asks for in place of the head's own; None: the head's own.

    Raises:
        SpecError: of another task than the data's, or of a head that asks one question a class.
    """
    asked = config.train
    weighted = asked.class_weights is not None or asked.label_smoothing > 0
    if not weighted:
        return None
    if cohort.task != "classification":
        raise SpecError(
            "train.class_weights and train.label_smoothing are of classification, this is "
            f"{cohort.task}"
        )
    if getattr(head, "one_vs_rest", False):
        raise SpecError(
            "train.class_weights and train.label_smoothing are of cross entropy, this head asks "
            'one question a class. Leave them out, or set overrides=["head.one_vs_rest=false", '
            '"head.one_logit=false"]'
        )
    bags = Samples(cohort, train).samples  # slides, or patients where they are one bag
    labels = torch.tensor([int(bag.target["label"]) for bag in bags])
    weights = inverse_frequencies(labels, len(cohort.classes)) if asked.class_weights else None
    if weights is None:
        return lambda raw, targets: cross_entropy(
            raw, targets["label"].long(), label_smoothing=asked.label_smoothing
        )
    return _weighted(weights / weights[labels].mean(), asked.label_smoothing)


def _weighted(weights: torch.Tensor, label_smoothing: float) -> TaskLoss:
    """Cross entropy times the weight (C,) of the label; the mean is over rows, not over weights.

    So a slide that is a step alone counts by its weight too, and packing equals accumulating, which
    of `wsizoo.losses.cross_entropy` is not so.
    """

    def loss(raw: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        label = targets["label"].long()
        each = F.cross_entropy(
            raw, label, ignore_index=-1, reduction="none", label_smoothing=label_smoothing
        )  # (n,), 0 where the label is unknown
        known = (label >= 0).sum().clamp(min=1)
        return (weights.to(raw)[label.clamp(min=0)] * each).sum() / known

    return loss
