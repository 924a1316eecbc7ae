"""extract, predict, embed: the commands that read slides."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsizoo.cli.options import (
    device_option,
    encoding_options,
    feature_options,
    json_option,
    model_option,
    out_option,
    patch_options,
    request_of,
    scale_options,
)
from wsizoo.cli.progress import cohort_bar, slide_bars

if TYPE_CHECKING:
    from wsizoo.extraction.job import Extracted
    from wsizoo.inference import Predicted


@click.command("extract")
@click.argument("slides", nargs=-1, required=True, type=click.Path(path_type=Path))
@out_option("Folder for <slide>.h5, extract.csv and extract.html.")
@encoding_options
@device_option
@scale_options
@patch_options
@json_option
def extract_command(
    slides: tuple[Path, ...],
    encoder: str,
    out: Path,
    shard: str | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Cut SLIDES into patches and write their features to OUT/<slide>.h5.

    SLIDES are files, folders, or manifests: a .csv with the column slide and, optional, mpp,
    patient and label.

    A slide that fails is reported and the others go on (exit code 1). Run the same command again
    after an interruption: finished files are verified and kept, a slide that was under way goes on
    where it was. OUT/extract.csv tells what became of each slide, OUT/extract.html shows what
    stands out.

    \b
    Examples:
      wsizoo extract slides/ -o features --workers 4
      wsizoo extract a.svs b.ndpi -e handcrafted-he -o features --device cuda
      wsizoo extract scan.tiff --mpp 0.25 -o features
      wsizoo extract cohort.csv -o features --shard 3/16
      sbatch --array=0-15 --wrap "wsizoo extract cohort.csv -o features"
      RAY_ADDRESS=auto wsizoo extract cohort.csv -o features --engine ray
    """
    from wsizoo.extraction.cohort import extract, list_cohort
    from wsizoo.extraction.progress import Pace
    from wsizoo.extraction.shards import Shard

    part = Shard.parse(shard) if shard else Shard.of_slurm()
    pace = Pace(len(list_cohort(slides, part)))
    if part:
        click.echo(f"shard {part}: {pace.slides} slides", err=True)
    scale = {name: options[name] for name in ("device", "weights", "precision", "workers")}
    with cohort_bar(pace, quiet=as_json) as (progress, after):
        results = extract(
            slides,
            encoder,
            out,
            request=request_of(options),
            progress=progress,
            after_slide=after(_extracted_json if as_json else _extracted_line),
            threads=options["threads"],
            engine=options["engine"],
            shard=part,
            overwrite=overwrite,
            **scale,
        )
    _finish([r.reason for r in results], as_json, out / "extract.html", pace.speed)


def _extracted_line(result: Extracted) -> str:
    from wsizoo.extraction.report import MUCH_BEYOND

    if result.reason:
        return f"FAILED   {result.slide_id}: {result.reason}"
    told = [f"{result.patches} patches"]
    if result.unreadable:
        told.append(f"{result.unreadable} more are damaged")
    if (result.beyond_grid or 0) > MUCH_BEYOND:
        told.append(f"{result.beyond_grid:.0%} of the tissue lies beyond whole patches (--pad)")
    told.append(f"{result.seconds:.1f} s")
    return "  ".join([f"{result.state:<8} {result.slide_id}", *told])


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
    """Predict INPUTS: slides, feature files of any tool, folders of both, or manifests (.csv).

    Writes OUT/predictions.csv and, a slide, a heatmap (PNG), GeoJSON for QuPath and the scores or
    class probabilities of its patches: larger scores mattered more to the model. OUT/run.json tells
    what made them. Features of slides are kept in OUT/features. A slide that fails is reported and
    the others go on (exit code 1). Run the same command again after an interruption: what is there
    and unchanged is left out, unless you say --overwrite.

    \b
    Examples:
      wsizoo predict slide.svs -m abmil-demo -o out
      wsizoo predict features/ -m RUN -o out --no-pictures
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
            request=request_of(cut),
            device=device,
            progress=progress,
            after_slide=after(_predicted_json if as_json else _predicted_line),
            overwrite=overwrite,
            encoder=encoder,
            force=force,
            weights=cut["weights"],
            precision=cut["precision"],
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

    INPUTS are slides, feature files of any tool, folders of both, or manifests (.csv). Features of
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
            request=request_of(cut),
            device=device,
            progress=progress,
            after_slide=after(_predicted_json if as_json else _predicted_line),
            overwrite=overwrite,
            encoder=encoder,
            force=force,
            weights=cut["weights"],
            precision=cut["precision"],
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


def _finish(reasons: Sequence[str], as_json: bool, where: Path, more: str = "") -> None:
    """A closing line; exit code 1 if any slide failed."""
    failed = sum(bool(reason) for reason in reasons)
    if not as_json:
        told = f"{len(reasons) - failed} of {len(reasons)} slides done{more}: {where}"
        click.echo(told, err=True)
    if failed:
        sys.exit(1)
