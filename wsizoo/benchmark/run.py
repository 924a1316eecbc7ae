"""benchmark: models x feature sets x folds x seeds on one table of slides.

Each run is a cell, kept under a key of everything that its numbers depend on, so that a second call
only fills gaps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from wsizoo.benchmark.cells import (
    Cell,
    Outcome,
    RunOne,
    Work,
    check_sendable,
    in_processes,
    on_ray,
)
from wsizoo.benchmark.matrix import make_cells
from wsizoo.benchmark.plan import read_benchmark
from wsizoo.benchmark.record import RECORD, record_of, told_of
from wsizoo.errors import DataError
from wsizoo.extraction.folders import check_writable
from wsizoo.files import locked, write_csv, write_json, write_text
from wsizoo.registry import Registry, default
from wsizoo.train.config import RunConfig

if TYPE_CHECKING:
    from wsizoo.benchmark.compare import Result
    from wsizoo.benchmark.results import Row

Engine = Literal["processes", "ray"]
Say = Callable[[str], None]
AfterCell = Callable[[Outcome, "Result | None", int, int], None]
"""(what became of a cell, its numbers, cells finished, cells in all)"""


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark gave: a row a model and feature set, the best first; task: of its head."""

    rows: Sequence[Row]
    outcomes: Sequence[Outcome]
    task: str

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.state == "failed"]


def train_cell(config: RunConfig, out: Path) -> None:
    """A cell's run, as `wsizoo train` does it."""
    from wsizoo.train.run import run_training

    run_training(config, out)


def run_benchmark(
    source: Path | str | Mapping[str, Any],
    out: Path | str,
    *,
    overrides: Sequence[str] = (),
    models: Sequence[str] | None = None,
    jobs: int = 1,
    engine: Engine = "processes",
    run_one: RunOne = train_cell,
    say: Say = lambda text: None,
    after_cell: AfterCell = lambda outcome, result, done, total: None,
    registry: Registry | None = None,
) -> Benchmark:
    """Train and compare models; tables, `results.csv` and `benchmark.html` in `out`.

    A cell that fails is reported and the others go on; the same call tries it again, and leaves
    alone what is finished.

    Args:
        source: a benchmark's YAML file (or its content): the keys of a training run, and `models`,
            `features`; see docs/benchmark.md.
        overrides: `"train.epochs=5"`, laid over it.
        models: names, instead of the file's; None and none there: every installed aggregator that
            fits.
        jobs: processes at once, of one thread each; on a Ray cluster of this machine, its cores.
        say: a line on what is left out.

    Raises:
        NotFoundError, SpecError: the file, or a model that is unknown or does not fit. DataError:
        features or targets that are missing, all told before anything is trained; feature sets of
        different slides. BackendError: no Ray.
    """
    if engine not in get_args(Engine):
        raise DataError(f"engine is '{engine}', expected one of {get_args(Engine)}")
    registry, out = registry or default(), Path(out).absolute()
    asked = read_benchmark(source, overrides, models, registry)
    check_writable(out)
    with locked(out / "benchmark", patience=0):
        work = Work(out / "cells", run_one)
        check_sendable(work)
        cells, task = make_cells(asked, out / "splits", registry, say)
        outcomes, results = _run(work, cells, jobs, engine, after_cell)
        record = record_of(asked, cells, results, task, registry)
        return _write(out, cells, outcomes, results, record)


def _run(
    work: Work, cells: Sequence[Cell], jobs: int, engine: Engine, after_cell: AfterCell
) -> tuple[list[Outcome], list[Result]]:
    """What became of the cells in their order, and the numbers of those that finished."""
    from wsizoo.benchmark.compare import read_result

    outcomes: dict[str, Outcome] = {}
    results: list[Result] = []

    def note(outcome: Outcome) -> None:
        result = None
        if outcome.state != "failed":
            try:
                result = read_result(work, outcome.cell)
                results.append(result)
            except DataError as error:
                outcome = Outcome(outcome.cell, "failed", str(error))
        outcomes[outcome.cell.folder] = outcome
        after_cell(outcome, result, len(outcomes), len(cells))

    for cell in cells:
        if work.is_done(cell):
            note(Outcome(cell, "kept"))
    left = [cell for cell in cells if cell.folder not in outcomes]
    runner = on_ray(work, left, jobs) if engine == "ray" else in_processes(work, left, jobs)
    with contextlib.closing(runner):
        for outcome in runner:
            note(outcome)
    return [outcomes[cell.folder] for cell in cells], results


def _write(
    out: Path,
    cells: Sequence[Cell],
    outcomes: Sequence[Outcome],
    results: Sequence[Result],
    record: Mapping[str, Any],
) -> Benchmark:
    """All files of the outcome."""
    from wsizoo.benchmark.page import benchmark_page
    from wsizoo.benchmark.results import summarise
    from wsizoo.benchmark.tables import result_records, write_tables

    task = record["task"]
    order = {cell.folder: index for index, cell in enumerate(cells)}
    results = sorted(results, key=lambda result: order[result.cell.folder])
    benchmark = Benchmark(summarise(cells, results), outcomes, task)
    records = result_records(outcomes, results)
    columns = list(dict.fromkeys(name for each in records for name in each))
    write_csv(out / "results.csv", records, columns)
    write_tables(out, benchmark.rows, task)
    write_json(out / RECORD, record)
    failures = [(outcome.cell.label, outcome.reason) for outcome in benchmark.failed]
    told = f"{len(results)} of {len(cells)} runs, {task}"
    page = benchmark_page(benchmark.rows, task, failures, told, told_of(record), results)
    write_text(out / "benchmark.html", page)
    return benchmark
