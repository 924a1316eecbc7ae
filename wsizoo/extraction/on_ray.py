"""Slides on a Ray cluster: one task a slide, retried where its machine or process fails.

Slides and the output folder must lie where every node sees them under the same paths. The features
are files, so a driver that died is simply started again: what is finished is verified and kept.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any

from wsizoo.errors import BackendError, reason_of
from wsizoo.extraction.engines import check_sendable
from wsizoo.extraction.job import Extracted, Job, Station
from wsizoo.slides.manifest import SlideEntry

RETRIES = 3  # of a task whose process or node died
AHEAD = 4  # tasks waiting for each that runs, so that no node idles and the driver stays small


def on_ray(
    job: Job, entries: Sequence[SlideEntry], workers: int | None, address: str | None = None
) -> Generator[Extracted, None, None]:
    """Each slide as soon as it is finished.

    Args:
        workers: of a cluster that is started here on this machine; None: all its cores.
        address: of a running cluster ("auto", "host:6379", "ray://..."); None: RAY_ADDRESS, else
            a cluster of this machine alone, which ends with the call.

    Raises:
        BackendError: Ray is not installed, or no cluster answers. DataError: the encoder cannot be
            sent.
    """
    import_ray()
    check_sendable(job)
    job, entries = job.absolute(), [replace(e, path=e.path.absolute()) for e in entries]
    with cluster(workers, address, str(job.device) if job.needs_gpu else None) as ray:
        yield from _results(ray, job, list(entries))


@contextlib.contextmanager
def cluster(
    workers: int | None, address: str | None = None, gpu: str | None = None
) -> Iterator[Any]:
    """The module `ray`, connected; a cluster that is started here ends with the block.

    Args:
        workers, address: see `on_ray`. gpu: the device that is asked for, where it is a GPU.

    Raises:
        BackendError: Ray is not installed, no cluster answers, or this machine's has no GPU.
    """
    ray = import_ray()
    address = address or os.environ.get("RAY_ADDRESS")
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, address, workers)
    try:
        if gpu and not address and not ray.cluster_resources().get("GPU"):
            raise BackendError(
                f"device '{gpu}' needs a GPU, and this machine's Ray cluster has none: name "
                "one that has, RAY_ADDRESS=auto, or use --device cpu"
            )
        yield ray
    finally:
        if ours:
            ray.shutdown()


def import_ray() -> Any:
    """The module `ray`. Raises BackendError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise BackendError(
            'The engine "ray" needs Ray, which is not installed: pip install "wsizoo[ray]"; or '
            "work on this machine, without --engine ray"
        ) from error
    return ray


def _connect(ray: Any, address: str | None, workers: int | None) -> None:
    local = {} if address else {"num_cpus": workers, "include_dashboard": False}
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BackendError(
            f"No Ray cluster at '{address or 'this machine'}': {error}. See: ray status"
        ) from error


def _results(ray: Any, job: Job, waiting: list[SlideEntry]) -> Generator[Extracted, None, None]:
    gpus = int(job.needs_gpu)
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_run)
    sent = ray.put(job)
    most = AHEAD * max(1, int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1)))
    running: dict[Any, SlideEntry] = {}
    waiting = waiting[::-1]
    while waiting or running:
        while waiting and len(running) < most:
            entry = waiting.pop()
            running[task.remote(sent, entry)] = entry
        finished, _ = ray.wait(list(running))
        for reference in finished:
            entry = running.pop(reference)
            yield _result(ray, reference, job, entry)


def _result(ray: Any, reference: Any, job: Job, entry: SlideEntry) -> Extracted:
    try:
        result: Extracted = ray.get(reference)
        return result
    except ray.exceptions.RayTaskError as error:
        reason = reason_of(error.cause if isinstance(error.cause, Exception) else error)
    except ray.exceptions.RayError as error:
        kind = type(error).__name__
        reason = (
            f"its Ray task was lost {RETRIES + 1} times ({kind}): its process or node died, for "
            "want of memory perhaps. See: ray status; then run the same command again"
        )
    return job.failed(entry, reason)


def _run(job: Job, entry: SlideEntry) -> Extracted:
    return _station(job).run(entry)


_stations: dict[str, Station] = {}


def _station(job: Job) -> Station:
    """The encoder is loaded once a process."""
    import torch

    if job.token not in _stations:
        torch.set_num_threads(1)
        _stations.clear()
        _stations[job.token] = job.begin()
    return _stations[job.token]
