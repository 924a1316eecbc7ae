"""The folder of a run: whose it is, what is finished in it, and what stands in its small files."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wsizoo.errors import DataError
from wsizoo.files import write_json, write_text
from wsizoo.train.config import RunConfig, load_config, to_yaml
from wsizoo.train.settings import CHANGE_NO_NUMBER

CONFIG, RUN, METRICS, EPOCHS = "config.yaml", "run.json", "metrics.json", "epochs.csv"
SPLIT, ENVIRONMENT = "split.csv", "environment.json"
MODEL, REPORT = "model", "report.html"
RUNNING, FINISHED = "running", "finished"
MOST_TOLD = 6
CHANGED = {
    "data_digest": "slides, patients or labels of the table",
    "split_digest": "the parts of the split",
    "features_digest": "the features",
    "patches_digest": "the labels of patches",
}


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What stands inside writes files of a run, each whole or not at all.

    Raises:
        DataError: there is no room, or no right, to write one.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"'{folder}' could not be written into ({error}); no file in it is half written. Make "
            "room, or get the right to write there, then give the same command again: it goes on "
            "from there"
        ) from error


def is_first() -> bool:
    """Whether this process writes: the only one, or the first of those that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


def claim(folder: Path, config: RunConfig) -> None:
    """Make the folder that of this config, or see that it is.

    One in which nothing was trained, as what it was told was refused, is made this one's.

    Raises:
        DataError: it is that of another config, the keys that differ are named; or it holds
            something else; it cannot be written into.
    """
    file = folder / CONFIG
    if not file.is_file():
        others = sorted(p.name for p in folder.glob("*") if not p.name.startswith("."))
        if others:
            raise DataError(
                f"'{folder}' holds {', '.join(others[:3])} and is no run; give a new folder: -o RUN"
            )
    differing = differences(load_config(file), config) if file.is_file() else {}
    if not file.is_file() or (differing and not _is_begun(folder)):
        with writing(folder):
            write_text(file, to_yaml(config))
    elif differing:
        told = "; ".join(f"{key} was {old!r}, is {new!r}" for key, (old, new) in differing.items())
        raise DataError(
            f"'{folder}' is a run of another config: {told}. Give this one a folder of its own: "
            f"-o {folder}-2. To go on with that one: wsizoo train {file} -o {folder}"
        )


def _is_begun(folder: Path) -> bool:
    """Whether it, or that of a fold in it, holds what a training has written."""
    written = (path for pattern in (EPOCHS, "*.ckpt", METRICS) for path in folder.rglob(pattern))
    return next(written, None) is not None


def differences(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Keys that change results and whose values differ, the first few: key -> (old, new)."""
    first, second = _flat(asdict(old)), _flat(asdict(new))
    keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    keys = [key for key in keys if key not in {f"train.{name}" for name in CHANGE_NO_NUMBER}]
    return {key: (first.get(key), second.get(key)) for key in keys[:MOST_TOLD]}


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def read_record(folder: Path) -> dict[str, Any]:
    """run.json; {} where there is none.

    Raises:
        DataError: it is damaged.
    """
    return read_json(folder / RUN) if (folder / RUN).is_file() else {}


def read_json(file: Path) -> dict[str, Any]:
    """A file of JSON with names. Raises DataError: not there, or damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"'{file}' cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"'{file}' holds no names and values")
    return found


def is_finished(folder: Path, digests: Mapping[str, str]) -> bool:
    """Whether this part of a run is done, with the data that it is to be done with.

    Raises:
        DataError: it was begun with other labels, parts or features: which of them is told.
    """
    record = read_record(folder) if _is_begun(folder) else {}
    changed = [name for name, digest in digests.items() if record and record.get(name) != digest]
    if changed:
        told = "; ".join(
            f"{CHANGED[name]} changed since ({name} {str(record.get(name))[:12]}, now "
            f"{digests[name][:12]})"
            for name in changed
        )
        raise DataError(
            f"'{folder}' was begun with other data: {told}. Bring back what was there, or give "
            "the new data a folder of their own: -o RUN"
        )
    return record.get("state") == FINISHED


def write_record(folder: Path, record: Mapping[str, Any], state: str) -> None:
    """run.json."""
    write_json(folder / RUN, {"state": state, **record})
