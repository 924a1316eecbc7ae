"""demo: the whole job on synthetic slides."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from wsizoo.cli.text import print_table


@click.command("demo")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=Path("wsizoo-demo"), show_default=True
)
@click.option(
    "--slides", type=int, default=40, show_default=True, help="A multiple of 4, at least 12."
)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes.")
@click.option("--json", "as_json", is_flag=True, help="Only the results, for scripts.")
def demo_command(out: Path, slides: int, workers: int, as_json: bool) -> None:
    """Draw synthetic slides, extract features, train, evaluate, predict; write OUT/index.html.

    Takes a minute or two and 160 MB. Run it again after an interruption: what is finished is kept.

    \b
    Example:
      wsizoo demo
    """
    from wsizoo.demo.run import run_demo

    start = time.monotonic()
    with _bar(quiet=as_json) as tick:
        say = (lambda text: None) if as_json else click.echo
        tour = run_demo(out, slides=slides, workers=workers, say=say, tick=tick)
    rows = [result.row() for result in tour.results]
    assert tour.located is not None
    page = (out / "index.html").absolute()
    if as_json:
        told = {"results": rows, "located": vars(tour.located), "report": str(page)}
        click.echo(json.dumps(told, indent=2))
        return
    click.echo("")
    print_table(rows)
    click.echo(
        f"\nPatch scores of {tour.located.slide} against the tumour drawn in it:\n{tour.located}\n"
        "\nSynthetic data, a toy: the report says what the numbers mean."
        f"\nDone in {time.monotonic() - start:.0f} s. Open {page}"
    )


@contextmanager
def _bar(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal; gives what to call with (what, done, in all)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    ) as bar:
        task = bar.add_task("", total=None, visible=False)

        def tick(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total, visible=True)

        yield tick
