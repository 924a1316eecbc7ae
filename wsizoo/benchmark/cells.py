"""The cells of a benchmark: each a training run in a folder named by its content, in a process.

Every cell has a process of its own with one torch thread, so that results, memory and time do not
depend on how many run at once, and one that dies takes nobody with it.
"""

from __future__ import annotations

import json
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_all_start_methods, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from wsizoo.errors import DataError, reason_of
from wsizoo.extraction.engines import end_with_parent, interrupts_held
from wsizoo.extraction.on_ray import RETRIES, cluster, import_ray
from wsizoo.files import write_json
from wsizoo.train.config import RunConfig

DONE = "cell.json"  # written last
KEY_SHOWN = 12  # hex digits of a key in the name of its folder

RunOne = Callable[[RunConfig, Path], Any]
"""Trains into a folder, which is a run directory then."""


@dataclass(frozen=True)
class Cell:
    """One run: a model on a feature set, a fold (from 0) and a seed; key: digest of its content."""

    model: str
    features: str
    fold: int
    seed: int
    config: RunConfig
    key: str

    @property
    def label(self) -> str:
        return f"{self.model}  {self.features}  fold {self.fold}  seed {self.seed}"

    @property
    def folder(self) -> str:
        """Readable, and unique by the key."""
        name = f"{self.model}-{self.features}-fold{self.fold}-seed{self.seed}"
        return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}-{self.key[:KEY_SHOWN]}"


@dataclass(frozen=True)
class Outcome:
    """What became of a cell; reason: why it failed."""

    cell: Cell
    state: Literal["done", "kept", "failed"]
    reason: str = ""


@dataclass(frozen=True)
class Work:
    """Where cells lie and how one is run; goes to other processes."""

    folder: Path
    run_one: RunOne

    def path(self, cell: Cell) -> Path:
        return self.folder / cell.folder

    def is_done(self, cell: Cell) -> bool:
        """It was run to its end with this very content."""
        try:
            told = json.loads((self.path(cell) / DONE).read_text(encoding="utf-8"))
            return bool(told["key"] == cell.key)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def run(self, cell: Cell) -> Outcome:
        """Train one cell in this process; whatever fails is its reason."""
        import torch

        torch.set_num_threads(1)
        try:
            self.run_one(cell.config, self.path(cell))
            write_json(self.path(cell) / DONE, {"key": cell.key})
        except Exception as error:
            return Outcome(cell, "failed", reason_of(error))
        return Outcome(cell, "done")


def in_processes(work: Work, cells: Sequence[Cell], jobs: int) -> Generator[Outcome, None, None]:
    """Each cell as soon as it is finished, `jobs` at a time; closing it ends those under way."""
    waiting = deque(cells)
    running: dict[Any, tuple[Cell, BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.popleft()
                pipe, process = _start(work, cell)
                running[pipe] = cell, process
            for ready in connection.wait(list(running)):
                yield _ended(ready, *running.pop(ready))
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()


def _start(work: Work, cell: Cell) -> tuple[Any, BaseProcess]:
    context = _context()
    pipe, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(work, cell, theirs), daemon=True)
    with interrupts_held():
        process.start()
    theirs.close()
    return pipe, process


def _context() -> Any:
    """Clean processes; where the system can fork, from one that has imported what runs need."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["wsizoo.train.run"])
    return context


def _ended(pipe: Any, cell: Cell, process: BaseProcess) -> Outcome:
    try:
        outcome: Outcome = pipe.recv()
    except (EOFError, OSError):
        process.join()
        reason = (
            f"its process died (exit code {process.exitcode}), for want of memory perhaps: run it "
            "again, with fewer at once (--jobs 1)"
        )
        outcome = Outcome(cell, "failed", reason)
    process.join()
    pipe.close()
    return outcome


def _serve(work: Work, cell: Cell, pipe: Any) -> None:
    """The life of a process: one cell; it ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    pipe.send(work.run(cell))


def on_ray(work: Work, cells: Sequence[Cell], jobs: int | None) -> Generator[Outcome, None, None]:
    """The same on a Ray cluster (RAY_ADDRESS, or one of this machine), one task a cell.

    Features, table and the benchmark's folder must lie where every node sees them.

    Args:
        jobs: of a cluster that is started here; None: all its cores.

    Raises:
        BackendError: Ray is not installed, or no cluster answers.
    """
    import_ray()
    devices = {cell.config.train.device for cell in cells}
    gpu = next((name for name in sorted(devices) if name.startswith("cuda")), None)
    with cluster(jobs, gpu=gpu) as ray:
        task = ray.remote(num_cpus=1, num_gpus=int(bool(gpu)), max_retries=RETRIES, max_calls=1)(
            _run
        )
        running = {task.remote(work, cell): cell for cell in cells}
        while running:
            finished, _ = ray.wait(list(running))
            for reference in finished:
                yield _fetched(ray, reference, running.pop(reference))


def _run(work: Work, cell: Cell) -> Outcome:
    return work.run(cell)


def _fetched(ray: Any, reference: Any, cell: Cell) -> Outcome:
    try:
        outcome: Outcome = ray.get(reference)
        return outcome
    except ray.exceptions.RayTaskError as error:
        return Outcome(cell, "failed", reason_of(error))
    except ray.exceptions.RayError as error:
        reason = (
            f"its Ray task was lost {RETRIES + 1} times ({type(error).__name__}): its process or "
            "node died, for want of memory perhaps. See: ray status; then run the same command"
        )
        return Outcome(cell, "failed", reason)


def check_sendable(work: Work) -> None:
    """Raise DataError where other processes could not be told what to run."""
    from multiprocessing.reduction import ForkingPickler

    try:
        ForkingPickler.dumps(work)
    except Exception as error:
        raise DataError(
            f"run_one cannot be sent to other processes ({error}): define it in a module"
        ) from error
