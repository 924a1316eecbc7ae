"""diagnose: what a model does inside, in numbers and pictures."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsizoo.cli.diagnose_selector import selector_command
from wsizoo.cli.options import ABOVE_0
from wsizoo.cli.progress import slide_bars
from wsizoo.cli.text import print_table

if TYPE_CHECKING:
    from wsizoo.diagnosis.attention import Diagnosed
    from wsizoo.model import SlideModel

OVERRIDE = re.compile(r"\w+(\.\w+)*=")  # a file of such a name: ./a=b.h5


@click.group("diagnose")
def diagnose_command() -> None:
    """What a model does inside, in numbers and pictures."""


diagnose_command.add_command(selector_command)


@diagnose_command.command("attention")
@click.argument("model")
@click.argument("given", nargs=-1, required=True, metavar="FEATURES... [KEY=VALUE]...")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Folder for tables and pictures [none]."
)
@click.option(
    "--max-patches",
    type=click.IntRange(2),
    default=1000,
    show_default=True,
    help="The model sees no more of a slide: those nearest to the middle of its tissue.",
)
@click.option(
    "--patch",
    type=click.IntRange(0),
    help="Row, in the feature file, of the patch whose attention is drawn, and nearest to which "
    "the patches are taken [the one in the middle of the tissue].",
)
@click.option(
    "--radius",
    type=ABOVE_0,
    default=10.0,
    show_default=True,
    help="In patches: the column 'within' is the share of attention that goes no farther.",
)
@click.option(
    "--untrained", is_flag=True, help="Random weights instead of MODEL's, to compare with."
)
@click.option("--encoder", help="That made the features of files which name none.")
@click.option(
    "--force", is_flag=True, help="Go on with features of another encoder than the model's."
)
@click.option("--json", "as_json", is_flag=True, help="One line of JSON a slide.")
def attention_command(
    model: str,
    given: tuple[str, ...],
    out: Path | None,
    untrained: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Rank, sparsity and reach of MODEL's attention on FEATURES.

    MODEL is a name, hf:owner/name@COMMIT, or the folder of a saved model or of a run. FEATURES are
    feature files of any tool, folders of them, or manifests (.csv). KEY=VALUE changes a key of the
    model, as far as its weights allow.

    Of each layer and head: rank, ranks at thresholds and effective rank of the n x n weights, their
    sparsity, lower bounds of the rank ("-" where they do not hold), mean attended distance, and the
    share of attention within a radius. OUT gets attention.csv, attention.json and attention.html
    with spectra, distances and a map. A matrix is decomposed in O(n^3), so the model sees no more
    than --max-patches; the output says so. A slide that fails is reported and the others go on
    (exit code 1).

    \b
    Examples:
      wsizoo diagnose attention RUN features/slide.h5 -o diagnosis
      wsizoo diagnose attention RUN features/slide.h5 -o before --untrained
      wsizoo diagnose attention ./my-model features/ --max-patches 500 --json
      wsizoo diagnose attention longmil-uni s.h5 aggregator.radius=5 --untrained
    """
    from wsizoo.diagnosis.attention import CAVEAT, PAGE, diagnose_attention
    from wsizoo.sources import list_inputs

    overrides = [text for text in given if OVERRIDE.match(text)]
    features = [Path(text) for text in given if text not in overrides]
    network = _network(model, overrides, untrained)
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


def _network(name: str, overrides: Sequence[str], untrained: bool) -> SlideModel:
    from wsizoo.diagnosis.untrained import build_untrained
    from wsizoo.errors import NoWeightsError
    from wsizoo.zoo import load

    if untrained:
        return build_untrained(name, *overrides)
    try:
        return load(name, *overrides)
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
        told[name.replace("_", " ")] = "-" if row[name] is None else row[name]
    told["distance"] = f"{row['distance']:.2f}"
    told["um"] = "-" if row["distance_um"] is None else f"{row['distance_um']:.0f}"
    return told | {"within": f"{row['within_radius']:.3f}"}
