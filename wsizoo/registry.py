"""Names to entries: the root registry.yaml and those of the plugins, read as data.

Listing reads YAML only; an entry is checked (`wsizoo.spec`) when it is used.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from wsizoo.errors import NotFoundError, SpecError
from wsizoo.plugins import CORE, Plugin, Plugins, installed, suggest

if TYPE_CHECKING:
    from wsizoo.spec import EncoderSpec, ModelSpec

FILE = "registry.yaml"
SECTIONS = ("models", "encoders")


@dataclass(frozen=True)
class Entry:
    """One record of a registry file, not yet checked."""

    name: str
    record: dict[str, Any]
    owner: str

    def part(self, which: str) -> str | None:
        """Name of the encoder, aggregator, ... of a model entry."""
        value = self.record.get(which)
        return value.get("name") if isinstance(value, dict) else value


@dataclass
class Registry:
    """All models and encoders that this process knows, installed or not."""

    plugins: Plugins
    models: dict[str, Entry] = field(default_factory=dict)
    encoders: dict[str, Entry] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, plugins: Plugins) -> Registry:
        """Read the registry files of all working plugins, the core's first.

        A plugin whose file is broken, or holds a name that exists, goes into quarantine.
        """
        registry = cls(plugins)
        for plugin in plugins.working():
            if plugin.registry is None:
                continue
            try:
                registry._add(plugin, read_file(plugin.registry / FILE))
            except SpecError as error:
                if plugin.name == CORE:
                    raise
                plugins.quarantine(plugin, str(error))
        return registry

    def model(self, name: str) -> Entry:
        """The entry of this name; an alias is followed with a DeprecationWarning.

        Raises:
            NotFoundError: with the near names.
        """
        if name in self.aliases:
            current = self.aliases[name]
            warnings.warn(
                f"model '{name}' is now called '{current}'", DeprecationWarning, stacklevel=3
            )
            name = current
        if name not in self.models:
            hint = suggest(name, self.models, "Known models: ")
            raise NotFoundError(f"No model named '{name}'. {hint} See: wsizoo list")
        return self.models[name]

    def model_spec(self, name: str, overrides: Sequence[str] = ()) -> ModelSpec:
        """The checked entry of this name with overrides. Raises NotFoundError, SpecError."""
        from wsizoo.spec import model_spec

        entry = self.model(name)
        return model_spec(entry.name, entry.record, overrides)

    def encoder_spec(self, name: str) -> EncoderSpec:
        """The checked catalogue entry of an encoder. Raises NotFoundError, SpecError."""
        from wsizoo.spec import encoder_spec

        if name not in self.encoders:
            hint = suggest(name, self.encoders, "Known encoders: ")
            raise NotFoundError(f"No encoder named '{name}'. {hint} See: wsizoo list --encoders")
        return encoder_spec(name, self.encoders[name].record)

    def plugin_of(self, part: str, name: str) -> str | None:
        """The distribution that is known to hold this component, from any model that uses it."""
        for entry in self.models.values():
            if entry.part(part) == name and entry.record.get("plugin"):
                return str(entry.record["plugin"])
        return None

    def has_weights(self, entry: Entry) -> bool:
        weights = entry.record.get("weights") or {}
        return bool(weights.get("package") or weights.get("repo"))

    def _add(self, plugin: Plugin, content: dict[str, Any]) -> None:
        models = self._entries(plugin, content, "models")
        encoders = self._entries(plugin, content, "encoders")
        aliases = {
            alias: entry.name
            for entry in models.values()
            for alias in entry.record.get("aliases", ())
        }
        known = {
            **{n: e.owner for n, e in self.models.items()},
            **dict.fromkeys(self.aliases, "an alias"),
        }
        self._check_free("model", {**models, **aliases}, known, plugin)
        self._check_free(
            "encoder", encoders, {n: e.owner for n, e in self.encoders.items()}, plugin
        )
        self.models.update(models)
        self.encoders.update(encoders)
        self.aliases.update(aliases)

    def _entries(self, plugin: Plugin, content: dict[str, Any], section: str) -> dict[str, Entry]:
        records = content.get(section) or {}
        where = f"{FILE} of {plugin.distribution}"
        if not isinstance(records, dict):
            raise SpecError(f"{where}: '{section}' is not a mapping of names")
        for name, record in records.items():
            if not isinstance(record, dict):
                raise SpecError(f"{where}: {section} '{name}' is not a mapping of fields")
            if plugin.name != CORE:
                record.setdefault("plugin", plugin.distribution)
        return {str(n): Entry(str(n), r, plugin.distribution) for n, r in records.items()}

    @staticmethod
    def _check_free(what: str, names: Any, known: dict[str, str], plugin: Plugin) -> None:
        for name in names:
            if name in known:
                raise SpecError(
                    f"{what} '{name}' of {plugin.distribution} exists already in {known[name]}: "
                    "uninstall one, or ask its author to rename it"
                )


@functools.cache
def default() -> Registry:
    """The registry of this process, read once."""
    return Registry.of(installed())


def core_folder() -> Path:
    """Folder of the core's registry.yaml: inside the wheel, else beside the package."""
    package = Path(__file__).parent
    return package if (package / FILE).is_file() else package.parent


def read_file(path: Path) -> dict[str, Any]:
    """Read one registry file with the C loader; a key that stands twice is an error.

    Raises:
        SpecError: not YAML, not a mapping, unknown sections, duplicate keys.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise SpecError(f"{path}: expected a mapping with {' and '.join(SECTIONS)}")
    for key in content:
        if key not in SECTIONS:
            raise SpecError(f"{path}: unknown section '{key}', expected {' or '.join(SECTIONS)}")
    return content


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader, except that duplicate keys are refused instead of overwritten."""


def _mapping(loader: Any, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"'{key}' stands here a second time", key_node.start_mark
            )
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
