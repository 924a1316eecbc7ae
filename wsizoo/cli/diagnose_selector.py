"""diagnose selector: does what a selector learned softly hold when it chooses hard?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from wsizoo.cli.options import device_option
from wsizoo.cli.progress import bar, tell
from wsizoo.cli.text import print_table


@click.command("selector")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Folder for all of it [RUN/diagnosis]."
)
@click.option(
    "--part", type=click.Choice(["test", "val"]), help="That is evaluated [test, else val]."
)
@click.option(
    "--probe-slides",
    type=click.IntRange(0),
    default=2000,
    show_default=True,
    help="That each probe is shown, one a step; 0: no probes.",
)
@click.option(
    "--ablate",
    "without_parts",
    is_flag=True,
    help="Train again without each part that the selector names, as the denoiser.",
)
@click.option(
    "--maps",
    type=click.IntRange(0),
    default=4,
    show_default=True,
    help="Slides that are drawn, from the least overlap to the largest.",
)
@device_option
@click.option("--json", "as_json", is_flag=True, help="All numbers, for scripts.")
def selector_command(runs: tuple[Path, ...], out: Path | None, as_json: bool, **asked: Any) -> None:
    """Does the selector of a trained RUN transfer: soft in training, hard in use?

    RUN is a folder of wsizoo train whose model has a selector that learns softly; of several runs,
    or a folder of folds and seeds, it is also told how alike the patches are that they keep.

    On the run's own test part and the same downstream weights: soft gates at the end temperature,
    the k best patches, k random ones, all of them; overlap and entropy of the gates; what fresh
    probes find in dropped and in kept patches; a verdict by rule. The noise and the denoiser are in
    no published weights, so the run's checkpoints are needed: without them the rest is measured,
    and the exit code is 1.

    OUT gets selector.csv, selector.json, selector.html and heatmaps with the kept patches outlined.
    In RUN/diagnosis they become a section of its report: wsizoo report RUN.

    \b
    Examples:
      wsizoo diagnose selector RUN
      wsizoo diagnose selector RUN --ablate
      wsizoo diagnose selector RUN0 RUN1 RUN2 -o seeds --probe-slides 0
    """
    from wsizoo.diagnosis.selector import diagnose_selector
    from wsizoo.reports.selector import FOLDER, PAGE, terminal_rows

    with bar(quiet=as_json) as tick:
        told = diagnose_selector(
            list(runs), out, say=lambda text: tell(text, err=True), tick=tick, **asked
        )
    folder = (runs[0] / FOLDER if out is None else out).absolute()
    if as_json:
        click.echo(json.dumps(told, indent=2))
    else:
        print_table(terminal_rows(told))
        click.echo("")
        for run in told["runs"]:
            verdict = run["verdict"]
            click.echo(f"{run['run']}: {verdict['headline']}. {' '.join(verdict['told'])}")
        click.echo(f"Open {folder / PAGE}", err=True)
        if out is None:
            click.echo(f"In the report of the run: wsizoo report {runs[0]}", err=True)
    sys.exit(1 if any(run["missing"] for run in told["runs"]) else 0)
