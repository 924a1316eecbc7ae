"""Every classic method on the classic MIL sets, by `wsizoo benchmark`; tables with intervals.

Features are standardised by all instances of a set, as MI-Net's code does; methods keep the widths
of their entries, which are large for bags of five instances: it shows that they train, not more.
"""

import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks._measure import load_now
from benchmarks._mil_sets import InstanceTable, read_table, write_cohort
from benchmarks.mil import methods
from benchmarks.mil_sets import HOW, find

SETS = ("musk1", "musk2", "elephant")
ON_A_GRID = ("gcn", "gat")  # the sets have no coords
SETTINGS = (
    "split={kind: kfold, folds: 5, val_fraction: 0.0}",
    "train.epochs=20",
    "optimiser.lr=5.0e-4",
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


def table(found: InstanceTable, jobs: int, *changes: str) -> str:
    """The Markdown table of a set."""
    names = [name for name in methods() if name not in ON_A_GRID]
    with tempfile.TemporaryDirectory() as folder:
        cohort = write_cohort(standardised(found), Path(folder))
        given = [f"data.table={cohort}", f"data.features={cohort.parent / 'features'}"]
        encoder = f'overrides=["encoder={{name: {found.name}, dim: {found.features.shape[1]}}}"]'
        command = [sys.executable, "-m", "wsizoo", "benchmark", "baseline-classification"]
        command += ["-o", f"{folder}/out", "--jobs", str(jobs), "--models", ",".join(names)]
        said = subprocess.run(
            [*command, *given, encoder, *SETTINGS, *changes],
            capture_output=True,
            text=True,
            check=False,
        )
        made = Path(folder) / "out" / "table.md"
        if not made.is_file():
            raise SystemExit(f"{' '.join(command)} gave {said.returncode}:\n{said.stderr}")
        failed = [line for line in said.stdout.splitlines() if line.startswith("failed")]
        return "\n".join([made.read_text(), *failed])
