"""Names to entries: the root registry.yaml and those of the plugins, read as data.

Listing reads YAML only; an entry is checked (`wsizoo.spec`) when it is used.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsizoo.errors import NotFoundError, PluginError, SpecError
from wsizoo.names import check_distribution, refuse_taken, suggest
from wsizoo.plugins import CORE, Plugin, Plugins, installed
from wsizoo.yaml_data import read_yaml

if TYPE_CHECKING:
    from wsizoo.encoder_spec import EncoderSpec
    from wsizoo.spec import ModelSpec

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
            if plugin.registry is not None:
                try:
                    registry._add(plugin, read_file(plugin.registry / FILE))
                except (SpecError, PluginError) as error:
                    plugins.quarantine(plugin, str(error))
        return registry

    def model(self, name: str) -> Entry:
        """The entry of this name; an alias is followed with a DeprecationWarning.

        Raises:
            NotFoundError: with the near names.
        """
        if name in self.aliases:
            current = self.aliases[name]
            message = f"model '{name}' is now called '{current}'"
            warnings.warn(message, DeprecationWarning, stacklevel=4)  # who called load or build
            name = current
        return self._entry("model", name, self.models, "wsizoo list")

    def model_spec(self, name: str, overrides: Sequence[str] = ()) -> ModelSpec:
        """The checked entry of this name with overrides. Raises NotFoundError, SpecError."""
        from wsizoo.spec import model_spec

        entry = self.model(name)
        return model_spec(entry.name, entry.record, overrides)

    def encoder_spec(self, name: str) -> EncoderSpec:
        """The checked catalogue entry of an encoder. Raises NotFoundError, SpecError."""
        from wsizoo.encoder_spec import encoder_spec

        entry = self._entry("encoder", name, self.encoders, "wsizoo list --encoders")
        return encoder_spec(name, entry.record)

    def is_encoder(self, name: str) -> bool:
        """The catalogue of encoders holds this name, and no model is called so."""
        return name in self.encoders and name not in {*self.models, *self.aliases}

    def plugin_of(self, part: str, name: str) -> str | None:
        """The distribution that holds this component, by the models that use it; None: the core."""
        users = [e.record.get("plugin") for e in self.models.values() if e.part(part) == name]
        return next((str(plugin) for plugin in users if all(users)), None)

    def vouches_for(self, plugin: str) -> bool:
        """The core's registry lists this distribution."""
        return any(
            e.owner == CORE and e.record.get("plugin") == plugin for e in self.models.values()
        )

    def has_weights(self, entry: Entry) -> bool:
        weights = entry.record.get("weights")
        return isinstance(weights, dict) and bool(weights.get("package") or weights.get("repo"))

    def _entry(self, kind: str, name: str, entries: dict[str, Entry], command: str) -> Entry:
        if name not in entries:
            hint = suggest(name, entries, f"Known {kind}s: ")
            raise NotFoundError(f"No {kind} named '{name}'. {hint} {self.plugins.see(command)}")
        return entries[name]

    def _add(self, plugin: Plugin, content: dict[str, Any]) -> None:
        models = _entries(plugin, content, "models")
        encoders = _entries(plugin, content, "encoders")
        pairs = [(alias, e.name) for e in models.values() for alias in _aliases(e)]
        labels = [f"model '{n}'" for n in (*models, *(alias for alias, _ in pairs))]
        labels += [f"encoder '{n}'" for n in encoders]
        own = {**self.models, **{alias: self.models[n] for alias, n in self.aliases.items()}}
        taken = {f"model '{n}'": entry.owner for n, entry in own.items()}
        taken |= {f"encoder '{n}'": entry.owner for n, entry in self.encoders.items()}
        refuse_taken(labels, taken, plugin.distribution)
        self.models |= models
        self.encoders |= encoders
        self.aliases |= dict(pairs)


def _entries(plugin: Plugin, content: dict[str, Any], section: str) -> dict[str, Entry]:
    """One section of a registry file; what a plugin's entries need is, by default, that plugin."""
    records = content.get(section) or {}
    where = f"{FILE} of {plugin.distribution}"
    if not isinstance(records, dict):
        raise SpecError(f"{where}: '{section}' is not a mapping of names")
    for name, record in records.items():
        if not re.fullmatch(r"\w[\w.+-]*", str(name)):
            raise SpecError(f"{where}: '{name}' is no name, expected letters, digits, - _ . +")
        if not isinstance(record, dict):
            raise SpecError(f"{where}: {section} '{name}' is not a mapping of fields")
        if not plugin.core:
            record.setdefault("plugin", plugin.distribution)
        check_distribution(f"{where}: {section} '{name}'", record.get("plugin"))
    return {str(n): Entry(str(n), r, plugin.distribution) for n, r in records.items()}


def _aliases(entry: Entry) -> list[str]:
    aliases = entry.record.get("aliases") or []
    if not isinstance(aliases, list):
        raise SpecError(f"model '{entry.name}': aliases is {aliases!r}, expected a list of names")
    return [str(alias) for alias in aliases]


@functools.cache
def default() -> Registry:
    """The registry of this process, read once."""
    return Registry.of(installed())


def core_folder() -> Path:
    """Folder of the core's registry.yaml: inside the wheel, else beside the package."""
    package = Path(__file__).parent
    return package if (package / FILE).is_file() else package.parent


def read_file(path: Path) -> dict[str, Any]:
    """Read one registry file; a key that stands twice is an error.

    Raises:
        SpecError: not readable, not YAML, not a mapping, unknown sections, duplicate keys.
    """
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise SpecError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise SpecError(f"{path}: expected a mapping with {' and '.join(SECTIONS)}")
    for key in content:
        if key not in SECTIONS:
            raise SpecError(f"{path}: unknown section '{key}', expected {' or '.join(SECTIONS)}")
    return content
