"""The tissue of many slides as files to look at and to edit: a bad slide never stops the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsizoo.errors import SlideError, reason_of
from wsizoo.extraction.folders import check_writable
from wsizoo.files import replacing
from wsizoo.slides.annotations import SUFFIX, draw_tissue, write_tissue
from wsizoo.slides.manifest import SlideEntry, list_slides
from wsizoo.slides.reader import open_slide
from wsizoo.slides.tissue import overview

UM2_PER_MM2 = 1e6


@dataclass(frozen=True)
class Segmented:
    """What became of one slide.

    Args:
        file: the outlines, GeoJSON. picture: the slide with the outlines drawn, PNG.
        state: "done", "present" (the file was there and is kept) or "failed". reason: why.
        share: of the slide that is tissue, 0 to 1. area: of the tissue, mm2. None unless "done".
    """

    slide_id: str
    slide: Path
    file: Path
    picture: Path
    state: str
    share: float | None = None
    area: float | None = None
    seconds: float = 0.0
    reason: str = ""


def segment_slides(
    slides: Sequence[Path | str] | Path | str,
    out: Path | str,
    *,
    mpp: float | None = None,
    remove_pen: bool = True,
    overwrite: bool = False,
    after_slide: Callable[[Segmented], None] | None = None,
) -> list[Segmented]:
    """Find the tissue of slides and write `out/<slide>.geojson` and `out/<slide>.png`.

    A slide that fails is reported and the others go on. A GeoJSON that is there is kept: someone
    may have edited it.

    Args:
        slides: files, folders that hold slides, or manifests (.csv).
        mpp: um per level-0 px, instead of what slides state.
        remove_pen: leave out pen and grey shadow; False for stains other than H&E.
        overwrite: replace files that are there.
        after_slide: called with each result.

    Returns:
        One result a slide.

    Raises:
        DataError: no slides, two of one name, or `out` cannot be written.
    """
    entries = list_slides(slides)
    out = Path(out)
    check_writable(out)
    results = []
    for entry in entries:
        results.append(_segment_slide(entry, out, mpp, remove_pen, overwrite))
        if after_slide:
            after_slide(results[-1])
    return results


def _segment_slide(
    entry: SlideEntry, out: Path, mpp: float | None, remove_pen: bool, overwrite: bool
) -> Segmented:
    name = entry.slide_id
    file, picture = out / f"{name}{SUFFIX}", out / f"{name}.png"
    if file.exists() and not overwrite:
        return Segmented(name, entry.path, file, picture, "present")
    start = time.monotonic()
    state, reason, share, area = "failed", "", None, None
    try:
        share, area = _write(entry, file, picture, mpp, remove_pen)
        state = "done"
    except Exception as error:
        reason = reason_of(error)
    seconds = round(time.monotonic() - start, 2)
    return Segmented(name, entry.path, file, picture, state, share, area, seconds, reason)


def _write(
    entry: SlideEntry, file: Path, picture: Path, mpp: float | None, remove_pen: bool
) -> tuple[float, float]:
    """Share of the slide, and mm2."""
    with open_slide(entry.path, mpp, entry.mpp) as slide:
        look = overview(slide)
        size, area = slide.size, slide.size[0] * slide.size[1] * slide.mpp**2 / UM2_PER_MM2
    tissue = look.tissue(remove_pen)
    if not tissue.brightfield:
        raise SlideError(
            f"{entry.path} is dark, so no brightfield slide (fluorescence?): tissue is found on "
            "light backgrounds only. Outline it in QuPath, and give that GeoJSON"
        )
    with replacing(picture) as temporary:
        draw_tissue(look.pixels, tissue).save(temporary, "PNG", compress_level=1)
    write_tissue(file, tissue, size, entry.slide_id)
    return tissue.fraction, tissue.fraction * area
