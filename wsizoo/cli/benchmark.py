"""benchmark: models, feature sets, folds and seeds on one table of slides."""

from __future__ import annotations

import json
import sys
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsizoo.cli.options import out_option
from wsizoo.cli.progress import bar, tell
from wsizoo.cli.text import print_table

if TYPE_CHECKING:
    from wsizoo.benchmark.cells import Outcome
    from wsizoo.benchmark.compare import Result
    from wsizoo.benchmark.run import Benchmark


@click.command("benchmark")
@click.argument("config", metavar="CONFIG")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@out_option("Folder of the benchmark; the same command fills its gaps.")
@click.option(
    "--models", help="a,b: models or aggregators, instead of CONFIG's [all installed that fit]."
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Runs at once, each in a process of one thread.",
)
@click.option(
    "--engine",
    type=click.Choice(["processes", "ray"]),
    default="processes",
    show_default=True,
    help="ray: a task a run on a Ray cluster (RAY_ADDRESS, or one started here).",
)
@click.option("--json", "as_json", is_flag=True, help="One line of JSON a run.")
def benchmark_command(
    config: str,
    overrides: tuple[str, ...],
    out: Path,
    models: str | None,
    jobs: int,
    engine: Any,
    as_json: bool,
) -> None:
    """Train every model on every feature set, fold and seed of CONFIG, and compare them.

    CONFIG is a recipe, or a file as a training run's (see wsizoo train --help) with, besides,
    models: [a, b] and features: {name: folder}. KEY=VALUE changes a key of it.

    OUT gets table.md, table.csv, table.tex, results.csv (a row a run), benchmark.html, and
    cells/, a folder a run. A run that fails is reported and the others go on (exit code 1); the
    same command tries it again and keeps what is finished, as long as config, data and code are
    the same.

    \b
    Examples:
      wsizoo benchmark bench.yaml -o BENCH --jobs 2
      wsizoo benchmark bench.yaml -o B --models abmil,mean "seeds=[0,1]"
      wsizoo benchmark baseline-survival -o B data.table=t.csv data.features=f
    """
    from wsizoo.benchmark.run import run_benchmark
    from wsizoo.train.recipes import config_source

    with bar(quiet=as_json) as tick:

        def tell_cell(outcome: Outcome, result: Result | None, done: int, total: int) -> None:
            tell(json.dumps(_row(outcome, result)) if as_json else _line(outcome, result))
            tick("runs", done, total)

        benchmark = run_benchmark(
            config_source(config),
            out,
            overrides=overrides,
            models=None if models is None else [name.strip() for name in models.split(",")],
            jobs=jobs,
            engine=engine,
            say=lambda text: tell(text, err=True),
            after_cell=tell_cell,
        )
    if not as_json:
        _tell(benchmark, out)
    sys.exit(1 if benchmark.failed else 0)


def _tell(benchmark: Benchmark, out: Path) -> None:
    from wsizoo.benchmark.tables import cells

    head, *body = cells(benchmark.rows, benchmark.task, "±", str, lambda text: f"{text} *")
    click.echo("")
    print_table([dict(zip(head, row, strict=True)) for row in body])
    done = len(benchmark.outcomes) - len(benchmark.failed)
    click.echo(f"\n{done} of {len(benchmark.outcomes)} runs finished; * best")
    click.echo(f"Open {out.absolute() / 'benchmark.html'}")


def _line(outcome: Outcome, result: Result | None) -> str:
    if result is None:
        return f"FAILED   {outcome.cell.label}: {outcome.reason}"
    seconds = result.facts["seconds"]
    told = "" if seconds is None else f"  {seconds:.1f} s"
    return f"{outcome.state:<8} {outcome.cell.label}  {result.main} {result.value:.3f}{told}"


def _row(outcome: Outcome, result: Result | None) -> dict[str, Any]:
    cell = outcome.cell
    told = {"model": cell.model, "features": cell.features, "fold": cell.fold, "seed": cell.seed}
    told |= {"state": outcome.state, "reason": outcome.reason}
    if result is None:
        return told
    known = {name: None if isnan(value) else value for name, value in result.metrics.items()}
    return {**told, **known, **result.facts}
