"""What a benchmark is to run: models, feature sets, folds and seeds, as its YAML file says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsizoo.errors import NotFoundError, SpecError
from wsizoo.names import suggest
from wsizoo.overrides import in_full
from wsizoo.registry import Registry
from wsizoo.structured import MISSING, structured
from wsizoo.train.config import RunConfig, load_config
from wsizoo.train.config_content import read_whole
from wsizoo.train.recipes import is_file

if TYPE_CHECKING:
    from wsizoo.bag import Bag

OWN = frozenset(
    ("model", "overrides", "init", "optimiser", "schedule", "train", "augment", "selection")
)
"""What a model with a recipe of its own takes from that, instead of from the benchmark."""
BASE = frozenset(("recipe", "model", "overrides", "init"))
"""Overrides that say what the base model is; all others hold for every model."""


@dataclass(frozen=True)
class Candidate:
    """One model of a benchmark.

    Args:
        name: in the tables. model: what `wsizoo.build` takes; None: the recipe's, or else the
            benchmark's. overrides: of it, after the benchmark's.
        recipe: whose `OWN` settings hold in place of the benchmark's.
    """

    name: str
    model: str | None = None
    overrides: tuple[str, ...] = ()
    recipe: str | None = None


@dataclass(frozen=True)
class Entry:
    """A mapping in the list `models`, see `Candidate`."""

    name: str = MISSING
    model: str | None = None
    overrides: list[str] = field(default_factory=list)
    recipe: str | None = None


@dataclass(frozen=True)
class Asked:
    """The content of a benchmark's file.

    Args:
        shared: the keys of a training run, its recipe's among them. overrides: texts laid over
            them, and over those of a candidate's recipe.
        models: None: all that are installed and fit. features: name -> folder.
    """

    shared: Mapping[str, Any]
    overrides: tuple[str, ...]
    models: tuple[Candidate, ...] | None
    features: Mapping[str, str]

    def config(self, candidate: Candidate | None = None) -> RunConfig:
        """The run of a candidate, or what all share. Raises as `load_config`."""
        content = dict(self.shared)
        if candidate is None and self.models and "model" not in content:
            candidate = self.models[0]  # stands in: the task is that of any of them
        recipe = candidate and candidate.recipe
        if recipe:
            _, its = read_whole({"recipe": recipe})
            content = {key: value for key, value in content.items() if key not in OWN}
            content |= {key: value for key, value in its.items() if key in OWN}
            content["recipe"] = recipe
        if candidate and candidate.model:
            content |= {"model": candidate.model, "overrides": []}
        config = load_config({**content, "recipe": None}, self.overrides)  # it lies under already
        return replace(config, recipe=content.get("recipe"))


def read_benchmark(
    source: Path | str | Mapping[str, Any],
    overrides: Sequence[str],
    models: Sequence[str] | None,
    registry: Registry,
) -> Asked:
    """A benchmark from its YAML file (or its content): a training run with models and features.

    Paths are relative to the file's folder.

    Args:
        models: names, instead of those of the file.

    Raises:
        NotFoundError: no such file, or no such model (the near one named).
        SpecError: not well formed.
    """
    folder = Path.cwd() if isinstance(source, Mapping) else Path(source).absolute().parent
    whose = "the benchmark" if isinstance(source, Mapping) else f"benchmark '{source}'"
    _refuse_lists(whose, overrides)
    of_base = [text for text in overrides if text.partition("=")[0] in BASE]
    _, content = read_whole(source, of_base)
    overrides = [text for text in overrides if text not in of_base]
    listed = content.pop("models", None)
    sets = content.pop("features", None)
    base = str(content.get("model", ""))
    if not (listed is None or (isinstance(listed, list) and listed)):
        raise SpecError(f"{whose}: models is {listed!r}, expected a list of names")
    found = [_candidate(whose, each, base, registry, folder) for each in listed or ()]
    if models is not None:
        own = {candidate.name: candidate for candidate in found}
        found = [own.get(name) or _named(name, base, registry, list(own)) for name in models]
    _check_names(whose, [candidate.name for candidate in found])
    asked = Asked(content, tuple(overrides), tuple(found) or None, {})
    if sets is None or any(text.startswith("data.features=") for text in overrides):
        return replace(asked, features=_one_set(whose, asked.config().data.features))
    return replace(asked, features=_feature_sets(whose, sets, folder))


def _refuse_lists(whose: str, overrides: Sequence[str]) -> None:
    """Raise SpecError for what is a list in the file, and no KEY=VALUE of a run."""
    for text in overrides:
        key, _, value = text.partition("=")
        if key == "models":
            names = ",".join(re.findall(r"[^\s,'\"\[\]]+", value)) if "{" not in value else "a,b"
            raise SpecError(f"{whose}: '{text}' is an option, so type: --models {names or 'a,b'}")
        if key == "features":
            raise SpecError(
                f"{whose}: '{text}' is no key of a run. One set: data.features=FOLDER; several "
                "stand in the file, features: {name: folder}"
            )


def installed_candidates(base: str, registry: Registry) -> list[Candidate]:
    """The base model with each installed aggregator in the place of its own."""
    offered = registry.plugins.components("aggregator")
    return [_with_aggregator(base, component.name, registry) for component in offered]


def overrides_for(
    candidate: Candidate, config: RunConfig, bag: Bag, registry: Registry
) -> list[str]:
    """All overrides of a cell's model: the benchmark's, the encoder of its features, its own."""
    from wsizoo.train.making import spec_of

    made, uses = bag.encoder and bag.encoder.encoder, spec_of(config, registry).encoder
    encoder = []
    if made and (uses is None or uses.name != made):
        encoder = [f"encoder={json.dumps({'name': made, 'dim': bag.features.shape[1]})}"]
    return [*config.overrides, *encoder, *candidate.overrides]


def _one_set(whose: str, folder: str | None) -> dict[str, str]:
    if folder is None:
        raise SpecError(f"{whose} names no features. Give it some: features: {{uni: FOLDER}}")
    return {Path(folder).name: folder}


def _feature_sets(whose: str, sets: Any, folder: Path) -> dict[str, str]:
    """Name -> folder, of a mapping or of a list of mappings."""
    pairs = sets.items() if isinstance(sets, dict) else []
    if isinstance(sets, list) and all(isinstance(each, dict) for each in sets):
        pairs = [pair for each in sets for pair in each.items()]
    if not pairs or not all(isinstance(path, str) for _, path in pairs):
        raise SpecError(f"{whose}: features is {sets!r}, expected {{name: folder, ...}}")
    _check_names(whose, [str(name) for name, _ in pairs])
    found = {str(name): folder / path for name, path in pairs}
    for name, path in found.items():
        if not path.is_dir():
            raise NotFoundError(f"{whose}: no folder '{path}' of the features '{name}'")
    return {name: str(path) for name, path in found.items()}


def _candidate(whose: str, each: Any, base: str, registry: Registry, folder: Path) -> Candidate:
    """Of an entry of `models`: a name, or a mapping."""
    if isinstance(each, str):
        return _named(each, base, registry, [])
    if not isinstance(each, dict):
        raise SpecError(f"{whose}: a model is {each!r}, expected a name, or {{name: ..., ...}}")
    entry = structured(Entry, f"{whose}: a model", each)
    if len(each) == 1:
        return _named(entry.name, base, registry, [])
    recipe = str(folder / str(entry.recipe)) if is_file(entry.recipe) else entry.recipe
    return Candidate(entry.name, entry.model, tuple(entry.overrides), recipe)


def _named(name: str, base: str, registry: Registry, others: Sequence[str]) -> Candidate:
    """A model of the registry, or the base model with an aggregator of that name.

    Args:
        others: names that might have been meant.
    """
    if name in registry.models:
        return Candidate(name, name)
    offered = [component.name for component in registry.plugins.components("aggregator")]
    if name in offered:
        return _with_aggregator(base, name, registry)
    plugin = registry.plugin_of("aggregator", name)
    known = [*others, *offered, *registry.models]
    hint = f"Install it: pip install {plugin}" if plugin else suggest(name, known, "Known: ")
    raise NotFoundError(f"No model or aggregator named '{name}' is installed. {hint}")


def _with_aggregator(base: str, name: str, registry: Registry) -> Candidate:
    """The base model with that aggregator, as the zoo's models have it.

    Its arguments are those of the base, where it is the base's own; else of the first model of the
    registry that has it, with a head as the base's before others; else its defaults.
    """
    own = registry.models.get(base)
    if own is not None and own.part("aggregator") == name:
        return Candidate(name)
    users = [entry for entry in registry.models.values() if entry.part("aggregator") == name]
    alike = [entry for entry in users if own is not None and entry.part("head") == own.part("head")]
    found = next(iter([*alike, *users]), None)
    stated = in_full("aggregator", found.record["aggregator"] if found else name)
    return Candidate(name, None, (f"aggregator={json.dumps(stated)}",))


def _check_names(whose: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"{whose} names '{name}' twice, expected names that differ")
