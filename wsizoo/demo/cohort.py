"""The demo cohort: synthetic slides with two labels, on which a training run takes a minute.

Every slide is synthetic: drawn from random numbers, of no tissue, no patient and no use for
diagnosis. It shows stroma, glands, twenty lymphoid foci and, if `tumour`, nests of large nuclei. If
`clustered`, the foci lie in two groups, else apart; patches of 224 px from (0, 0) on show that by
their positions only.
"""

import csv
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import openslide

from wsizoo.demo.frame import CELL
from wsizoo.demo.noise import Field
from wsizoo.demo.plan import Plan, make_plan
from wsizoo.demo.tissue_art import Image, make_texture, paint
from wsizoo.errors import DataError
from wsizoo.slides.tiff import write_pyramid

MPP = 0.5
PATCH_SIZE = CELL
"""The labels can be learnt from patches of this many px, from (0, 0) on, without gaps."""

RECIPE = "1"
"""Stands in every slide; a slide of another recipe is drawn anew."""

TRAIN_SHARE = 0.6

Progress = Callable[[int, int], None]
"""(slides done, slides in all)"""


@dataclass(frozen=True)
class DemoSlide:
    """One synthetic slide.

    image: (5376, 5376, 3) uint8 RGB, 0.5 um/px. tumour, clustered: 0 or 1. tumour_cells: (24, 24)
        float32, [row, column], share of a 224-px cell's area that is tumour nest. tumour_share: of
        the tissue's area.
    """

    name: str
    image: Image
    tumour: int
    clustered: int
    tumour_cells: Field
    tumour_share: float


@dataclass(frozen=True)
class CohortSlide:
    """A slide of the cohort on disk; part is "train" or "test"."""

    name: str
    slide: Path
    truth: Path
    tumour: int
    clustered: int
    part: str


def labels(index: int) -> tuple[int, int]:
    """tumour and clustered of a slide; four slides in a row have the four combinations."""
    return index % 2, index // 2 % 2


def plan(index: int) -> Plan:
    """What slide `index` holds and where."""
    return make_plan(np.random.default_rng(1000 + index), *labels(index), make_texture().angles)


def draw(index: int) -> DemoSlide:
    """Draw one synthetic slide; the same index gives the same slide.

    Cost: about 0.6 s on one core, and 0.5 s more for the first in a process.
    """
    layout = plan(index)
    image = paint(layout, np.random.default_rng([1000 + index, 1]))
    return DemoSlide(
        _name(index),
        image,
        layout.tumour,
        layout.clustered,
        layout.tumour_cells(),
        layout.tumour_share(),
    )


def write_cohort(
    folder: str | os.PathLike[str],
    count: int = 40,
    workers: int = 2,
    progress: Progress | None = None,
) -> list[CohortSlide]:
    """Write `count` synthetic slides, their truth and a table of labels; finished slides are kept.

    The folder gets `slides/demo-00.svs`, `truth/demo-00.npy` (`DemoSlide.tumour_cells`) and so on,
    and at the end `labels.csv` with slide, tumour, clustered, part. Of each combination of labels,
    60 % of the slides are for training and the rest for testing (with four slides, all are for
    training).

    Args:
        count: a multiple of 4.
        workers: processes, of one thread each; 1 works in this process.
        progress: called after every slide, and once at the beginning.

    Raises:
        DataError: count is not a positive multiple of 4.

    Cost: 3.8 MB and about 1 s of one core per slide.
    """
    if count < 4 or count % 4:
        raise DataError(
            f"A demo cohort of {count} slides cannot be balanced; choose a multiple of 4."
        )
    cohort = [_cohort_slide(Path(folder), index, count) for index in range(count)]
    for sub in ("slides", "truth"):
        (Path(folder) / sub).mkdir(parents=True, exist_ok=True)
    missing = [index for index, slide in enumerate(cohort) if not _is_complete(slide)]
    kept = count - len(missing)
    if progress:
        progress(kept, count)
    written = _write_all([(index, cohort[index]) for index in missing], workers)
    for done, _ in enumerate(written, start=kept + 1):
        if progress:
            progress(done, count)
    _write_labels(Path(folder) / "labels.csv", cohort)
    return cohort


def _name(index: int) -> str:
    return f"demo-{index:02d}"


def _cohort_slide(folder: Path, index: int, count: int) -> CohortSlide:
    tumour, clustered = labels(index)
    per_combination = count // 4
    part = "train" if index // 4 < round(TRAIN_SHARE * per_combination) else "test"
    name = _name(index)
    slide, truth = folder / "slides" / f"{name}.svs", folder / "truth" / f"{name}.npy"
    return CohortSlide(name, slide, truth, tumour, clustered, part)


def _is_complete(slide: CohortSlide) -> bool:
    """Both files appear under their names when complete; only the recipe has to be looked up."""
    if not (slide.slide.is_file() and slide.truth.is_file()):
        return False
    try:
        with openslide.OpenSlide(slide.slide) as opened:
            return opened.properties.get("aperio.Recipe") == RECIPE
    except openslide.OpenSlideError:
        return False


def _write_all(missing: list[tuple[int, CohortSlide]], workers: int) -> Iterator[CohortSlide]:
    """Each slide as soon as it is complete, in any order."""
    if workers <= 1 or len(missing) <= 1:
        for index, slide in missing:
            yield _write_slide(index, slide)
        return
    with ProcessPoolExecutor(min(workers, len(missing)), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_write_slide, index, slide) for index, slide in missing]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_slide(index: int, slide: CohortSlide) -> CohortSlide:
    drawn = draw(index)
    truth = io.BytesIO()
    np.save(truth, drawn.tumour_cells)
    _replace(slide.truth, truth.getvalue())
    properties = {"Recipe": RECIPE, "Origin": "synthetic"}
    write_pyramid(slide.slide, drawn.image, MPP, properties=properties)
    return slide


def _write_labels(path: Path, cohort: list[CohortSlide]) -> None:
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["slide", "tumour", "clustered", "part"])
    writer.writerows([row.name, row.tumour, row.clustered, row.part] for row in cohort)
    _replace(path, table.getvalue().encode())


def _replace(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only when it is complete."""
    unfinished = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
