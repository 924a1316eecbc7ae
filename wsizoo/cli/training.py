"""train, evaluate, report: from a table of slides and labels to results."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click

from wsizoo.cli.options import device_option, out_option
from wsizoo.cli.progress import bar, tell
from wsizoo.cli.text import print_table


def _list_recipes(context: click.Context, option: click.Parameter, asked: bool) -> None:
    """Print the recipes and end."""
    if not asked or context.resilient_parsing:
        return
    from wsizoo.train.recipes import recipes

    print_table(
        [
            {"recipe": r.name, "from": r.owner, "source": r.source, "summary": r.summary}
            for r in recipes().values()
        ]
    )
    context.exit()


def _show_recipe(context: click.Context, option: click.Parameter, name: str | None) -> None:
    """Print a recipe as it stands and end."""
    if name is None or context.resilient_parsing:
        return
    from wsizoo.train.recipes import find_recipe

    click.echo(find_recipe(name).read_text(encoding="utf-8"), nl=False)
    context.exit()


@click.command("train")
@click.argument("config", metavar="CONFIG")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@out_option("Folder of the run; the same command goes on in it.")
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_recipes,
    help="List the recipes with their papers, and end.",
)
@click.option(
    "--show",
    metavar="RECIPE",
    is_eager=True,
    expose_value=False,
    callback=_show_recipe,
    help="Print a recipe, to cite or to copy, and end.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="The measures, for scripts; what is told goes to stderr.",
)
def train_command(config: str, overrides: tuple[str, ...], out: Path, as_json: bool) -> None:
    """Train, predict and measure what CONFIG says: a YAML file, or the name of a recipe.

    KEY=VALUE changes a key of it. A table of slides (csv) needs the columns slide and label, and
    patient where patients have several slides; a folder of features a file of that name a slide.

    OUT holds in the end: model/ (wsizoo.load), predictions.csv, metrics.json (intervals beside each
    measure), split.csv, epochs.csv, config.yaml, environment.json, run.json, report.html. Several
    seeds or folds have a folder each in it. Interrupted or killed, the same command goes on where
    it was and ends with the same predictions; a folder of another config is refused.

    \b
    Examples:
      wsizoo train wsizoo-demo/train.yaml -o RUN
      wsizoo train my.yaml -o RUN5 split.kind=kfold split.folds=5 "seeds=[0,1]"
      wsizoo train baseline-classification -o RUN data.table=t.csv data.features=f
      wsizoo train --list
      wsizoo train --show baseline-classification
      torchrun --nproc-per-node 2 -m wsizoo train my.yaml -o RUN
    """
    from wsizoo.train.config import load_config
    from wsizoo.train.recipes import config_source
    from wsizoo.train.run import run_training
    from wsizoo.train.run_folder import is_first

    asked = load_config(config_source(config), overrides)
    first = is_first()
    with bar(quiet=as_json or not first) as tick:

        def say(text: str) -> None:
            if first:
                tell(text, err=as_json)

        run_training(asked, out, say=say, tick=tick)
    if first:
        _tell(out, as_json)


heatmaps_option = click.option(
    "--heatmaps",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Draw heatmaps/SLIDE.png of the first N slides of the report's table, which links them.",
)


@click.command("evaluate")
@click.argument("source")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@out_option("Folder for predictions.csv, metrics.json and report.html.")
@click.option(
    "--part",
    type=click.Choice(["test", "val", "all"]),
    help="Of the run's split [test]; of data that it knows nothing of all slides are taken.",
)
@heatmaps_option
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="cpu, cuda, cuda:1, mps; auto: a GPU where there is one.",
)
@click.option("--overwrite", is_flag=True, help="Replace another evaluation in OUT.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="The measures, for scripts; what is told goes to stderr.",
)
def evaluate_command(
    source: str,
    overrides: tuple[str, ...],
    out: Path,
    part: str | None,
    heatmaps: int,
    device: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Measure SOURCE, a run or a model, on another part or on other data.

    Of a run, data.KEY=VALUE changes what its config says of the data. Of a model (name,
    hf:owner/name@COMMIT, folder) the data are given so. Labels must be among its classes.
    Interrupted, the same command goes on with the slides that are left.

    \b
    Examples:
      wsizoo evaluate RUN -o val --part val
      wsizoo evaluate RUN -o other data.table=t.csv data.features=features
      wsizoo evaluate RUN -o test --heatmaps 20
      wsizoo evaluate hf:me/model@COMMIT -o out data.table=t.csv data.features=f
    """
    from wsizoo.train.evaluation import evaluate_run

    with bar(quiet=as_json) as tick:
        evaluate_run(
            source,
            out,
            overrides,
            part=part,
            device=device,
            heatmaps=heatmaps,
            overwrite=overwrite,
            say=lambda text: tell(text, err=as_json),
            tick=tick,
        )
    _tell(out, as_json)


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@heatmaps_option
@device_option
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def report_command(run: Path, heatmaps: int, device: str, as_json: bool) -> None:
    """Write RUN/report.html anew, from the files of a run, an evaluation or several runs.

    With --heatmaps its table of slides links to pictures of what the model looked at; they need
    the table and the features of the run where its config.yaml says they are.

    \b
    Examples:
      wsizoo report RUN
      wsizoo report RUN --heatmaps 20
    """
    from wsizoo.reports.run import write_report

    if heatmaps:
        from wsizoo.train.heatmaps import heatmaps_of_run

        with bar(quiet=as_json) as tick:
            heatmaps_of_run(run, heatmaps, device=device, tick=tick)
    page = write_report(run)
    click.echo(json.dumps({"report": str(page.absolute())}) if as_json else page)


def _tell(out: Path, as_json: bool) -> None:
    """The measures that a folder holds."""
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    report = out.absolute() / "report.html"
    if as_json:
        click.echo(json.dumps({"run": str(out.absolute()), **metrics}, indent=2))
        return
    rows = _of_several(metrics) if "runs" in metrics else _of_one(metrics)
    if not rows:
        click.echo("No test or validation slides, so nothing is measured.")
        return
    click.echo("")
    print_table(rows)
    click.echo(f"\nOpen {report}")


def _of_one(metrics: dict[str, Any]) -> list[dict[str, str]]:
    """Rows of a table: a measure of a part beside its interval; of validation only without test."""
    parts = [part for part in ("test", "val") if part in metrics]
    return [
        {
            "part": part,
            "measure": name.replace("_", " "),
            "value": _shown(one["value"]),
            "95 % interval": _interval(one),
            "n": str(one["n"]),
        }
        for part in parts[:1]
        for name, one in metrics[part].items()
    ]


def _of_several(metrics: dict[str, Any]) -> list[dict[str, str]]:
    """Rows of a table: a measure's mean over the runs with its interval, and their deviation."""
    n, intervals = str(len(metrics["runs"])), metrics.get("interval", {})
    return [
        {
            "part": metrics["part"],
            "measure": name.replace("_", " "),
            "mean ± std": _mean_std(mean, metrics["std"][name]),
            "95 % interval of the mean": _interval(intervals.get(name, {})),
            "runs": n,
        }
        for name, mean in metrics["mean"].items()
    ]


def _interval(one: dict[str, Any]) -> str:
    from wsizoo.card import beside_interval

    low, high = _shown(one.get("low")), _shown(one.get("high"))
    return ("n/a" if "-" in (low, high) else f"{low} to {high}") + beside_interval(one)


def _mean_std(mean: float | None, std: float | None) -> str:
    """Without a deviation where one run alone defines the measure."""
    return _shown(mean) if std is None else f"{_shown(mean)} ± {_shown(std)}"


def _shown(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"
