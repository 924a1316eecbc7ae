"""extract, predict, embed: the commands that read slides."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

Command = Callable[..., Any]


def patch_options(command: Command) -> Command:
    """Options on how patches are cut."""
    options = [
        click.option("--mpp", type=float, help="Microns per level-0 px, where slides state none."),
        click.option(
            "--patch-mpp", type=float, help="Microns per px of a patch [the encoder's own]."
        ),
        click.option("--patch-size", type=int, help="Edge of a patch in px [the encoder's own]."),
        click.option(
            "--overlap", type=float, default=0.0, help="Share of an edge that neighbours share."
        ),
        click.option(
            "--min-tissue",
            type=float,
            help="Share of a patch that must be tissue [0.5; 0.1 where a slide has under 1 %].",
        ),
        click.option(
            "--batch-size", type=int, default=64, show_default=True, help="Patches at once."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command("extract")
@click.argument("slides", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-e",
    "--encoder",
    default="handcrafted-he",
    show_default=True,
    help="See: wsizoo list --encoders",
)
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for <slide>.h5."
)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@patch_options
@click.option("--json", "as_json", is_flag=True, help="One line of JSON a slide.")
def extract_command(
    slides: tuple[Path, ...], encoder: str, out: Path, workers: int, as_json: bool, **cut: Any
) -> None:
    """Cut SLIDES (files or folders) into patches and write their features to OUT/<slide>.h5.

    A slide that fails is reported and the others go on (exit code 1). Run the same command again
    after an interruption: finished files are verified and kept.

    \b
    Examples:
      wsizoo extract slides/ -o features --workers 4
      wsizoo extract a.svs b.ndpi -e handcrafted-he -o features
      wsizoo extract scan.tiff --mpp 0.25 -o features
    """
    from wsizoo.extraction import Extracted, extract

    with progress_bar(quiet=as_json) as (progress, say):

        def report(result: Extracted) -> None:
            if as_json:
                say(
                    json.dumps(
                        {k: str(v) if isinstance(v, Path) else v for k, v in vars(result).items()}
                    )
                )
            elif result.reason:
                say(f"FAILED   {result.slide_id}: {result.reason}")
            else:
                word = "present" if result.state == "present" else "done   "
                say(f"{word}  {result.file}  {result.patches} patches  {result.seconds:.1f} s")

        results = extract(
            list(slides),
            encoder,
            out,
            request=_request(cut),
            progress=progress,
            after_slide=report,
            workers=workers,
        )
    _finish([r.reason for r in results], as_json, f"{out}/extract.csv")


@click.command("predict")
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-m", "--model", required=True, help="Name, hf:owner/name@COMMIT, or a folder of wsizoo.save."
)
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for the results."
)
@click.option("--no-pictures", is_flag=True, help="Table and scores only.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, mps.")
@patch_options
@click.option("--json", "as_json", is_flag=True, help="One line of JSON a slide.")
def predict_command(
    inputs: tuple[Path, ...],
    model: str,
    out: Path,
    no_pictures: bool,
    device: str,
    as_json: bool,
    **cut: Any,
) -> None:
    """Predict INPUTS: slides, .h5 feature files, or folders of either.

    Writes OUT/predictions.csv and, a slide, a heatmap (PNG), GeoJSON for QuPath and the scores of
    its patches. Larger scores mattered more to the model.

    \b
    Examples:
      wsizoo predict slide.svs -m abmil-demo -o out
      wsizoo predict features/ -m ./my-model -o out --no-pictures
    """
    from wsizoo.inference import Predicted, predict

    with progress_bar(quiet=as_json) as (progress, say):

        def report(result: Predicted) -> None:
            if as_json:
                files = {kind: str(path) for kind, path in result.files.items()}
                say(
                    json.dumps(
                        {
                            **result.row,
                            "slide": result.slide_id,
                            "files": files,
                            "reason": result.reason,
                        }
                    )
                )
            elif result.reason:
                say(f"FAILED   {result.slide_id}: {result.reason}")
            else:
                say("  ".join(f"{key} {value}" for key, value in result.row.items()))

        results = predict(
            list(inputs),
            model,
            out,
            pictures=not no_pictures,
            request=_request(cut),
            device=device,
            progress=progress,
            after_slide=report,
        )
    _finish([r.reason for r in results], as_json, f"{out}/predictions.csv")


@click.command("embed")
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-m", "--model", required=True, help="Name, hf:owner/name@COMMIT, or a folder.")
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for <slide>.h5."
)
@patch_options
@click.option("--json", "as_json", is_flag=True, help="One line of JSON a slide.")
def embed_command(
    inputs: tuple[Path, ...], model: str, out: Path, as_json: bool, **cut: Any
) -> None:
    """Write the slide embedding of each of INPUTS to OUT/<slide>.h5 (dataset `features`, (E,)).

    \b
    Example:
      wsizoo embed features/ -m abmil-demo -o embeddings
    """
    from wsizoo.inference import embed

    with progress_bar(quiet=as_json) as (progress, say):
        results = embed(list(inputs), model, out, request=_request(cut), progress=progress)
        for result in results:
            if as_json:
                say(json.dumps({"slide": result.slide_id, **result.row, "reason": result.reason}))
            elif result.reason:
                say(f"FAILED   {result.slide_id}: {result.reason}")
            else:
                say(f"done     {result.files['embedding']}")
    _finish([r.reason for r in results], as_json, str(out))


def _request(cut: dict[str, Any]) -> Any:
    from wsizoo.slides.extract import Request

    return Request(
        mpp=cut["patch_mpp"],
        patch_size=cut["patch_size"],
        overlap=cut["overlap"],
        min_tissue=cut["min_tissue"],
        slide_mpp=cut["mpp"],
        batch_size=cut["batch_size"],
    )


@contextmanager
def progress_bar(
    quiet: bool = False,
) -> Iterator[tuple[Callable[[str, int, int], None], Callable[[str], None]]]:
    """A bar of the current slide on a terminal; `say` prints lines above it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    show = console.is_terminal and not quiet
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} patches"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not show, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def progress(slide: str, done: int, total: int) -> None:
            if slide not in tasks:
                for old in tasks.values():
                    bar.remove_task(old)
                tasks.clear()
                tasks[slide] = bar.add_task(slide, total=total)
            bar.update(tasks[slide], completed=done, total=total)

        yield progress, click.echo


def _finish(reasons: list[str], as_json: bool, where: str) -> None:
    """A closing line; exit code 1 if any slide failed."""
    failed = sum(bool(reason) for reason in reasons)
    if not as_json:
        click.echo(f"{len(reasons) - failed} of {len(reasons)} slides done: {where}", err=True)
    if failed:
        sys.exit(1)
