"""demo: the whole job on synthetic slides."""

from __future__ import annotations

import time
from pathlib import Path

import click


@click.command("demo")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=Path("wsizoo-demo"), show_default=True
)
@click.option(
    "--slides", type=int, default=40, show_default=True, help="A multiple of 4, at least 12."
)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes.")
def demo_command(out: Path, slides: int, workers: int) -> None:
    """Draw synthetic slides, extract features, train, evaluate, predict; write OUT/index.html.

    Takes a minute or two and 160 MB. Run it again after an interruption: what is finished is kept.

    \b
    Example:
      wsizoo demo
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from wsizoo.cli.zoo import print_table
    from wsizoo.demo.run import run_demo

    console = Console(stderr=True)
    start = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as bar:
        task = bar.add_task("", total=None)
        tour = run_demo(
            out,
            slides=slides,
            workers=workers,
            say=click.echo,
            tick=lambda what, done, total: bar.update(
                task, description=what, completed=done, total=total
            ),
        )
    click.echo("")
    print_table([result.row() for result in tour.results])
    click.echo(
        f"\nSynthetic data, a toy: see what the numbers mean in {out / 'index.html'}"
        f"\nDone in {time.monotonic() - start:.0f} s. Open {(out / 'index.html').absolute()}"
    )
