"""extract, predict, embed: the commands that read slides."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsizoo.cli.progress import slide_bars

if TYPE_CHECKING:
    from wsizoo.extraction import Extracted
    from wsizoo.inference import Predicted
    from wsizoo.slides.extract import Request

Command = Callable[..., Any]


ABOVE_0 = click.FloatRange(0, min_open=True)
PATCH_OPTIONS = (
    click.option(
        "--mpp", type=ABOVE_0, help="Microns per level-0 px, instead of what slides state."
    ),
    click.option(
        "--patch-mpp", type=ABOVE_0, help="Microns per px of a patch [the encoder's own]."
    ),
    click.option(
        "--patch-size", type=click.IntRange(1), help="Edge of a patch in px [the encoder's own]."
    ),
    click.option(
        "--overlap",
        type=click.FloatRange(0, 1, max_open=True),
        default=0.0,
        help="Share of an edge that neighbours share [0].",
    ),
    click.option(
        "--min-tissue",
        type=click.FloatRange(0, 1),
        help="Share of a patch that must be tissue [0.5; 0.1 where a slide has under 1 %].",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(1),
        default=64,
        show_default=True,
        help="Patches at once.",
    ),
    click.option(
        "--overwrite",
        is_flag=True,
        help="Replace feature files that are damaged or were made in another way.",
    ),
)


def patch_options(command: Command) -> Command:
    """Options on how patches are cut and encoded."""
    for option in reversed(PATCH_OPTIONS):
        command = option(command)
    return command


def out_option(help_text: str) -> Callable[[Command], Command]:
    """-o/--out, a folder."""
    return click.option(
        "-o", "--out", required=True, type=click.Path(path_type=Path), help=help_text
    )


model_option = click.option(
    "-m", "--model", required=True, help="Name, hf:owner/name@COMMIT, or a folder of wsizoo.save."
)
device_option = click.option(
    "--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps."
)
json_option = click.option("--json", "as_json", is_flag=True, help="One line of JSON a slide.")


def feature_options(command: Command) -> Command:
    """Options on feature files that are given instead of slides."""
    force = "Go on with features of another encoder than the model's; outputs say so."
    command = click.option("--force", is_flag=True, help=force)(command)
    told = "That made the features of files which name none."
    return click.option("--encoder", help=told)(command)


@click.command("extract")
@click.argument("slides", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-e",
    "--encoder",
    default="handcrafted-he",
    show_default=True,
    help="See: wsizoo list --encoders",
)
@out_option("Folder for <slide>.h5.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@device_option
@patch_options
@json_option
def extract_command(
    slides: tuple[Path, ...],
    encoder: str,
    out: Path,
    workers: int,
    device: str,
    overwrite: bool,
    as_json: bool,
    **cut: Any,
) -> None:
    """Cut SLIDES (files or folders) into patches and write their features to OUT/<slide>.h5.

    A slide that fails is reported and the others go on (exit code 1). Run the same command again
    after an interruption: finished files are verified and kept. OUT/extract.csv tells what became
    of each slide.

    \b
    Examples:
      wsizoo extract slides/ -o features --workers 4
      wsizoo extract a.svs b.ndpi -e handcrafted-he -o features --device cuda
      wsizoo extract scan.tiff --mpp 0.25 -o features
    """
    from wsizoo.extraction import SLIDE_SUFFIXES, extract, list_files

    total = len(list_files(slides, SLIDE_SUFFIXES))
    with slide_bars(total, quiet=as_json) as (progress, after):
        results = extract(
            slides,
            encoder,
            out,
            request=_request(cut),
            device=device,
            progress=progress,
            after_slide=after(_extracted_json if as_json else _extracted_line),
            workers=workers,
            overwrite=overwrite,
        )
    _finish([r.reason for r in results], as_json, out / "extract.csv")


def _extracted_line(result: Extracted) -> str:
    if result.reason:
        return f"FAILED   {result.slide_id}: {result.reason}"
    seconds = f"{result.seconds:.1f} s"
    return f"{result.state:<8} {result.slide_id}  {result.patches} patches  {seconds}"


def _extracted_json(result: Extracted) -> str:
    return json.dumps(vars(result), default=str)


@click.command("predict")
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@model_option
@out_option("Folder for the results.")
@click.option("--no-pictures", is_flag=True, help="Table and scores only.")
@device_option
@feature_options
@patch_options
@json_option
def predict_command(
    inputs: tuple[Path, ...],
    model: str,
    out: Path,
    no_pictures: bool,
    device: str,
    encoder: str | None,
    force: bool,
    overwrite: bool,
    as_json: bool,
    **cut: Any,
) -> None:
    """Predict INPUTS: slides, feature files of any tool, or folders of slides and .h5 files.

    Writes OUT/predictions.csv and, a slide, a heatmap (PNG), GeoJSON for QuPath and the scores or
    class probabilities of its patches: larger scores mattered more to the model. OUT/run.json tells
    what made them. Features of slides are kept in OUT/features. A slide that fails is reported and
    the others go on (exit code 1). Run the same command again after an interruption: what is there
    and unchanged is left out, unless you say --overwrite.

    \b
    Examples:
      wsizoo predict slide.svs -m abmil-demo -o out
      wsizoo predict features/ -m ./my-model -o out --no-pictures
    """
    from wsizoo.inference import predict
    from wsizoo.sources import list_inputs
    from wsizoo.zoo import load

    files = list_inputs(inputs)
    network = load(model)
    with slide_bars(len(files), quiet=as_json) as (progress, after):
        results = predict(
            inputs,
            network,
            out,
            pictures=not no_pictures,
            request=_request(cut),
            device=device,
            progress=progress,
            after_slide=after(_predicted_json if as_json else _predicted_line),
            overwrite=overwrite,
            encoder=encoder,
            force=force,
        )
    if limits := network.facts.get("limits"):
        click.echo(f"Limits of {model}: {limits}", err=True)
    _finish([r.reason for r in results], as_json, out / "predictions.csv")


@click.command("embed")
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@model_option
@out_option("Folder for <slide>.h5.")
@device_option
@feature_options
@patch_options
@json_option
def embed_command(
    inputs: tuple[Path, ...],
    model: str,
    out: Path,
    device: str,
    encoder: str | None,
    force: bool,
    overwrite: bool,
    as_json: bool,
    **cut: Any,
) -> None:
    """Write the slide embedding of each of INPUTS to OUT/<slide>.h5 (dataset `features`, (E,)).

    INPUTS are slides, feature files of any tool, or folders of slides and .h5 files. Features of
    slides are kept in OUT/features for the next call.

    \b
    Example:
      wsizoo embed features/ -m abmil-demo -o embeddings
    """
    from wsizoo.inference import embed
    from wsizoo.sources import list_inputs

    with slide_bars(len(list_inputs(inputs)), quiet=as_json) as (progress, after):
        results = embed(
            inputs,
            model,
            out,
            request=_request(cut),
            device=device,
            progress=progress,
            after_slide=after(_predicted_json if as_json else _predicted_line),
            overwrite=overwrite,
            encoder=encoder,
            force=force,
        )
    _finish([r.reason for r in results], as_json, out)


def _predicted_line(result: Predicted) -> str:
    if result.reason:
        return f"FAILED   {result.slide_id}: {result.reason}"
    numbers = [f"{key} {value}" for key, value in result.row.items() if key != "slide"]
    state = "present" if result.present else "done"
    return "  ".join([f"{state:<8} {result.slide_id}", *numbers])


def _predicted_json(result: Predicted) -> str:
    state = "failed" if result.reason else "present" if result.present else "done"
    told = {**result.row, "slide": result.slide_id, "state": state}
    told |= {"files": result.files, "reason": result.reason}
    return json.dumps(told, default=str)


def _request(cut: dict[str, Any]) -> Request:
    from wsizoo.slides.extract import Request

    return Request(
        mpp=cut["patch_mpp"],
        patch_size=cut["patch_size"],
        overlap=cut["overlap"],
        min_tissue=cut["min_tissue"],
        slide_mpp=cut["mpp"],
        batch_size=cut["batch_size"],
    )


def _finish(reasons: Sequence[str], as_json: bool, where: Path) -> None:
    """A closing line; exit code 1 if any slide failed."""
    failed = sum(bool(reason) for reason in reasons)
    if not as_json:
        click.echo(f"{len(reasons) - failed} of {len(reasons)} slides done: {where}", err=True)
    if failed:
        sys.exit(1)
