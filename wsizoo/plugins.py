"""Finding plugins, and surviving the broken ones.

Each entry point of the group `wsizoo` is imported under guard. Whatever goes wrong (an import
error, SystemExit, a wrong API version, a misspelt hook, a name that is taken) puts that plugin
alone into quarantine, with the reason; the others go on.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pluggy

from wsizoo import __version__, hookspecs
from wsizoo.errors import NotFoundError, PluginError
from wsizoo.hookspecs import API_VERSION, KINDS, Component, Kind, OpBackend, WeightFormat
from wsizoo.names import describe, refuse_taken, suggest
from wsizoo.targets import load_target

GROUP = "wsizoo"
ALLOW_LIST = "WSIZOO_PLUGINS"
CORE = "wsizoo"
HOOKS = [name for name in vars(hookspecs) if name.startswith("wsizoo_")]
Data = TypeVar("Data", Component, OpBackend, WeightFormat)


@dataclass
class Plugin:
    """One discovered plugin: what it offers, or why it is in quarantine."""

    name: str
    distribution: str
    version: str
    components: tuple[Component, ...] = ()
    backends: tuple[OpBackend, ...] = ()
    formats: tuple[WeightFormat, ...] = ()
    registry: Path | None = None
    reason: str | None = None
    imports_torch: bool = False
    core: bool = False

    @property
    def works(self) -> bool:
        return self.reason is None


@dataclass
class Plugins:
    """All plugins of this process, in the order in which they were considered (the core first)."""

    all: list[Plugin] = field(default_factory=list)

    def working(self) -> list[Plugin]:
        return [plugin for plugin in self.all if plugin.works]

    def quarantine(self, plugin: Plugin, reason: str) -> None:
        """Withdraw everything this plugin offers. A core that does not work is a PluginError."""
        if plugin.core:
            raise PluginError(f"wsizoo itself {reason}. pip install --force-reinstall wsizoo")
        plugin.reason = reason
        plugin.components, plugin.backends, plugin.formats, plugin.registry = (), (), (), None

    def components(self, kind: Kind | None = None) -> list[Component]:
        return [c for p in self.working() for c in p.components if kind in (None, c.kind)]

    def backends(self) -> list[OpBackend]:
        return [backend for plugin in self.working() for backend in plugin.backends]

    def formats(self) -> list[WeightFormat]:
        return [weights for plugin in self.working() for weights in plugin.formats]

    def owner(self, component: Component) -> Plugin:
        return next(plugin for plugin in self.working() if component in plugin.components)

    def component(
        self, kind: Kind, name: str, known_plugin: str | None = None, publisher: str | None = None
    ) -> Component:
        """The component of this kind and name.

        Args:
            known_plugin: distribution that is known to hold it, for the message.
            publisher: whose word that is, where no registry vouches for it.

        Raises:
            NotFoundError: with near names, or the pip command, or why its plugin is in quarantine.
        """
        offered = {component.name: component for component in self.components(kind)}
        if name in offered:
            return offered[name]
        holder = next((p for p in self.all if p.distribution == known_plugin), None)
        if known_plugin and holder is None:
            hint = f"Install it: pip install {known_plugin}"
            if publisher:
                hint = (
                    f"{publisher} names the plugin {known_plugin}, which the registry of wsizoo "
                    f"does not list. Look at whose it is, then: pip install {known_plugin}"
                )
        elif holder and not holder.works:
            hint = f"Its plugin {known_plugin} is in quarantine: {holder.reason}"
        else:
            hint = f"{suggest(name, offered, f'Known {kind}s: ')} {self.see()}"
        raise NotFoundError(f"No {kind} named '{name}' is installed. {hint}")

    def see(self, command: str = "wsizoo plugins") -> str:
        """Where to look for what is not here: plugins in quarantine may hold it."""
        held = ", ".join(plugin.distribution for plugin in self.all if not plugin.works)
        return f"In quarantine: {held}. See: wsizoo plugins" if held else f"See: {command}"

    def load(self, kind: Kind, name: str, *hints: str | None) -> Any:
        """Import the class behind a component; `hints` as those of `component`.

        Raises:
            NotFoundError: no such component.
            PluginError: the announced target cannot be imported.
        """
        component = self.component(kind, name, *hints)
        plugin = self.owner(component)
        return load_target(component.target, f"{kind} '{name}' of {plugin.distribution}")


def discover(entry_points: Sequence[Any] | None = None, allow: str | None = None) -> Plugins:
    """Look at every entry point of the group `wsizoo`, and at the core's own.

    Args:
        entry_points: instead of the installed ones; name, value, dist and load() are read.
        allow: comma-separated entry-point or distribution names; default the variable
            `WSIZOO_PLUGINS`; unset means all, empty means none but the core.
    """
    if entry_points is None:
        entry_points = list(importlib.metadata.entry_points(group=GROUP))
    allow = os.environ.get(ALLOW_LIST) if allow is None else allow
    allowed = None if allow is None else {name.strip() for name in allow.split(",")}
    plugins = Plugins()
    core = importlib.metadata.EntryPoint(CORE, "wsizoo.builtin", GROUP)
    _add(plugins, Plugin(CORE, CORE, __version__, core=True), core)
    for point in sorted(entry_points, key=lambda p: (_distribution(p), p.name)):
        version = str(point.dist.version) if point.dist is not None else "?"
        plugin = Plugin(point.name, _distribution(point), version)
        if plugin.name == CORE:
            plugin.reason = f"has an entry point named '{CORE}', the core's: rename it"
        elif allowed is not None and not {plugin.name, plugin.distribution} & allowed:
            plugin.reason = f"not in the allow-list {ALLOW_LIST}={allow}"
        if plugin.works:
            _add(plugins, plugin, point)
        else:
            plugins.all.append(plugin)
    return plugins


@functools.cache
def installed() -> Plugins:
    """The plugins of this process, discovered once."""
    return discover()


def _add(plugins: Plugins, plugin: Plugin, point: Any) -> None:
    """Import one plugin and take its data, or quarantine it; KeyboardInterrupt passes."""
    taken = {label: p.distribution for p in plugins.working() for label in _labels(p)}
    plugins.all.append(plugin)
    had_torch, stage = "torch" in sys.modules, "import"
    try:
        module = point.load()
        stage = "its hooks"
        _read_hooks(plugin, module)
        refuse_taken(_labels(plugin), taken, plugin.distribution)
    except KeyboardInterrupt:
        raise
    except PluginError as error:
        plugins.quarantine(plugin, str(error))
    except BaseException as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name
        hint = f" (install what it needs: pip install {missing})" if missing else ""
        plugins.quarantine(plugin, f"fails on {stage}: {describe(error)}{hint}")
    plugin.imports_torch = not had_torch and "torch" in sys.modules


def _read_hooks(plugin: Plugin, module: Any) -> None:
    """Call each hook of one module and check what it returns."""
    api = getattr(module, "wsizoo_api", None)
    if api != API_VERSION:
        newer = isinstance(api, int) and api > API_VERSION
        states = "states no wsizoo_api" if api is None else f"states wsizoo_api = {api!r}"
        advice = "pip install --upgrade " + (CORE if newer else plugin.distribution)
        raise PluginError(f"{states}, this wsizoo speaks {API_VERSION}: {advice}")
    for name, value in vars(module).items():
        if name.startswith("wsizoo_") and callable(value):
            if name not in HOOKS:
                raise PluginError(f"has no hook to offer as '{name}'. {suggest(name, HOOKS, '')}")
            if not hasattr(value, f"{hookspecs.PROJECT}_impl"):
                raise PluginError(f"{name} lacks its decorator: @wsizoo.hookimpl")
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(module, plugin.name)
    manager.check_pending()
    plugin.components = _called(manager, "wsizoo_components", Component)
    plugin.backends = _called(manager, "wsizoo_op_backends", OpBackend)
    plugin.formats = _called(manager, "wsizoo_weight_formats", WeightFormat)
    for folder in manager.hook.wsizoo_registry():
        if not isinstance(folder, str | Path) or not (Path(folder) / "registry.yaml").is_file():
            raise PluginError(
                f"wsizoo_registry() names {str(folder)!r}, which holds no registry.yaml"
            )
        plugin.registry = Path(folder)


def _called(manager: pluggy.PluginManager, hook: str, kind: type[Data]) -> tuple[Data, ...]:
    """What a hook returns, each item checked; () where the plugin does not have it."""
    caller = getattr(manager.hook, hook)
    returned = next(iter(caller()), None) if caller.get_hookimpls() else ()  # pluggy drops None
    if not isinstance(returned, list | tuple):
        raise PluginError(f"{hook}() returned {returned!r}, expected [{kind.__name__}(...), ...]")
    for item in returned:
        if not isinstance(item, kind):
            raise PluginError(f"{hook}() returned {item!r}, expected {kind.__name__}(...)")
        if isinstance(item, Component) and item.kind not in KINDS:
            hint = suggest(str(item.kind), KINDS, "Kinds: ")
            raise PluginError(f"component '{item.name}' has kind '{item.kind}'. {hint}")
        if isinstance(item, OpBackend) and item.name in ("reference", "auto"):
            raise PluginError(f"a backend of {item.op} is named '{item.name}', which every op has")
        if isinstance(item, WeightFormat) and not isinstance(item.components, list | tuple):
            raise PluginError(f"'{item.name}' has components {item.components!r}, expected names")
        for name, target in vars(item).items():
            if name in ("target", "why_not") and not re.fullmatch(r"[\w.]+:\w+", str(target)):
                expected = "expected 'package.module:Name'"
                raise PluginError(f"'{item.name}' has {name} '{target}', {expected}")
    return tuple(returned)


def _labels(plugin: Plugin) -> list[str]:
    """What must be unique among all plugins."""
    backends = [f"backend '{backend.name}' of op {backend.op}" for backend in plugin.backends]
    formats = [f"weight format '{weights.name}'" for weights in plugin.formats]
    return [f"{c.kind} '{c.name}'" for c in plugin.components] + backends + formats


def _distribution(point: Any) -> str:
    """Name as pip prints it: lower case, with hyphens."""
    name = str(point.dist.name) if point.dist is not None else point.value.partition(":")[0]
    return re.sub(r"[-_.]+", "-", name).lower()
