"""inspect and convert: feature files of any tool."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsizoo.cli.options import ABOVE_0, with_options
from wsizoo.cli.text import print_field

if TYPE_CHECKING:
    from wsizoo.formats.convert import Converted
    from wsizoo.formats.inspection import Inspection
    from wsizoo.formats.read import ReadAs

RULES = ("error", "nearest", "mean", "first")
reading_options = with_options(
    (  # what a file cannot say itself
        click.option("--encoder", help="That made the features, where a file names none."),
        click.option("--mpp", type=ABOVE_0, help="Microns per level-0 px of the slides."),
        click.option(
            "--coords-mpp",
            type=ABOVE_0,
            help="Microns per px of the coordinates, where the tool used px of its own.",
        ),
        click.option(
            "--from",
            "--format",
            "format_name",
            help="The tool, where a file's content does not tell.",
        ),
        click.option("--table", help="One of several sets of features in a file."),
    )
)


@click.command("inspect")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One line of JSON a file.")
@click.option("--verify", is_flag=True, help="Read the features too: digest, or finite numbers.")
@reading_options
def inspect_command(files: tuple[Path, ...], as_json: bool, verify: bool, **told: Any) -> None:
    """Say what FILES are: feature files of any tool, or slides.

    Format, patches, encoder, scale, whether the patches lie on one grid, and whether the file is
    whole. Exit code 1 if one is not.

    \b
    Examples:
      wsizoo inspect features/*.h5
      wsizoo inspect slide.svs --json
    """
    from wsizoo.formats.inspection import inspect

    how = _how(told, "error")
    whole = True
    for file in files:
        found = inspect(file, how, verify)
        whole &= found.complete
        if as_json:
            click.echo(json.dumps(found.to_json()))
        else:
            _print(found)
    sys.exit(0 if whole else 1)


def _print(found: Inspection) -> None:
    """The fields that are known, one a line."""
    click.echo(found.path)
    told = found.to_json()
    if found.n is not None and found.dim is None:
        told["dim"] = "-"
    for name, value in told.items():
        if name in ("path", "fingerprint") or value is None or value == "":
            continue
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        shown = {"True": "yes", "False": "no"}.get(shown, shown)
        print_field(f"  {name:<11} ", shown)


@click.command("convert")
@click.argument(
    "paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="INPUTS... OUT"
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="OUT, where only INPUTS are listed."
)
@click.option("--to", default="wsizoo", show_default=True, help="The tool to write for.")
@reading_options
@click.option(
    "--collisions",
    type=click.Choice(RULES),
    default="error",
    show_default=True,
    help="What becomes of patches that share a cell of the grid.",
)
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON a slide.")
def convert_command(
    paths: tuple[Path, ...],
    out: Path | None,
    to: str,
    collisions: str,
    overwrite: bool,
    as_json: bool,
    **told: Any,
) -> None:
    """Write INPUTS (feature files, or folders of them) as files of another tool into OUT.

    OUT is a folder, or, of one slide, a file that ends in .h5.

    Coordinates that are not on one grid are moved to the nearest cells, and it is said how many and
    how far; patches that share a cell are an error unless a rule is chosen. A file that fails is
    reported and the others go on (exit code 1).

    Weights of models: wsizoo convert weights --help. A folder of features that is called so:
    ./weights.

    \b
    Examples:
      wsizoo convert h5_files/ features --encoder uni --collisions nearest
      wsizoo convert stamp/*.h5 features --mpp 0.25
      wsizoo convert features/ trident --to trident
    """
    from wsizoo.formats.convert import convert

    inputs = paths if out else paths[:-1]
    out = out or paths[-1]
    if not inputs:
        raise click.UsageError(f"where to? wsizoo convert {out} OUT --to {to}")
    results = convert(
        inputs,
        out,
        to,
        how=_how(told, collisions),
        overwrite=overwrite,
        after_slide=lambda result: click.echo(_json(result) if as_json else _line(result)),
    )
    failed = sum(bool(result.reason) for result in results)
    if not as_json:
        click.echo(f"{len(results) - failed} of {len(results)} slides written: {out}", err=True)
    sys.exit(1 if failed else 0)


def _line(result: Converted) -> str:
    if result.reason:
        return f"FAILED   {result.slide_id}: {result.reason}"
    parts = [f"done     {result.slide_id}", f"{result.n} patches", f"from {result.format}"]
    return "  ".join([*parts, result.told]).rstrip()


def _json(result: Converted) -> str:
    return json.dumps({**vars(result), "files": [str(f) for f in result.files]}, default=str)


def _how(told: dict[str, Any], collisions: str) -> ReadAs:
    from wsizoo.formats.read import ReadAs

    return ReadAs(
        told["encoder"],
        told["mpp"],
        told["coords_mpp"],
        collisions,  # type: ignore[arg-type]
        told["format_name"],
        told["table"],
    )
