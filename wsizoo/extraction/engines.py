"""Where slides are encoded: in this process, or in worker processes of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from multiprocessing import connection, get_context, parent_process
from multiprocessing.reduction import ForkingPickler
from typing import Any

from wsizoo.errors import DataError, WsizooError
from wsizoo.extraction.job import Extracted, Job
from wsizoo.interfaces import Encoder
from wsizoo.slides.extract import Progress
from wsizoo.slides.manifest import SlideEntry

TRIES = 2  # of a slide whose worker was killed
TOLD_EVERY = 0.2  # s between two messages of progress


def in_this_process(
    job: Job, entries: Sequence[SlideEntry], progress: Progress | None
) -> Generator[Extracted, None, None]:
    """One slide after the other."""
    station = job.begin()
    for entry in entries:
        yield station.run(entry, progress)


def in_workers(
    job: Job, entries: Sequence[SlideEntry], progress: Progress | None, workers: int
) -> Generator[Extracted, None, None]:
    """Each slide as soon as a worker has finished it; the largest files are begun first.

    A worker that is killed costs nothing but time: its slide is tried once more in a new one.

    Raises:
        DataError: workers cannot start.
    """
    check_sendable(job)
    waiting = deque((entry, 1) for entry in sorted(entries, key=_bytes, reverse=True))
    with contextlib.closing(_Pool(job)) as pool:
        while waiting or pool.busy:
            while waiting and len(pool.busy) < workers:
                pool.give(*waiting.popleft())
            for worker, kind, told in pool.messages():
                if kind == "progress" and progress:
                    progress(*told)
                elif kind == "result":
                    yield told
                elif kind == "died" and worker.tries < TRIES:
                    waiting.appendleft((worker.entry, worker.tries + 1))
                elif kind == "died":
                    yield _killed(job, worker.entry, told)


def check_sendable(job: Job) -> None:
    """Raise now, once, what every other process would stumble over.

    Raises:
        DataError: it cannot be sent. And as `Job.load`.
    """
    job.load()
    try:
        ForkingPickler.dumps(job)
    except Exception as error:
        name = job.encoder.name if isinstance(job.encoder, Encoder) else job.encoder
        raise DataError(
            f"encoder '{name}' cannot be sent to worker processes ({error}): define it in a "
            "module, or use one worker"
        ) from error


class _Worker:
    """One process, and the slide it is at work on."""

    def __init__(self, job: Job) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(job, theirs), daemon=True)
        with interrupts_held():
            self.process.start()
        theirs.close()
        self.entry = SlideEntry(job.out)
        self.tries = 0


class _Pool:
    """Workers, made when they are needed; those that have finished a slide wait for the next."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.busy: list[_Worker] = []
        self.works = False  # some worker has begun well
        self._idle: list[_Worker] = []

    def give(self, entry: SlideEntry, tries: int) -> None:
        """A slide to a worker."""
        worker = self._idle.pop() if self._idle else _Worker(self.job)
        worker.entry, worker.tries = entry, tries
        self.busy.append(worker)
        with contextlib.suppress(OSError):  # it died meanwhile: `messages` tells
            worker.pipe.send(entry)

    def messages(self) -> Iterator[tuple[_Worker, str, Any]]:
        """What busy workers have to say, when one has: progress, result, died (exit code)."""
        connection.wait([worker.pipe for worker in self.busy])
        heard = [(worker, *self._hear(worker)) for worker in self.busy]
        self.works = self.works or any(kind == "ready" for _, kind, _ in heard)
        for worker, kind, told in heard:
            if kind in ("result", "died"):
                self.busy.remove(worker)
            if kind == "result":
                self._idle.append(worker)
            if kind == "broken" or (kind == "died" and not self.works):
                raise DataError(told if kind == "broken" else _NO_START.format(told))
            yield worker, kind, told

    def _hear(self, worker: _Worker) -> tuple[str, Any]:
        try:
            kind, told = worker.pipe.recv() if worker.pipe.poll() else ("nothing", None)
        except (EOFError, OSError):
            return "died", self._end(worker)
        return kind, told

    def _end(self, worker: _Worker) -> int | None:
        worker.process.join()
        worker.pipe.close()
        return worker.process.exitcode

    def close(self) -> None:
        """End all workers: nobody waits for the slides that are under way."""
        for worker in [*self.busy, *self._idle]:
            worker.process.terminate()
        for worker in [*self.busy, *self._idle]:
            worker.process.join()


_NO_START = (
    "A worker process died when it began (exit code {}): killed, for want of memory perhaps; or, "
    "in a script, the call does not stand under `if __name__ == '__main__':`. Finished slides are "
    "kept: run it again, with fewer workers (--workers 1)"
)


def _killed(job: Job, entry: SlideEntry, exit_code: int | None) -> Extracted:
    reason = (
        f"its worker process was killed {TRIES} times (exit code {exit_code}), for want of memory "
        "perhaps: run it again, with fewer workers (--workers 1) or a smaller --batch-size"
    )
    return job.failed(entry, reason)


def _bytes(entry: SlideEntry) -> int:
    try:
        return entry.path.stat().st_size
    except OSError:
        return 0


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C waits; processes that are started meanwhile never see it: the parent decides."""
    if os.name != "posix":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(job: Job, pipe: connection.Connection[Any, Any]) -> None:
    """The life of a worker: one torch thread; it ends when the parent says so, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it could not be held back
    threading.Thread(target=end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    try:
        station = job.begin()
    except WsizooError as error:
        pipe.send(("broken", str(error)))
        return
    pipe.send(("ready", None))
    while True:
        entry = pipe.recv()
        result = station.run(entry, _Sender(pipe))
        pipe.send(("result", result))


class _Sender:
    """Progress to the parent, now and then."""

    def __init__(self, pipe: connection.Connection[Any, Any]) -> None:
        self.pipe, self.last = pipe, 0.0

    def __call__(self, slide: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - self.last >= TOLD_EVERY:
            self.last = now
            self.pipe.send(("progress", (slide, done, total)))


def end_with_parent() -> None:
    """Wait for the process that started this one, and end with it; run it in a daemon thread."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
