"""What a benchmark was made with: its config, data, parts and versions, for files and page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsizoo.benchmark.cells import Cell
from wsizoo.benchmark.compare import Result
from wsizoo.benchmark.plan import Asked
from wsizoo.registry import Registry

RECORD = "benchmark.json"


def record_of(
    asked: Asked, cells: Sequence[Cell], results: Sequence[Result], task: str, registry: Registry
) -> dict[str, Any]:
    """benchmark.json: what was asked for, which slides and parts were met, and the versions."""
    from wsizoo.train.environment import environment

    names = list(dict.fromkeys(name for result in results for name in result.digests))
    return {
        "task": task,
        "config": dict(asked.shared),
        "overrides": list(asked.overrides),
        "models": list(dict.fromkeys(cell.model for cell in cells)),
        "candidates": [dataclasses.asdict(each) for each in asked.models or ()],
        "features": dict(asked.features),
        "seeds": sorted({cell.seed for cell in cells}),
        "folds": len({cell.fold for cell in cells}),
        "epochs": sorted({cell.config.train.epochs for cell in cells}),
        **{name: _different(results, name) for name in names},
        "environment": environment(registry),
    }


def _different(results: Sequence[Result], name: str) -> list[str]:
    return sorted({result.digests[name] for result in results if name in result.digests})


def told_of(record: Mapping[str, Any]) -> dict[str, str]:
    """The same by the names that a reader of the page knows; folders and files by their names."""
    config, made = record["config"], record["environment"]
    data = config.get("data") or {}
    versions = {"wsizoo": made["wsizoo"], **made["plugins"], **made["libraries"]}
    shown = {
        "Table": Path(str(data.get("table") or "")).name,
        "Recipe": Path(str(config.get("recipe") or "")).stem,
        "Base model": Path(str(config.get("model") or "")).stem,
        "Overrides": ", ".join(record["overrides"]),
        "Features": ", ".join(record["features"]),
        "Folds": str(record["folds"]),
        "Seeds": ", ".join(map(str, record["seeds"])),
        "Epochs": ", ".join(map(str, record["epochs"])),
        "Data": _short(record.get("data_digest", ())),
        "Splits": _short(record.get("split_digest", ())),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "Python": f"{made['python']} on {made['platform']}",
    }
    return {name: value for name, value in shown.items() if value}


def _short(digests: Sequence[str]) -> str:
    return ", ".join(f"sha256 {digest[:16]}" for digest in digests)
