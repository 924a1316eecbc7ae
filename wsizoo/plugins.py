"""Finding plugins, and surviving the broken ones.

Each entry point of the group `wsizoo` is imported under guard. Whatever goes wrong (an import
error, SystemExit, a wrong API version, a misspelt hook, a name that is taken) puts that plugin alone into
quarantine, with the reason; the others go on.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pluggy

from wsizoo import hookspecs
from wsizoo.errors import NotFoundError, PluginError
from wsizoo.hookspecs import API_VERSION, KINDS, Component, Kind, OpBackend

GROUP = "wsizoo"
ALLOW_LIST = "WSIZOO_PLUGINS"
CORE = "wsizoo"
Data = TypeVar("Data", Component, OpBackend)


class EntryPoint(Protocol):
    """The part of `importlib.metadata.EntryPoint` that discovery needs."""

    name: str
    value: str
    dist: Any

    def load(self) -> Any: ...


@dataclass
class Plugin:
    """One discovered plugin: what it offers, or why it is in quarantine."""

    name: str
    distribution: str
    version: str
    components: tuple[Component, ...] = ()
    backends: tuple[OpBackend, ...] = ()
    registry: Path | None = None
    reason: str | None = None
    imports_torch: bool = False

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
        """Withdraw everything this plugin offers."""
        plugin.reason = reason
        plugin.components, plugin.backends, plugin.registry = (), (), None

    def components(self, kind: Kind | None = None) -> list[Component]:
        return [c for p in self.working() for c in p.components if kind in (None, c.kind)]

    def backends(self) -> list[OpBackend]:
        return [backend for plugin in self.working() for backend in plugin.backends]

    def owner(self, component: Component) -> Plugin:
        return next(plugin for plugin in self.working() if component in plugin.components)

    def component(self, kind: Kind, name: str, known_plugin: str | None = None) -> Component:
        """The component of this kind and name.

        Args:
            known_plugin: distribution that is known to hold it, for the message.

        Raises:
            NotFoundError: with near names, or the pip command, or why its plugin is in quarantine.
        """
        offered = {component.name: component for component in self.components(kind)}
        if name in offered:
            return offered[name]
        held = [p for p in self.all if p.distribution == known_plugin and not p.works]
        if held:
            hint = (
                f"Its plugin {known_plugin} is in quarantine: {held[0].reason}. See: wsizoo plugins"
            )
        elif known_plugin:
            hint = f"Install it: pip install {known_plugin}"
        else:
            hint = suggest(name, offered, f"Known {kind}s: ") + " See: wsizoo plugins"
        raise NotFoundError(f"No {kind} named '{name}' is installed. {hint}")

    def load(self, kind: Kind, name: str, known_plugin: str | None = None) -> Any:
        """Import the class behind a component.

        Raises:
            NotFoundError: no such component.
            PluginError: the announced target cannot be imported.
        """
        component = self.component(kind, name, known_plugin)
        plugin = self.owner(component)
        return load_target(component.target, f"{kind} '{name}' of {plugin.distribution}")


def load_target(target: str, whose: str) -> Any:
    """Import `"package.module:Name"`; what fails is a PluginError that says whose target it is."""
    module_name, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except KeyboardInterrupt:
        raise
    except ImportError as error:
        raise PluginError(f"{whose} cannot be imported from '{target}': {error}") from error
    except AttributeError as error:
        raise PluginError(f"{whose}: '{module_name}' holds no '{attribute}'") from error
    except BaseException as error:
        raise PluginError(f"{whose} fails on import of '{target}': {describe(error)}") from error


def suggest(name: str, known: Iterable[str], otherwise: str) -> str:
    """`Did you mean ...?`, or everything that is known."""
    import difflib

    names = sorted(known)
    lower = {n.lower(): n for n in names}
    near = [lower[n] for n in difflib.get_close_matches(name.lower(), list(lower), n=3, cutoff=0.5)]
    if near:
        return "Did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    return otherwise + ", ".join(names[:12]) + (" ..." if len(names) > 12 else "") + "."


def describe(error: BaseException) -> str:
    """`Kind: message`."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def discover(entry_points: Sequence[EntryPoint] | None = None, allow: str | None = None) -> Plugins:
    """Look at every entry point of the group `wsizoo`, and at the core's own.

    Args:
        entry_points: instead of the installed ones (tests).
        allow: comma-separated entry-point or distribution names; default the variable
            `WSIZOO_PLUGINS`; unset means all, empty means none but the core.
    """
    if entry_points is None:
        entry_points = list[Any](importlib.metadata.entry_points(group=GROUP))
    allow = os.environ.get(ALLOW_LIST) if allow is None else allow
    plugins = Plugins()
    _add(plugins, Plugin(CORE, CORE, _version(CORE)), "wsizoo.builtin")
    for point in sorted(entry_points, key=lambda p: (_distribution(p), p.name)):
        plugin = Plugin(point.name, _distribution(point), _point_version(point))
        if allow is not None and not {plugin.name, plugin.distribution} & set(allow.split(",")):
            plugin.reason = f"not in the allow-list {ALLOW_LIST}={allow}"
            plugins.all.append(plugin)
            continue
        _add(plugins, plugin, point)
    return plugins


@functools.cache
def installed() -> Plugins:
    """The plugins of this process, discovered once."""
    return discover()


def _add(plugins: Plugins, plugin: Plugin, source: EntryPoint | str) -> None:
    """Import one plugin and take its data, or quarantine it. Never raises but KeyboardInterrupt."""
    plugins.all.append(plugin)
    before = set(sys.modules)
    try:
        module = importlib.import_module(source) if isinstance(source, str) else source.load()
        _read_hooks(plugin, module)
        _check_names_are_free(plugins, plugin)
    except KeyboardInterrupt:
        raise
    except PluginError as error:
        plugins.quarantine(plugin, str(error))
    except BaseException as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name
        hint = f" (install what it needs: pip install {missing})" if missing else ""
        plugins.quarantine(plugin, f"fails on import: {describe(error)}{hint}")
    plugin.imports_torch = "torch" in set(sys.modules) - before


def _read_hooks(plugin: Plugin, module: Any) -> None:
    """Call each hook of one module and check what it returns."""
    api = getattr(module, "wsizoo_api", None)
    if api != API_VERSION:
        advice = "pip install --upgrade " + (CORE if _newer(api) else plugin.distribution)
        raise PluginError(
            f"states wsizoo_api = {api!r}, this wsizoo speaks {API_VERSION}: {advice}"
        )
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(module, plugin.name)
    known = {name for name in vars(hookspecs) if name.startswith("wsizoo_")}
    for name in vars(module):
        if name.startswith("wsizoo_") and name != "wsizoo_api" and name not in known:
            raise PluginError(
                f"has no hook to offer as '{name}'. {suggest(name, known, 'Hooks: ')}"
            )
    manager.check_pending()
    for items in manager.hook.wsizoo_components():
        plugin.components = tuple(_checked(item, Component, "wsizoo_components") for item in items)
    for items in manager.hook.wsizoo_op_backends():
        plugin.backends = tuple(_checked(item, OpBackend, "wsizoo_op_backends") for item in items)
    for folder in manager.hook.wsizoo_registry():
        if not (Path(folder) / "registry.yaml").is_file():
            raise PluginError(f"wsizoo_registry() names '{folder}', which holds no registry.yaml")
        plugin.registry = Path(folder)


def _checked(item: Any, expected: type[Data], hook: str) -> Data:
    if not isinstance(item, expected):
        raise PluginError(f"{hook}() returned {item!r}, expected {expected.__name__}(...)")
    if isinstance(item, Component) and item.kind not in KINDS:
        raise PluginError(
            f"component '{item.name}' has kind '{item.kind}', expected one of {KINDS}"
        )
    if ":" not in item.target:
        raise PluginError(
            f"'{item.name}' has target '{item.target}', expected 'package.module:Name'"
        )
    return item


def _check_names_are_free(plugins: Plugins, plugin: Plugin) -> None:
    taken = {
        (c.kind, c.name): p.distribution
        for p in plugins.working()
        if p is not plugin
        for c in p.components
    }
    for component in plugin.components:
        key = (component.kind, component.name)
        if key in taken:
            raise PluginError(
                f"{component.kind} '{component.name}' of {plugin.distribution} exists already in "
                f"{taken[key]}: uninstall one, or ask its author to rename it"
            )
        taken[key] = plugin.distribution


def _newer(api: Any) -> bool:
    return isinstance(api, int) and api > API_VERSION


def _distribution(point: EntryPoint) -> str:
    return str(point.dist.name) if point.dist is not None else point.value.partition(":")[0]


def _point_version(point: EntryPoint) -> str:
    return str(point.dist.version) if point.dist is not None else "?"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "?"
