"""tissue: outlines of the tissue of slides, to look at and to edit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsizoo.cli.options import ABOVE_0, json_option, out_option
from wsizoo.cli.progress import slide_bars

if TYPE_CHECKING:
    from wsizoo.segmentation import Segmented


@click.command("tissue")
@click.argument("slides", nargs=-1, required=True, type=click.Path(path_type=Path))
@out_option("Folder for <slide>.geojson and <slide>.png.")
@click.option("--mpp", type=ABOVE_0, help="Microns per level-0 px, instead of what slides state.")
@click.option(
    "--keep-pen", is_flag=True, help="Leave in what looks like ink or grey: for stains but H&E."
)
@click.option("--overwrite", is_flag=True, help="Replace files that are there, edited or not.")
@json_option
def tissue_command(
    slides: tuple[Path, ...],
    out: Path,
    mpp: float | None,
    keep_pen: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Outline the tissue of SLIDES (files, folders, manifests) as GeoJSON that QuPath edits.

    OUT/<slide>.png shows the outlines on the slide. A slide that fails is reported and the others
    go on (exit code 1). Files that are there are kept.

    \b
    Examples:
      wsizoo tissue slides/ -o tissue
      wsizoo tissue ihc.svs -o tissue --keep-pen
    """
    from wsizoo.extraction.cohort import list_cohort
    from wsizoo.segmentation import segment_slides

    total = len(list_cohort(slides))
    with slide_bars(total, quiet=as_json) as (_, after):
        results = segment_slides(
            slides,
            out,
            mpp=mpp,
            remove_pen=not keep_pen,
            overwrite=overwrite,
            after_slide=after(_json if as_json else _line),
        )
    failed = sum(result.state == "failed" for result in results)
    if not as_json:
        click.echo(f"{len(results) - failed} of {len(results)} slides done: {out}", err=True)
    if failed:
        sys.exit(1)


def _line(result: Segmented) -> str:
    if result.reason:
        return f"FAILED   {result.slide_id}: {result.reason}"
    if result.share is None or result.area is None:
        return f"{result.state:<8} {result.slide_id}"
    told = f"{result.share * 100:.1f} % tissue  {result.area:.1f} mm2  {result.seconds:.1f} s"
    return f"{result.state:<8} {result.slide_id}  {told}"


def _json(result: Segmented) -> str:
    return json.dumps(vars(result), default=str)
