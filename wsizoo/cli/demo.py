"""demo: the whole job on synthetic slides."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from wsizoo.cli.progress import bar, tell
from wsizoo.cli.text import print_table


@click.command("demo")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=Path("wsizoo-demo"), show_default=True
)
@click.option(
    "--slides",
    type=click.IntRange(12),
    default=40,
    show_default=True,
    help="A multiple of 4; with fewer than 20 the results mean little.",
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
    with bar(quiet=as_json) as tick:
        say = (lambda text: None) if as_json else tell
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
        "\nSynthetic data, a toy. 'clustered' lies in positions only, which these models do not "
        "read:\nan AUC near chance (0.5, within its interval) is the right answer there."
        f"\nDone in {time.monotonic() - start:.0f} s. Open {page}"
    )
