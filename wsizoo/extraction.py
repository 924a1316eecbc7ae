"""Many slides to feature files: one bad slide never stops the others, a rerun goes on."""

from __future__ import annotations

import contextlib
import csv
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsizoo.encoders.loading import load_encoder
from wsizoo.errors import BackendError, DataError, WsizooError
from wsizoo.files import write_csv
from wsizoo.interfaces import Encoder
from wsizoo.slides.extract import Progress, Request, extract_slide

if TYPE_CHECKING:
    import torch

SLIDE_SUFFIXES = frozenset(
    {".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu"}
    | {".scn", ".mrxs", ".svslide", ".bif", ".dcm", ".czi"}
)
REPORT = "extract.csv"
TEMPORARY = re.compile(r"^\..+\.tmp-(\d+)$")
STALE_AFTER = 3600.0  # s; for files of another computer, whose processes are not seen

log = logging.getLogger(__name__)


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
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    after_slide: Callable[[Extracted], None] | None = None,
    workers: int = 1,
    overwrite: bool = False,
) -> list[Extracted]:
    """Extract features of slides into `out/<slide>.h5`.

    A slide that fails is reported and the others go on. Files that are there, complete and made in
    the same way, are verified and kept. `out/extract.csv` tells what became of each.

    Args:
        slides: files, or folders that hold slides. encoder: a name, or an Encoder.
        device: to which the encoder is moved; None: where it is, which is the CPU for a name.
        progress: called as (slide_id, patches done, patches in all); with one worker only.
        after_slide: called with each result, in the order in which slides are finished.
        workers: processes of one torch thread each; 1 works in this process.
        overwrite: replace files that are damaged or were made in another way.

    Returns:
        One result a slide, by name.

    Raises:
        DataError: no slides, two of one name, `out` cannot be written, or a worker was killed.
        NotFoundError: no such encoder. BackendError: no such device.
    """
    files = list_files([slides] if isinstance(slides, (str, Path)) else slides, SLIDE_SUFFIXES)
    check_one_name_each(files)
    out = Path(out)
    if device is not None:
        check_device(device)
    check_writable(out)
    network = load_encoder(encoder) if isinstance(encoder, str) else encoder.eval()
    job = _Job(network, out, request or Request(), overwrite, device)
    results: list[Extracted] = []
    try:
        with contextlib.closing(_run(job, files, workers, progress)) as finished:
            for result in finished:
                results.append(result)
                if after_slide:
                    after_slide(result)
    finally:
        results.sort(key=lambda r: r.slide_id)
        _write_report(out / REPORT, results)
    return results


@dataclass(frozen=True)
class _Job:
    """What a worker process needs for any slide."""

    encoder: Encoder
    out: Path
    request: Request
    overwrite: bool
    device: torch.device | str | None = None

    def begin(self) -> None:
        """Move the encoder to its device: in the process that uses it, as memory is not sent."""
        if self.device is not None:
            self.encoder.to(self.device)

    def run(self, slide: Path, progress: Progress | None = None) -> Extracted:
        file = self.out / f"{slide.stem}.h5"
        start = time.monotonic()
        n, state, reason = 0, "failed", ""
        try:
            n, present = extract_slide(
                slide, self.encoder, file, self.request, progress, self.overwrite, self.device
            )
            state = "present" if present else "done"
        except Exception as error:
            reason = reason_of(error)
        seconds = round(time.monotonic() - start, 2)
        return Extracted(slide.stem, slide, file, state, n, seconds, reason)


def reason_of(error: Exception) -> str:
    """Why one slide failed; the trace of an error that is not ours goes to the log."""
    if isinstance(error, WsizooError):
        return str(error)
    log.debug("unexpected error", exc_info=error)
    return f"{type(error).__name__}: {error}"


def _run(
    job: _Job, files: Sequence[Path], workers: int, progress: Progress | None
) -> Generator[Extracted, None, None]:
    """Each slide as soon as it is finished, in any order."""
    if workers <= 1 or len(files) == 1:
        job.begin()
        for slide in files:
            yield job.run(slide, progress)
        return
    _check_sendable(job)
    others = set(active_children())
    context = get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(files)), context, _begin_worker, (job,)) as pool:
        try:
            with _interrupts_held():
                futures = [pool.submit(_run_in_worker, slide) for slide in files]
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "A worker process died: killed, for want of memory perhaps; or, in a script, the "
                "call does not stand under `if __name__ == '__main__':`. Finished slides are kept: "
                "run it again, with fewer workers (--workers 1) or a smaller --batch-size"
            ) from error
        except BaseException:  # an interruption: nobody waits for the slides that are under way
            for worker in set(active_children()) - others:
                worker.terminate()
            pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def _interrupts_held() -> Generator[None, None, None]:
    """Ctrl-C waits; processes that are started meanwhile never see it: the parent decides."""
    if os.name != "posix":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _check_sendable(job: _Job) -> None:
    try:
        ForkingPickler.dumps(job)
    except Exception as error:
        raise DataError(
            f"encoder '{job.encoder.name}' cannot be sent to worker processes ({error}): define it "
            "in a module, or use one worker"
        ) from error


_job: _Job | None = None  # of this worker process: the encoder is sent once, not with every slide


def _begin_worker(job: _Job) -> None:
    """One torch thread; ends when the parent says so, or is gone."""
    import torch

    global _job  # noqa: PLW0603
    _job = job
    torch.set_num_threads(1)
    job.begin()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it could not be held back
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_in_worker(slide: Path) -> Extracted:
    assert _job is not None
    return _job.run(slide)


def _write_report(path: Path, results: Sequence[Extracted]) -> None:
    """What became of each slide; rows of earlier calls into this folder are kept."""
    columns = [field.name for field in fields(Extracted)]
    rows: dict[str, Mapping[str, Any]] = {}
    if path.exists():
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            rows = {
                row["slide_id"]: row for row in csv.DictReader(file) if set(row) == set(columns)
            }
    rows |= {result.slide_id: vars(result) for result in results}
    write_csv(path, [rows[name] for name in sorted(rows)], columns)


def list_files(inputs: Iterable[Path | str], suffixes: Iterable[str]) -> list[Path]:
    """Files as given, and the files with these suffixes inside given folders, sorted; each once.

    Raises:
        DataError: something is not there, or a folder holds none.
    """
    found: dict[Path, Path] = {}
    for item in map(Path, inputs):
        if not item.exists():
            raise DataError(f"No file or folder at '{item}'")
        for file in _inside(item, frozenset(suffixes)) if item.is_dir() else [item]:
            found.setdefault(file.resolve(), file)
    if not found:
        raise DataError("No slides given")
    return list(found.values())


def _inside(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    def wanted(file: Path) -> bool:
        return file.suffix.lower() in suffixes and file.name[0] != "." and file.is_file()

    files = sorted(filter(wanted, folder.iterdir()))
    if not files:
        deeper = next(filter(wanted, folder.rglob("*")), None)
        hint = f". Folders in it are not searched; give them: '{deeper.parent}'" if deeper else ""
        kinds = ", ".join(sorted(suffixes))
        raise DataError(f"'{folder}' is a folder that holds no file ending in {kinds}{hint}")
    return files


def check_one_name_each(files: Sequence[Path]) -> None:
    """Raise DataError when two slides would write one file."""
    first: dict[str, Path] = {}
    for file in files:
        if file.stem in first:
            raise DataError(
                f"'{first[file.stem]}' and '{file}' have one name ({file.stem}), so the outputs of "
                "one would replace those of the other. Give only one of them, or rename one"
            )
        first[file.stem] = file


def check_device(device: torch.device | str) -> None:
    """Raise BackendError unless tensors can be made on it."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise BackendError(
            f"device '{device}' cannot be used here: {first} See: wsizoo doctor"
        ) from error


def check_writable(folder: Path) -> None:
    """Make a folder, and clear it of what killed processes left.

    Raises:
        DataError: it cannot be made, or not written into.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"The output folder '{folder}' cannot be made: {error}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"The output folder '{folder}' is read-only; choose another with -o")
    remove_stale(folder)


def remove_stale(folder: Path) -> list[Path]:
    """Remove temporary files of processes that are gone, an hour after they were last written.

    Returns:
        What was removed.
    """
    removed = []
    for file in folder.iterdir():
        match = TEMPORARY.match(file.name)
        if not match or _is_alive(int(match[1])):
            continue
        with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):
            if time.time() - file.stat().st_mtime > STALE_AFTER:
                file.unlink()
                removed.append(file)
    return removed


def _is_alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # not to be asked there without ending the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
