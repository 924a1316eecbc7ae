"""extract: the slides of a cohort to feature files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from wsizoo.encoders.batches import Precision
from wsizoo.errors import DataError
from wsizoo.extraction.engines import in_this_process, in_workers
from wsizoo.extraction.folders import check_device, check_writable
from wsizoo.extraction.job import Extracted, Job
from wsizoo.extraction.on_ray import on_ray
from wsizoo.extraction.report import write_report
from wsizoo.extraction.shards import Shard
from wsizoo.interfaces import Encoder
from wsizoo.slides.extract import Progress, Request
from wsizoo.slides.manifest import SlideEntry, list_slides

if TYPE_CHECKING:
    import torch

Engine = Literal["local", "ray"]


def extract(
    slides: Sequence[Path | str] | Path | str,
    encoder: str | Encoder,
    out: Path | str,
    *,
    request: Request | None = None,
    device: torch.device | str | None = None,
    weights: Path | str | None = None,
    precision: Precision = "auto",
    progress: Progress | None = None,
    after_slide: Callable[[Extracted], None] | None = None,
    workers: int | None = None,
    threads: int | None = None,
    shard: Shard | str | None = None,
    engine: Engine = "local",
    ray_address: str | None = None,
    overwrite: bool = False,
) -> list[Extracted]:
    """Extract features of slides into `out/<slide>.h5`.

    A slide that fails is reported and the others go on. Files that are there, undamaged and made in
    the same way, are verified and kept; a slide that was interrupted goes on where it was.
    `out/extract.csv` tells what became of each, `out/extract.html` shows it.

    Args:
        slides: files, folders that hold slides, or manifests (.csv, see `list_slides`).
        encoder: a name, or an Encoder. weights: folder with the named encoder's weights.
        device: to which the encoder is moved; None: where it is, which is the CPU for a name.
        precision: "auto", "fp32", "bf16" or "fp16", see `wsizoo.encoders.batches`.
        progress: called as (slide_id, patches done, patches in all); not with Ray.
        after_slide: called with each result, in the order in which slides are finished.
        workers: processes of one torch thread each; None or 1 works in this process, and on a Ray
            cluster of this machine uses every core.
        threads: that decode patches, a process; None: 2, or 1 where there are several workers.
        shard: "i/n" or a Shard: only this part of the slides.
        engine: "ray" sends each slide to a Ray cluster. ray_address: see `on_ray`.
        overwrite: replace files that are damaged or were made in another way.

    Returns:
        One result a slide of this shard, by name.

    Raises:
        DataError: no slides, two of one name, `out` cannot be written, or workers cannot start.
        NotFoundError, WeightsError: the encoder. BackendError: no such device, or no Ray.
    """
    if engine not in get_args(Engine):
        raise DataError(f"engine is '{engine}', expected one of {get_args(Engine)}")
    entries = list_cohort(slides, shard)
    check_device(None if engine == "ray" else device)  # a cluster has other devices than this
    check_writable(Path(out))
    here = engine == "local" and min(workers or 1, len(entries)) <= 1
    job = Job(
        encoder=encoder,
        out=Path(out),
        request=request or Request(),
        overwrite=overwrite,
        device=device,
        weights=None if weights is None else Path(weights),
        precision=precision,
        threads=threads or (2 if here else 1),
    )
    if engine == "ray":
        return _collect(on_ray(job, entries, workers, ray_address), job.out, after_slide)
    if here:
        return _collect(in_this_process(job, entries, progress), job.out, after_slide)
    return _collect(in_workers(job, entries, progress, workers or 1), job.out, after_slide)


def _collect(
    finished: Generator[Extracted, None, None],
    out: Path,
    after_slide: Callable[[Extracted], None] | None,
) -> list[Extracted]:
    """All results by name, as far as it comes; they are reported in any case."""
    results: list[Extracted] = []
    try:
        with contextlib.closing(finished):
            for result in finished:
                results.append(result)
                if after_slide:
                    after_slide(result)
    finally:
        results.sort(key=lambda r: r.slide_id)
        write_report(out, results)
    return results


def list_cohort(
    slides: Sequence[Path | str] | Path | str, shard: Shard | str | None = None
) -> list[SlideEntry]:
    """The slides of a cohort, or of one shard of it, by name.

    Raises:
        DataError: none, not there, two of one name, a damaged manifest, or no such shard.
    """
    entries = sorted(list_slides(slides), key=lambda entry: entry.slide_id)
    if shard is None:
        return entries
    part = Shard.parse(shard) if isinstance(shard, str) else shard
    return part.of(entries)
