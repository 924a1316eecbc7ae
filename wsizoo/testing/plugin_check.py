"""check_plugin: everything that can be said about a plugin without its author's own tests."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wsizoo.errors import NotFoundError, SpecError, WsizooError
from wsizoo.names import suggest
from wsizoo.ops import ops
from wsizoo.plugins import GROUP, Plugin, discover
from wsizoo.registry import Registry
from wsizoo.spec import PARTS
from wsizoo.targets import load_target
from wsizoo.testing._subject import CheckError, require
from wsizoo.testing.conformance_suite import BoundCheck, Result, bound_checks, checks, why_failed
from wsizoo.zoo import build

PROBE_SECONDS = 300


@dataclass(frozen=True)
class PluginReport:
    """What `check_plugin` found.

    Args:
        plugin: name of the distribution. results: of the plugin itself, then of each component.
    """

    plugin: str
    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[Result, ...]:
        return tuple(result for result in self.results if result.outcome == "failed")


@dataclass
class PluginSubject:
    """One plugin under test: its hook module, and a registry of the core and it alone."""

    module: str
    plugin: Plugin
    registry: Registry

    @functools.cached_property
    def targets(self) -> list[str]:
        backends = [t for b in self.plugin.backends for t in (b.target, b.why_not)]
        formats = [weights.target for weights in self.plugin.formats]
        return [component.target for component in self.plugin.components] + backends + formats

    @functools.cached_property
    def probed(self) -> dict[str, Any]:
        """What a fresh process sees when it imports the plugin's modules."""
        command = [sys.executable, "-m", "wsizoo.testing._plugin_probe", self.module, *self.targets]
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
        if done.returncode == 0:
            answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            return answer
        died = f"importing it ends the process ({done.returncode}): {done.stderr.strip()[-400:]}"
        errors = dict.fromkeys([self.module, *self.targets], died)
        return {"heavy": [], "hooks_network": [], "targets_network": [], "errors": errors}

    @property
    def entries(self) -> list[str]:
        """Names of the models that this plugin's components make up."""
        own = self.plugin.distribution
        return [
            n for n, e in self.registry.models.items() if e.record.get("plugin", e.owner) == own
        ]

    @property
    def encoders(self) -> list[str]:
        own = self.plugin.distribution
        return [
            n for n, e in self.registry.encoders.items() if e.record.get("plugin", e.owner) == own
        ]


def check_plugin_works(subject: PluginSubject) -> None:
    """A plugin that cannot be discovered offers nothing; the reason is its quarantine's."""
    require(subject.plugin.works, str(subject.plugin.reason))


def check_hooks_are_light(subject: PluginSubject) -> None:
    """`wsizoo list` imports the hooks of every plugin: nothing heavy may come with them."""
    heavy = subject.probed["heavy"]
    require(
        not heavy, f"importing {subject.module} imports {', '.join(heavy)}; use them in model.py"
    )


def check_hooks_open_no_socket(subject: PluginSubject) -> None:
    """Clusters have no network; importing a plugin downloads nothing and reports to nobody."""
    reached = subject.probed["hooks_network"]
    require(not reached, f"importing {subject.module} uses the network: {'; '.join(reached)}")


def check_components_open_no_socket(subject: PluginSubject) -> None:
    """Weights come through wsizoo.load, pinned; importing a class downloads nothing."""
    reached = subject.probed["targets_network"]
    require(not reached, f"importing its components uses the network: {'; '.join(reached)}")


def check_components_importable(subject: PluginSubject) -> None:
    """What the hooks announce must be there, on a machine without accelerators."""
    problems = [f"{target}: {error}" for target, error in subject.probed["errors"].items()]
    require(not problems, "; ".join(problems))


def check_offers_something(subject: PluginSubject) -> None:
    """A plugin that offers nothing has forgotten its `@hookimpl`."""
    p = subject.plugin
    offers = bool(p.components or p.backends or p.formats or p.registry)
    require(offers or not p.works, "it offers nothing: no @hookimpl function?")


def check_names_lower_case(subject: PluginSubject) -> None:
    """Users type names: lower case, no blanks."""
    names = [component.name for component in subject.plugin.components]
    names += [weights.name for weights in subject.plugin.formats]
    for name in [*names, *subject.entries]:
        plain = name == name.lower() and not any(c.isspace() for c in name) and name != ""
        require(plain, f"'{name}' is not a plain lower-case name")


def check_summary_and_source(subject: PluginSubject) -> None:
    """Whoever lists a component sees what it is and where it comes from."""
    parts = {f"{part.kind} '{part.name}'": vars(part) for part in subject.plugin.components}
    formats = {f"weight format '{w.name}'": vars(w) for w in subject.plugin.formats}
    for whose, announced in {**parts, **formats}.items():
        for field in ("summary", "source"):
            told = str(announced[field]).strip()
            require(bool(told), f"{whose} has an empty {field}")


def check_entries_parse(subject: PluginSubject) -> None:
    """Every registry entry is well formed and states licence and source."""
    registry = subject.registry
    specs = {f"model '{name}'": registry.model_spec(name) for name in subject.entries}
    facts = {f"encoder '{name}'": registry.encoder_spec(name) for name in subject.encoders}
    for whose, spec in {**specs, **facts}.items():
        for field in ("summary", "licence", "source"):
            require(bool(getattr(spec, field).strip()), f"{whose} has an empty {field}")


def check_entries_build(subject: PluginSubject) -> None:
    """Every entry of the registry makes a model, with random weights and two classes.

    One that has a part of another plugin is that of both, and not built here.
    """
    for name in subject.entries:
        try:
            spec = subject.registry.model_spec(name)
        except SpecError:
            continue  # `check_entries_parse` reports it
        if not _holders(subject, name) <= {subject.plugin.distribution, None}:
            continue
        classes = spec.head and _wants_classes(subject, spec.head)
        overrides = ["head.classes=[a,b]"] if classes else []
        try:
            overrides += _stand_ins(subject, spec.model)
            build(name, *overrides, registry=subject.registry)
        except WsizooError as error:
            raise CheckError(f"model '{name}': {error}") from error


def _holders(subject: PluginSubject, name: str) -> set[str | None]:
    """The distributions that hold an entry's parts; None: the core's."""
    entry = subject.registry.models[name]
    named = [(part, entry.part(part)) for part in PARTS]
    return {subject.registry.plugin_of(part, value) for part, value in named if value}


def _stand_ins(subject: PluginSubject, model: dict[str, Any] | None) -> list[str]:
    """What a whole model's class says is to be laid over its entries, so that they can be built."""
    if model is None:
        return []
    cls = subject.registry.plugins.load("model", model["name"], subject.plugin.distribution)
    return list(getattr(cls, "conformance_overrides", ()))


def _wants_classes(subject: PluginSubject, head: dict[str, Any]) -> bool:
    if "classes" in head:
        return False
    maker = subject.registry.plugins.load("head", head["name"], subject.plugin.distribution)
    return "classes" in inspect.signature(maker).parameters


def check_backends_fit(subject: PluginSubject) -> None:
    """A backend names an op of the core or of the plugin, and says why it cannot run here."""
    for backend in subject.plugin.backends:
        whose = f"backend '{backend.name}' of {backend.op}"
        run, why_not = load_target(backend.target, whose), load_target(backend.why_not, whose)
        known = ops()
        require(backend.op in known, f"{whose}: {suggest(backend.op, known, 'Known ops: ')}")
        reason = why_not()
        told = reason is None or isinstance(reason, str)
        require(told, f"{whose}: why_not() returns {reason!r}, expected None or a reason")
        wanted = inspect.signature(known[backend.op].reference).parameters
        names = list(inspect.signature(run).parameters)
        require(names == list(wanted), f"{whose} takes {names}, the reference takes {list(wanted)}")


def check_encoder_names_agree(subject: PluginSubject) -> None:
    """Feature files carry the encoder's name, which must be the one that users typed."""
    for component in subject.plugin.components:
        if component.kind == "encoder":
            cls = load_target(component.target, f"encoder '{component.name}'")
            name = getattr(cls, "name", component.name)
            require(name == component.name, f"encoder '{component.name}' calls itself '{name}'")


PLUGIN: tuple[Callable[[PluginSubject], None], ...] = (
    check_plugin_works,
    check_offers_something,
    check_hooks_are_light,
    check_hooks_open_no_socket,
    check_components_open_no_socket,
    check_components_importable,
    check_names_lower_case,
    check_summary_and_source,
    check_entries_parse,
    check_entries_build,
    check_backends_fit,
    check_encoder_names_agree,
)


def check_plugin(name: str, *, components: bool = True) -> PluginReport:
    """Check one plugin, and run the conformance suite on each of its components.

    Components are built with their defaults, or with what their class states as
    `conformance_params`; small numbers make the check quick.

    Args:
        name: its distribution, its entry point, or its hook module (which need not be installed).
        components: run the conformance suite too.

    Raises:
        NotFoundError: no such plugin and no such module.
    """
    subject = find_plugin(name)
    whose = f"plugin {subject.plugin.distribution}"
    results = []
    for check in checks("plugin"):
        message = why_failed(check, subject)
        outcome = "failed" if message else "passed"
        results.append(Result(whose, check.name, check.reason, outcome, message or ""))  # type: ignore[arg-type]
    if components and subject.plugin.works:
        results += [bound.result() for bound in _component_checks(subject)]
    return PluginReport(subject.plugin.distribution, tuple(results))


def _component_checks(subject: PluginSubject) -> list[BoundCheck]:
    """The conformance suite of each component that can be imported."""
    bound = []
    for component in subject.plugin.components:
        if component.target not in subject.probed["errors"]:
            maker = load_target(component.target, f"{component.kind} '{component.name}'")
            bound += bound_checks(maker, component.kind)
    return bound


def find_plugin(name: str) -> PluginSubject:
    """A plugin by distribution, entry point or hook module. Raises NotFoundError."""
    points = list(importlib.metadata.entry_points(group=GROUP))
    for point in points:
        distribution = point.dist.name if point.dist is not None else None
        if name in (distribution, point.name, point.value):
            return _subject(point, point.value)
    if name == "wsizoo":
        raise NotFoundError("'wsizoo' is the core, not a plugin; its own tests check it")
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        known = [p.dist.name for p in points if p.dist is not None]
        raise NotFoundError(f"No plugin '{name}'. {suggest(name, known, 'Installed: ')}")
    return _subject(importlib.metadata.EntryPoint(name, name, GROUP), name)


def _subject(point: Any, module: str) -> PluginSubject:
    plugins = discover([point], allow=point.name)
    registry = Registry.of(plugins)
    return PluginSubject(module.partition(":")[0], plugins.all[-1], registry)
