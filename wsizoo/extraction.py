"""Many slides to feature files: one bad slide never stops the others, a rerun goes on."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from wsizoo.errors import DataError, WsizooError
from wsizoo.files import write_csv
from wsizoo.interfaces import Encoder
from wsizoo.slides.extract import Progress, Request, extract_slide
from wsizoo.zoo import load_encoder

SLIDE_SUFFIXES = frozenset(
    [
        ".svs",
        ".tif",
        ".tiff",
        ".ndpi",
        ".vms",
        ".vmu",
        ".scn",
        ".mrxs",
        ".svslide",
        ".bif",
        ".dcm",
        ".czi",
    ]
)
REPORT = "extract.csv"


@dataclass(frozen=True)
class Extracted:
    """What became of one slide.

    Args:
        state: "done", "present" (an equal file was there) or "failed". reason: why it failed.
    """

    slide_id: str
    slide: Path
    file: Path
    state: str
    patches: int = 0
    seconds: float = 0.0
    reason: str = ""


def extract(
    slides: Sequence[Path | str] | Path | str,
    encoder: str | Encoder,
    out: Path | str,
    *,
    request: Request | None = None,
    progress: Progress | None = None,
    after_slide: Callable[[Extracted], None] | None = None,
    workers: int = 1,
) -> list[Extracted]:
    """Extract features of slides into `out/<slide>.h5`.

    A slide that fails is reported and the others go on. Files that are there, complete and made in
    the same way, are verified and kept. `out/extract.csv` tells what became of each.

    Args:
        slides: files, or folders that hold slides. encoder: a name, or an Encoder.
        progress: called as (slide_id, patches done, patches in all); with one worker only.
        workers: processes of one torch thread each; 1 works in this process.

    Raises:
        DataError: no slides, two of one name, or `out` cannot be written.
        NotFoundError: no such encoder.
    """
    files = list_files([slides] if isinstance(slides, (str, Path)) else slides, SLIDE_SUFFIXES)
    check_one_name_each(files)
    out = Path(out)
    check_writable(out)
    network = load_encoder(encoder) if isinstance(encoder, str) else encoder
    job = _Job(network, out, request or Request())
    results = []
    for result in _run(job, files, workers, progress):
        results.append(result)
        if after_slide:
            after_slide(result)
    results.sort(key=lambda r: r.slide_id)
    _write_report(out / REPORT, results)
    return results


@dataclass(frozen=True)
class _Job:
    """What a worker process needs for any slide."""

    encoder: Encoder
    out: Path
    request: Request

    def run(self, slide: Path, progress: Progress | None = None) -> Extracted:
        file = self.out / f"{slide.stem}.h5"
        start = time.monotonic()
        try:
            n, present = extract_slide(slide, self.encoder, file, self.request, progress)
            state, reason = "present" if present else "done", ""
        except WsizooError as error:
            n, state, reason = 0, "failed", str(error)
        seconds = round(time.monotonic() - start, 2)
        return Extracted(slide.stem, slide, file, state, n, seconds, reason)


def _run(
    job: _Job, files: Sequence[Path], workers: int, progress: Progress | None
) -> Iterator[Extracted]:
    """Each slide as soon as it is finished, in any order."""
    if workers <= 1 or len(files) == 1:
        for slide in files:
            yield job.run(slide, progress)
        return
    import torch

    pool = ProcessPoolExecutor(
        min(workers, len(files)),
        mp_context=get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    )
    with pool:
        futures = [pool.submit(job.run, slide) for slide in files]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_report(path: Path, results: Sequence[Extracted]) -> None:
    """What became of each slide; rows of earlier calls into this folder are kept."""
    columns = [field.name for field in fields(Extracted)]
    rows: dict[str, Mapping[str, Any]] = {}
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            rows = {
                row["slide_id"]: row for row in csv.DictReader(file) if set(row) == set(columns)
            }
    rows |= {result.slide_id: vars(result) for result in results}
    write_csv(path, [rows[name] for name in sorted(rows)], columns)


def list_files(inputs: Iterable[Path | str], suffixes: Iterable[str]) -> list[Path]:
    """Files as given, and the files with these suffixes inside given folders, sorted.

    Raises:
        DataError: something is not there, or a folder holds none.
    """
    found: list[Path] = []
    for item in map(Path, inputs):
        if item.is_dir():
            inside = sorted(
                f for f in item.iterdir() if f.is_file() and f.suffix.lower() in suffixes
            )
            if not inside:
                raise DataError(f"'{item}' holds no file ending in {', '.join(sorted(suffixes))}")
            found += inside
        elif item.exists():
            found.append(item)
        else:
            raise DataError(f"No file or folder at '{item}'")
    if not found:
        raise DataError("No slides given")
    return found


def check_one_name_each(files: Sequence[Path]) -> None:
    """Raise DataError when two slides would write one file."""
    first: dict[str, Path] = {}
    for file in files:
        if file.stem in first:
            raise DataError(
                f"'{first[file.stem]}' and '{file}' are two slides of one name ({file.stem}): "
                "their outputs would overwrite each other. Rename one"
            )
        first[file.stem] = file


def check_writable(folder: Path) -> None:
    """Make a folder; raise DataError if that or writing into it is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"The output folder '{folder}' cannot be made: {error}") from error
    if not os.access(folder, os.W_OK):
        raise DataError(f"The output folder '{folder}' is read-only; choose another with -o")
