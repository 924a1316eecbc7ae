"""What a benchmark is to run: models, feature sets, folds and seeds, as its YAML file says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsizoo.errors import NotFoundError, SpecError
from wsizoo.names import suggest
from wsizoo.registry import Registry
from wsizoo.train.config import RunConfig, load_config, read_content
from wsizoo.train.recipes import is_file

if TYPE_CHECKING:
    from wsizoo.bag import Bag

OWN = ("optimiser", "schedule", "train", "augment", "selection")
"""What a model with a recipe of its own takes from that, instead of from the benchmark."""
FIELDS = ("name", "model", "overrides", "recipe")


@dataclass(frozen=True)
class Candidate:
    """One model of a benchmark.

    Args:
        name: in the tables. model: what `wsizoo.build` takes; None: the benchmark's own.
        overrides: of it. recipe: whose `OWN` settings it is trained with, in place of the others'.
    """

    name: str
    model: str | None = None
    overrides: tuple[str, ...] = ()
    recipe: str | None = None


@dataclass(frozen=True)
class Asked:
    """The content of a benchmark's file.

    Args:
        shared: the keys of a training run. overrides: texts laid over them.
        models: None: all that are installed and fit. features: name -> folder.
    """

    shared: Mapping[str, Any]
    overrides: tuple[str, ...]
    models: tuple[Candidate, ...] | None
    features: Mapping[str, str]

    def config(self, candidate: Candidate | None = None) -> RunConfig:
        """The run of a candidate, or what all share. Raises as `load_config`."""
        content = dict(self.shared)
        if candidate and candidate.recipe:
            content = {key: value for key, value in content.items() if key not in OWN}
            content["recipe"] = candidate.recipe
        if candidate and candidate.model:
            content |= {"model": candidate.model, "overrides": []}
        return load_config(content, self.overrides)


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
    if isinstance(source, Mapping):
        whose, content, folder = "the benchmark", dict(source), Path.cwd()
    else:
        whose, folder = f"benchmark '{source}'", Path(source).absolute().parent
        content = read_content(Path(source))
    listed = content.pop("models", None)
    sets = _feature_sets(whose, content.pop("features", None), content.get("data"))
    base = str(content.get("model", ""))
    found = _candidates(whose, listed, registry, folder)
    if models is not None:
        own = {candidate.name: candidate for candidate in found or ()}
        found = [own.get(name) or _named(name, registry, list(own)) for name in models]
    _check_names(whose, [candidate.name for candidate in found or ()])
    kept = None if found is None else tuple(_on(base, each, registry) for each in found)
    features = {name: str(folder / path) for name, path in sets.items()}
    return Asked(content, tuple(overrides), kept, features)


def installed_candidates(base: str, registry: Registry) -> list[Candidate]:
    """The base model with each installed aggregator in the place of its own."""
    offered = registry.plugins.components("aggregator")
    return [_on(base, Candidate(component.name), registry) for component in offered]


def overrides_for(candidate: Candidate, config: RunConfig, bag: Bag, registry: Registry) -> list[str]:
    """All overrides of a cell's model: the benchmark's, the encoder of its features, its own."""
    shared = [] if candidate.model else list(config.overrides)
    made = bag.encoder.encoder if bag.encoder else None
    uses = registry.models[config.model].part("encoder") if config.model in registry.models else made
    encoder = []
    if made and made != uses:
        encoder = [f"encoder={json.dumps({'name': made, 'dim': bag.features.shape[1]})}"]
    return [*shared, *encoder, *candidate.overrides]


def _feature_sets(whose: str, sets: Any, data: Any) -> dict[str, str]:
    """Name -> folder, of `features: {name: folder}` or of `data.features`."""
    if sets is None:
        folder = data.get("features") if isinstance(data, dict) else None
        if not folder:
            raise SpecError(f"{whose} names no features. Give it some: features: {{uni: FOLDER}}")
        return {Path(folder).name: str(folder)}
    if isinstance(sets, list) and all(isinstance(each, dict) for each in sets):
        names = [str(name) for each in sets for name in each]
        _check_names(whose, names)
        sets = {name: folder for each in sets for name, folder in each.items()}
    if not isinstance(sets, dict) or not all(isinstance(path, str) for path in sets.values()):
        raise SpecError(f"{whose}: features is {sets!r}, expected {{name: folder, ...}}")
    return {str(name): path for name, path in sets.items()}


def _candidates(
    whose: str, listed: Any, registry: Registry, folder: Path
) -> list[Candidate] | None:
    if listed is None:
        return None
    if not isinstance(listed, list) or not listed:
        raise SpecError(f"{whose}: models is {listed!r}, expected a list of names")
    found = []
    for each in listed:
        if isinstance(each, str):
            found.append(_named(each, registry, []))
            continue
        if not isinstance(each, dict) or not isinstance(each.get("name"), str):
            raise SpecError(f"{whose}: a model is {each!r}, expected a name, or {{name: ..., ...}}")
        for key in set(each) - set(FIELDS):
            hint = suggest(str(key), FIELDS, "Fields: ")
            raise SpecError(f"{whose}: unknown field '{key}' of model '{each['name']}'. {hint}")
        recipe = each.get("recipe")
        found.append(
            Candidate(
                each["name"],
                each.get("model"),
                tuple(each.get("overrides") or ()),
                str(folder / recipe) if is_file(recipe) else recipe,
            )
        )
    return found


def _named(name: str, registry: Registry, own: Sequence[str]) -> Candidate:
    """A model of the registry, or the benchmark's own with an aggregator of that name."""
    if name in registry.models:
        return Candidate(name, name)
    offered = [component.name for component in registry.plugins.components("aggregator")]
    if name in offered:
        return Candidate(name)
    known = [*own, *offered, *registry.models]
    plugin = registry.plugin_of("aggregator", name)
    hint = f"Install it: pip install {plugin}" if plugin else suggest(name, known, "Known: ")
    raise NotFoundError(f"No model or aggregator named '{name}'. {hint}")


def _on(base: str, candidate: Candidate, registry: Registry) -> Candidate:
    """A candidate that is the name of an aggregator gets it by an override of the base model."""
    offered = {component.name for component in registry.plugins.components("aggregator")}
    if candidate.model or candidate.overrides or candidate.name not in offered:
        return candidate
    entry = registry.models.get(base)
    if entry is not None and entry.part("aggregator") == candidate.name:
        return candidate  # with the arguments that the base model gives it
    return Candidate(
        candidate.name, None, (f"aggregator={candidate.name}",), candidate.recipe
    )


def _check_names(whose: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"{whose} names '{name}' twice, expected names that differ")
