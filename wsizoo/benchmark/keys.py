"""Content keys: what a cell's numbers depend on, as one digest."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wsizoo.files import sha256_of
from wsizoo.plugins import Plugin
from wsizoo.registry import Registry
from wsizoo.train.config import RunConfig
from wsizoo.train.config_content import PATHS
from wsizoo.train.digests import sha256_lines
from wsizoo.train.settings import CHANGE_NO_NUMBER

ELSEWHERE = (
    *("benchmark/", "cli/", "demo/", "diagnosis/", "extraction/", "reports/", "testing/", "viz/"),
    *("__main__.", "card.", "conversion.", "doctor.", "inference.", "scaffold."),
    *("train/evaluation.", "train/heatmaps."),
)
"""Files of wsizoo that no run's numbers come from: its config, data and split are in the key."""
BUT = ("viz/classes.",)  # makes probabilities of logits


def content_key(config: RunConfig, data: str, split: str, registry: Registry) -> str:
    """sha256 hex of config, data, split, model and code. Paths count by what lies there.

    Args:
        data: see `whole_digest`. split: see `split_digest`.
    """
    told = asdict(config)
    for name in PATHS:
        group, key = name.split(".")
        told[group].pop(key)
    for name in CHANGE_NO_NUMBER:
        del told["train"][name]
    model = model_identity(config, registry)
    content = {"config": told, "data": data, "split": split, **model}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def model_identity(config: RunConfig, registry: Registry) -> dict[str, Any]:
    """What makes a model this one: its composition, the code behind, and weights to start from."""
    from wsizoo.spec import PARTS, model_record
    from wsizoo.train.making import spec_of

    spec = spec_of(config, registry)
    used = {(part, str(getattr(spec, part)["name"])) for part in PARTS if getattr(spec, part)}
    told: dict[str, Any] = {"model": model_record(spec), "code": code_digest(registry, used)}
    if config.init:
        from wsizoo.stored import find_stored
        from wsizoo.weights import weights_digest

        told["init"] = weights_digest(find_stored(config.init, registry).tensors)
    return told


def code_digest(registry: Registry, parts: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Version and source files of wsizoo, and of each plugin that gives one of the parts.

    Args:
        parts: (kind, name) of components.
    """
    plugins = registry.plugins
    owners: dict[str, tuple[Plugin, str]] = {}
    for component in plugins.components():
        if (component.kind, component.name) in set(parts) and not plugins.owner(component).core:
            owner = plugins.owner(component)
            owners[owner.distribution] = owner, component.target.partition(".")[0]
    told = {"wsizoo": plugins.all[0].version + " " + _sources("wsizoo")}
    for name, (owner, package) in owners.items():
        told[name] = f"{owner.version} {_sources(package.partition(':')[0])}"
    return told


@functools.cache
def _sources(package: str) -> str:
    """Digest of a package's Python files, or of a module's one."""
    file = Path(str(importlib.import_module(package).__file__))
    return _of_files(file.parent if file.name == "__init__.py" else file, "*.py")


def _of_files(path: Path, pattern: str) -> str:
    if path.is_file():
        return sha256_of(path)
    files = sorted(file for file in path.rglob(pattern) if file.is_file())
    named = {file.relative_to(path).as_posix(): file for file in files}
    kept = {name: file for name, file in named.items() if counts(name)}
    return sha256_lines(f"{name} {sha256_of(file)}" for name, file in kept.items())


def counts(name: str) -> bool:
    """Whether a run's numbers may come from a file, named within its package."""
    return name.startswith(BUT) or not name.startswith(ELSEWHERE)
