"""Commit and digest of published weights: from the registry, or from the user's lock file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wsizoo import hub
from wsizoo.catalogue import build_call
from wsizoo.encoder_spec import EncoderSpec, check_runs
from wsizoo.errors import NotPinnedError, NoWeightsError, WeightsError
from wsizoo.files import check_safetensors, locked, sha256_of, write_json
from wsizoo.registry import Registry, default
from wsizoo.spec import ModelSpec, WeightsSpec

FIELDS = ("repo", "revision", "file", "sha256")
ENCODER = "encoder:"  # before the names of encoders in the lock file, whose models may share them
USUAL_FILES = ("model.safetensors", "pytorch_model.bin")


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
    return _pinned(name, name, asdict(weights))


def pinned_encoder(name: str, facts: EncoderSpec) -> WeightsSpec:
    """The weights of a catalogue entry with commit and digest. Raises as `pinned`."""
    if not facts.repo:
        raise NoWeightsError(
            f"The weights of encoder '{name}' lie in no repository on the Hub. Get them from "
            f"{facts.source}, then say where they are: --weights FOLDER, or "
            f"wsizoo.load_encoder('{name}', weights=FOLDER)"
        )
    try:
        return _pinned(name, ENCODER + name, vars(facts))
    except NotPinnedError as error:
        raise NotPinnedError(
            f"{error}, or give its folder: --weights FOLDER, or "
            f"wsizoo.load_encoder('{name}', weights=FOLDER)"
        ) from error


def find_pin(name: str, facts: EncoderSpec) -> WeightsSpec | None:
    """As `pinned_encoder`; None where nothing is pinned."""
    try:
        return pinned_encoder(name, facts)
    except (NoWeightsError, NotPinnedError):
        return None


def _pinned(name: str, key: str, entry: Mapping[str, Any]) -> WeightsSpec:
    """Commit and digest as the entry states them, else the lock file's, if it agrees with it."""
    stated = {field: entry[field] for field in FIELDS if entry[field] is not None}
    if stated.keys() == set(FIELDS):
        return WeightsSpec(**stated)
    pin = read_pins().get(key, {})
    if not pin or any(pin.get(field) != value for field, value in stated.items()):
        known = "your lock file pins other weights" if pin else "no commit and digest are recorded"
        raise NotPinnedError(
            f"'{name}' is published at {stated['repo']}, but {known}. Run: wsizoo pin {name} "
            "(downloads it once, and keeps both in your lock file)"
        )
    return WeightsSpec(**pin)


def pin(name: str, registry: Registry | None = None) -> dict[str, str]:
    """Download an entry's weights once and keep commit and digest in the user's lock file.

    Args:
        name: a model or an encoder; where both are called so, the model.

    Returns:
        repo, revision, file and sha256, as a registry entry would state them.

    Raises:
        NoWeightsError: nothing to pin. NotFoundError: an encoder whose network does not run here.
        WeightsError: not safetensors, or a damaged lock file; and as `wsizoo.hub.hub_file`.
    """
    registry = registry or default()
    if registry.is_encoder(name):
        facts = registry.encoder_spec(name)
        check_runs(name, facts)
        key, weights = ENCODER + name, vars(facts)
    else:
        key = registry.model(name).name
        weights = vars(registry.model_spec(key).weights or WeightsSpec())
        check_safetensors(weights["file"])
    repo = weights["repo"]
    if not repo:
        raise NoWeightsError(
            f"'{name}' names no repository on the Hub, so there is nothing to pin. See: wsizoo "
            f"show {name}"
        )
    read_pins()  # a damaged lock file is news before the download
    revision = weights["revision"] or hub.hub_head(repo)
    file = weights["file"] or _usual_file(repo, revision)
    path = hub.hub_file(repo, revision, file, weights["sha256"])
    found = {"repo": repo, "revision": revision, "file": file, "sha256": sha256_of(path)}
    write_pin(key, found)
    return found


def _usual_file(repo: str, revision: str) -> str:
    """The file of weights that a repository holds under one of the usual names."""
    held = hub.hub_files(repo, revision)
    for file in USUAL_FILES:
        if file in held:
            return file
    raise WeightsError(
        f"{repo} holds neither {' nor '.join(USUAL_FILES)} at {revision[:12]}; its entry must "
        f"state the file. There are: {', '.join(sorted(held)[:8])}"
    )


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
