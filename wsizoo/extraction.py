"""Many slides to feature files: one bad slide never stops the others, a rerun goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsizoo.errors import DataError, WsizooError
from wsizoo.files import write_csv
from wsizoo.interfaces import Encoder
from wsizoo.registry import Registry
from wsizoo.slides.extract import Progress, Request, extract_slide
from wsizoo.zoo import load_encoder

SLIDE_SUFFIXES = frozenset(
    ".svs .tif .tiff .ndpi .vms .vmu .scn .mrxs .svslide .bif .dcm .czi".split()
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
    registry: Registry | None = None,
) -> list[Extracted]:
    """Extract features of slides into `out/<slide>.h5`, one after the other.

    A slide that fails is reported and the others go on. Files that are there, complete and made in
    the same way, are verified and kept. `out/extract.csv` tells what became of each.

    Args:
        slides: files, or folders that hold slides. encoder: a name, or an Encoder.
        progress: called as (slide_id, patches done, patches in all).

    Raises:
        DataError: no slides, two of one name, or `out` cannot be written.
        NotFoundError: no such encoder.
    """
    files = list_files([slides] if isinstance(slides, (str, Path)) else slides, SLIDE_SUFFIXES)
    check_one_name_each(files)
    out = Path(out)
    check_writable(out)
    network = load_encoder(encoder, registry) if isinstance(encoder, str) else encoder
    results = []
    for slide in files:
        file = out / f"{slide.stem}.h5"
        start = time.monotonic()
        try:
            n, present = extract_slide(slide, network, file, request or Request(), progress)
            result = Extracted(slide.stem, slide, file, "present" if present else "done", n)
        except WsizooError as error:
            result = Extracted(slide.stem, slide, file, "failed", reason=str(error))
        seconds = round(time.monotonic() - start, 2)
        results.append(Extracted(**{**vars(result), "seconds": seconds}))
        if after_slide:
            after_slide(results[-1])
    write_csv(out / REPORT, [vars(r) for r in results], list(Extracted.__dataclass_fields__))
    return results


def list_files(inputs: Iterable[Path | str], suffixes: Iterable[str]) -> list[Path]:
    """Files as given, and the files with these suffixes inside given folders, sorted.

    Raises:
        DataError: something is not there, or a folder holds none.
    """
    found: list[Path] = []
    for item in map(Path, inputs):
        if item.is_dir():
            inside = sorted(f for f in item.iterdir() if f.is_file() and f.suffix.lower() in suffixes)
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
                f"'{first[file.stem]}' and '{file}' are two slides of one name ({file.stem}): their "
                "outputs would overwrite each other. Rename one"
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
