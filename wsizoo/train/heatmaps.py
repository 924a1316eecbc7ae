"""Heatmaps beside a report: what the model looked at, of the slides that stand first in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from wsizoo.errors import DataError
from wsizoo.extraction.folders import check_device
from wsizoo.formats.detect import contents_of
from wsizoo.model import SlideModel
from wsizoo.registry import Registry, default
from wsizoo.reports.files import cells_of, check_not_benchmark, read_run
from wsizoo.reports.slides import worst_first
from wsizoo.train.cohort import Cohort, read_cohort
from wsizoo.train.config import load_config
from wsizoo.train.run_folder import CONFIG
from wsizoo.train.samples import Sample, Samples
from wsizoo.viz.classes import classes_of_patches
from wsizoo.viz.predicted import Drawing, PatchAnswers, write_heatmap
from wsizoo.zoo import load

Tick = Callable[[str, int, int], None]


def _nothing(what: str, done: int, total: int) -> None:
    """Tell nothing."""


def heatmaps_of_run(
    run: Path | str,
    most: int,
    *,
    device: str = "cpu",
    tick: Tick = _nothing,
    registry: Registry | None = None,
) -> list[Path]:
    """Draw `RUN/heatmaps/SLIDE.png`, or those of each of several folds and seeds.

    Args:
        most: slides of a run, the first of its report's table.

    Returns:
        The files; `wsizoo.reports.run.write_report` links to them.

    Raises:
        DataError: an evaluation, which does not hold its model; as `draw_heatmaps`.
    """
    folder, registry = Path(run), registry or default()
    check_device(device)
    check_not_benchmark(folder)
    cohort, drawn = None, []
    for cell in cells_of(folder) or [folder]:
        if not (cell / CONFIG).is_file():
            raise DataError(
                f"'{cell}' holds no {CONFIG}, so no model to draw with. Of an evaluation draw at "
                f"once: wsizoo evaluate RUN -o {cell} --heatmaps {most}"
            )
        model = load(cell, registry=registry).to(device)
        if cohort is None:  # all runs of a folder are of one table
            data = load_config(cell / CONFIG).data
            task = read_run(cell).task
            cohort = read_cohort(data, task=task, classes=list(model.classes))
        drawn += draw_heatmaps(cell, cohort, model, most, tick)
    return drawn


def draw_heatmaps(
    folder: Path, cohort: Cohort, model: SlideModel, most: int, tick: Tick = _nothing
) -> list[Path]:
    """`heatmaps/SLIDE.png` of the first slides of the report's table: the wrong ones, as it sorts.

    Over the thumbnail that a feature file of wsizoo holds, else on white.

    Args:
        folder: with a run's predictions, of this model and cohort.

    Raises:
        DataError: a slide that the cohort has not, or that has no place of its patches; a model
            that says nothing of patches.
    """
    samples = Samples(cohort, range(len(cohort)))
    index = {sample.name: i for i, sample in enumerate(samples.samples)}
    names = [row["slide"] for _, _, row in worst_first({"": read_run(folder)})[:most]]
    drawn = []
    for done, name in enumerate(names, 1):
        if name not in index:
            raise DataError(
                f"slide '{name}' of '{folder}' is not in '{cohort.config.table}': its features "
                "are not known any more"
            )
        drawn.append(_draw(folder, cohort, samples, index[name], model))
        tick("heatmaps drawn", done, len(names))
    return drawn


def _draw(folder: Path, cohort: Cohort, samples: Samples, index: int, model: SlideModel) -> Path:
    sample, bag = samples.samples[index], samples[index]
    if bag.coords is None or bag.footprint is None:
        raise DataError(
            f"the features of slide '{sample.name}' do not say where its patches lie or how large "
            "they are: there is no heatmap of them"
        )
    model.eval()
    with torch.inference_mode():
        output = model(bag)
        answers = PatchAnswers.of(output, len(bag), classes_of_patches(model, output))
    file = write_heatmap(Drawing(folder, sample.name, own_file(cohort, sample)), bag, answers)
    if file is None:
        raise DataError(
            f"'{model.name}' gives neither scores nor classes of patches: there is no heatmap of it"
        )
    return file


def own_file(cohort: Cohort, sample: Sample) -> Path | None:
    """The feature file of wsizoo of a bag of one slide, for its thumbnail."""
    if len(sample.rows) > 1:
        return None
    file = cohort.records[sample.rows[0]].file
    format, _ = contents_of(file, cohort.config.format)
    return file if format.name == "wsizoo" else None
