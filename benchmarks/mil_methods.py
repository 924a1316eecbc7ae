"""Every classic method on the classic MIL sets, by `wsizoo benchmark`; tables with intervals.

Features are standardised by all instances of a set, as MI-Net's code does. Widths are those for
bags of few instances, see `narrow`, and one recipe holds for all: it shows how methods compare on
equal terms, not what each reaches by its own.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks._measure import load_now
from benchmarks._mil_sets import InstanceTable, read_table, write_cohort
from benchmarks.mil import entry_of, methods
from benchmarks.mil_sets import HOW, find

SETS = ("musk1", "musk2", "elephant")
WIDTH = 64
ON_A_GRID = ("gcn", "gat")  # the sets have no coords
SETTINGS = (
    "split={kind: kfold, folds: 5, val_fraction: 0.0}",
    "train={epochs: 20, batch_size: 4}",
    "optimiser.lr=1.0e-3",
    "selection={checkpoint: last}",
    "seeds=[0]",
)


def run(sets: tuple[str, ...] = SETS, jobs: int = 2, *changes: str) -> None:
    """Args: changes: of the recipe `baseline-classification`, as `"train.epochs=2"`."""
    print(f"  {' '.join([*SETTINGS, *changes])}; {load_now()}")
    for name in sets:
        path = find(name)
        if path is None:
            print(f"  {name}: left out, {HOW.format(name=name)}")
            continue
        print(f"  {name}\n\n{table(read_table(path), jobs, *changes)}", flush=True)


def standardised(found: InstanceTable) -> InstanceTable:
    """By the mean and deviation of all instances; a column that never varies is only shifted."""
    deviation = found.features.std(0)
    deviation[deviation == 0] = 1
    return dataclasses.replace(
        found, features=(found.features - found.features.mean(0)) / deviation
    )


def narrow(method: str) -> list[str]:
    """Overrides: 64 wide for 512, so with 32 landmarks (TransMIL pads a bag to that many rows)."""
    as_wide_as_features = ("dsmil", "knn")
    return [] if method in as_wide_as_features else [f"aggregator.dim={WIDTH}"]


def asked(found: InstanceTable, cohort: Path) -> dict[str, Any]:
    """The content of the benchmark's file."""
    encoder = f"encoder={{name: {found.name}, dim: {found.features.shape[1]}}}"
    return {
        "recipe": "baseline-classification",
        "data": {"table": str(cohort), "features": str(cohort.parent / "features")},
        "models": [
            {"name": name, "model": entry_of(name), "overrides": [encoder, *narrow(name)]}
            for name in methods()
            if name not in ON_A_GRID
        ],
    }


def table(found: InstanceTable, jobs: int, *changes: str) -> str:
    """The Markdown table of a set."""
    with tempfile.TemporaryDirectory() as folder:
        cohort = write_cohort(standardised(found), Path(folder))
        file, out = Path(folder) / "bench.yaml", Path(folder) / "out"
        file.write_text(json.dumps(asked(found, cohort)))  # JSON is YAML
        command = [sys.executable, "-m", "wsizoo", "benchmark", str(file), "-o", str(out)]
        said = subprocess.run(
            [*command, "--jobs", str(jobs), *SETTINGS, *changes],
            capture_output=True,
            text=True,
            check=False,
        )
        made = out / "table.md"
        if not made.is_file():
            raise SystemExit(f"{' '.join(command)} gave {said.returncode}:\n{said.stderr}")
        failed = [line for line in said.stdout.splitlines() if line.startswith("failed")]
        return "\n".join([made.read_text(), *failed])
