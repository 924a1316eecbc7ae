"""The tour's last step: models compared as `wsizoo benchmark` does it, on the demo's own config."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from wsizoo.demo.first_run import CONFIG

MODELS = ("abmil", "mean", "max")
FOLDER, PAGE = "benchmark", "benchmark.html"
NEEDED = "lightning_fabric"  # of wsizoo[train]
Row = dict[str, object]


def compare(folder: Path, jobs: int, tick: Callable[[str, int, int], None]) -> list[Row] | None:
    """Train `MODELS` on the tumour label, in processes of their own; `folder/benchmark/` holds all.

    Returns:
        A row a model, the best first; None where wsizoo[train] is not installed.

    Raises:
        DataError: a run that failed, with its reason.
    """
    if importlib.util.find_spec(NEEDED) is None:
        return None
    from wsizoo.benchmark.run import run_benchmark
    from wsizoo.benchmark.tables import interval
    from wsizoo.errors import DataError

    found = run_benchmark(
        folder / CONFIG,
        folder / FOLDER,
        models=MODELS,
        jobs=jobs,
        after_cell=lambda outcome, result, done, total: tick("models compared", done, total),
    )
    if found.failed:
        raise DataError(f"{found.failed[0].cell.model} failed: {found.failed[0].reason}")
    return [
        {
            "model": row.model,
            "AUC": f"{row.mean('auc'):.3f}",
            "95 % interval": interval(row),
            "parameters": row.facts["parameters"],
            "ms a slide": f"{row.facts['ms_per_slide']:.1f}",
        }
        for row in found.rows
    ]
