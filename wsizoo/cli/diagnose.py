"""diagnose: what a model does inside, in numbers and pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsizoo.cli.options import ABOVE_0
from wsizoo.cli.progress import slide_bars
from wsizoo.cli.text import print_table

if TYPE_CHECKING:
    from wsizoo.diagnosis.attention import Diagnosed
    from wsizoo.model import SlideModel


@click.group("diagnose")
def diagnose_command() -> None:
    """What a model does inside, in numbers and pictures."""


@diagnose_command.command("attention")
@click.argument("model")
@click.argument("features", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Folder for tables and pictures [none]."
)
@click.option(
    "--max-patches",
    type=click.IntRange(2),
    default=1000,
    show_default=True,
    help="More are left out: those far from the centre of the tissue.",
)
@click.option(
    "--patch",
    type=click.IntRange(0),
    help="Row of the patch whose attention is drawn, in place of that centre.",
)
@click.option(
    "--radius", type=ABOVE_0, default=10.0, show_default=True, help="Of 'within', in patches."
)
@click.option("--untrained", is_flag=True, help="A model of the registry with random weights.")
@click.option("--encoder", help="That made the features of files which name none.")
@click.option("--force", is_flag=True, help="Features of another encoder than the model's.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON a slide.")
def attention_command(
    model: str,
    features: tuple[Path, ...],
    out: Path | None,
    untrained: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Rank, sparsity and reach of the attention of MODEL on the slides FEATURES.

    MODEL is a name, hf:owner/name@COMMIT, or the folder of a saved model or of a training run.
    FEATURES are feature files of any tool, folders of them, or manifests (.csv).

    Of each layer and head: rank, ranks at thresholds and effective rank of the n x n weights, their
    sparsity, lower bounds of the rank and whether they hold, mean attended distance, and the share
    of attention within a radius. OUT gets attention.csv, attention.json and attention.html with
    spectra, distances and a map. A matrix is decomposed in O(n^3), so the model sees no more than
    --max-patches; the output says so. A slide that fails is reported and the others go on (exit
    code 1).

    \b
    Examples:
      wsizoo diagnose attention RUN features/slide.h5 -o diagnosis
      wsizoo diagnose attention ./my-model features/ --max-patches 500 --json
    """
    from wsizoo.diagnosis.attention import CAVEAT, PAGE, diagnose_attention
    from wsizoo.sources import list_inputs

    network = _network(model, untrained)
    with slide_bars(len(list_inputs(features)), quiet=as_json) as (tick, after):
        results = diagnose_attention(
            network,
            features,
            out,
            after_slide=after(_json if as_json else _line),
            progress=tick,
            **asked,
        )
    rows = [row for result in results for row in result.rows()]
    if rows and not as_json:
        print_table([_shown(row) for row in rows])
        click.echo(CAVEAT, err=True)
        page = "Pictures: -o OUT" if out is None else f"Open {out.absolute() / PAGE}"
        click.echo(page, err=True)
    sys.exit(1 if any(result.reason for result in results) else 0)


def _network(name: str, untrained: bool) -> SlideModel:
    from wsizoo.errors import NoWeightsError
    from wsizoo.publish import model_folder
    from wsizoo.zoo import build, load

    if untrained:
        return build(name, "head=null")
    try:
        return load(model_folder(Path(name)).absolute() if Path(name).is_dir() else name)
    except NoWeightsError as error:
        raise NoWeightsError(f"{error}. To diagnose random ones: --untrained") from None


def _line(result: Diagnosed) -> str:
    if result.reason:
        return f"FAILED   {result.slide_id}: {result.reason}"
    saw = "all patches" if result.window == result.patches else f"{result.window} patches"
    where = "" if result.window == result.patches else f" around patch {result.patch}"
    return f"done     {result.slide_id}  {saw} of {result.patches}{where}"


def _json(result: Diagnosed) -> str:
    told = {name: getattr(result, name) for name in ("slide_id", "patches", "window", "patch")}
    return json.dumps({**told, "um": result.um, "reason": result.reason, "heads": result.rows()})


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """The columns that fit into a terminal; files have them all."""
    names = ("slide", "layer", "head", "tokens", "rank", "rank_0.001", "effective_rank")
    told = {name.replace("_", " "): row[name] for name in names}
    told["sparsity"] = f"{row['sparsity']:.3f}"
    for name in ("bound_1d", "bound_2d"):
        told[name.replace("_", " ")] = f"{row[name]}{'' if row[f'{name}_holds'] else ' (no)'}"
    told["distance"] = f"{row['distance']:.2f}"
    told["um"] = "-" if row["distance_um"] is None else f"{row['distance_um']:.0f}"
    return told | {"within": f"{row['within_radius']:.3f}"}
