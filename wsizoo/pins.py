"""Commit and digest of published weights: from the registry, or from the user's lock file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from wsizoo import hub
from wsizoo.catalogue import build_call
from wsizoo.errors import NotPinnedError, NoWeightsError, WeightsError
from wsizoo.files import check_safetensors, locked, sha256_of, write_json
from wsizoo.registry import Registry, default
from wsizoo.spec import ModelSpec, WeightsSpec

FIELDS = ("repo", "revision", "file", "sha256")


def pinned(name: str, spec: ModelSpec) -> WeightsSpec:
    """The weights of an entry with commit and digest, from the registry or the user's lock file.

    Raises:
        NoWeightsError, NotPinnedError. WeightsError: the file is not safetensors.
    """
    weights = spec.weights
    if weights is None or not (weights.repo or weights.package):
        raise NoWeightsError(
            f"No weights have been released for '{name}'. For random weights, to train on your own "
            f"slides: {build_call(name, spec)}. With weights: wsizoo list --weights"
        )
    if weights.package:
        return weights
    check_safetensors(weights.file)
    if weights.revision and weights.sha256:
        return weights
    stated = {key: value for key, value in asdict(weights).items() if value is not None}
    pin = read_pins().get(name, {})
    if not pin or any(pin.get(key) != value for key, value in stated.items()):
        known = "your lock file pins other weights" if pin else "no commit and digest are recorded"
        raise NotPinnedError(
            f"'{name}' is published at {weights.repo}, but {known}. Run: wsizoo pin {name} "
            "(downloads it once, and keeps both in your lock file)"
        )
    return WeightsSpec(**pin)


def pin(name: str, registry: Registry | None = None) -> dict[str, str]:
    """Download an entry's weights once and keep commit and digest in the user's lock file.

    Returns:
        repo, revision, file and sha256, as a registry entry would state them.

    Raises:
        NoWeightsError: nothing to pin. WeightsError: not safetensors, or a damaged lock file; and
        as `wsizoo.hub.hub_file`.
    """
    registry = registry or default()
    entry = registry.model(name)
    weights = registry.model_spec(entry.name).weights
    if weights is None or not weights.repo:
        raise NoWeightsError(
            f"'{name}' names no repository on the Hub, so there is nothing to pin. See: wsizoo "
            f"show {name}"
        )
    check_safetensors(weights.file)
    read_pins()  # a damaged lock file is news before the download
    revision = weights.revision or hub.hub_head(weights.repo)
    path = hub.hub_file(weights.repo, revision, weights.file, weights.sha256)
    found = {
        "repo": weights.repo,
        "revision": revision,
        "file": weights.file,
        "sha256": sha256_of(path),
    }
    write_pin(entry.name, found)
    return found


def pins_file() -> Path:
    """The user's lock file of pins: `WSIZOO_PINS`, else ~/.config/wsizoo/pins.json."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(os.environ.get("WSIZOO_PINS") or Path(home) / "wsizoo" / "pins.json")


def read_pins() -> dict[str, dict[str, str]]:
    """Pins by model name: repo, revision, file, sha256. Raises WeightsError when damaged."""
    path = pins_file()
    if not path.exists():
        return {}
    try:
        pins: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise WeightsError(
            f"The lock file {path} is not valid JSON: {error}. Mend or delete it"
        ) from error
    records = list(pins.values()) if isinstance(pins, dict) else [None]
    if any(not isinstance(record, dict) or set(record) != set(FIELDS) for record in records):
        raise WeightsError(
            f"The lock file {path} is not a mapping of model names to {', '.join(FIELDS)}. Mend or "
            "delete it"
        )
    return pins


def write_pin(name: str, pin: Mapping[str, str]) -> None:
    """Keep one pin in the lock file, and those that others write at the same time."""
    with locked(pins_file()):
        write_json(pins_file(), {**read_pins(), name: dict(pin)})
