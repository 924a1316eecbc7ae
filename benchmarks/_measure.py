"""Timing two things in turn, so that a drifting machine slows both; memory of other processes."""

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


def interleaved(
    *things: Callable[[], object],
    rounds: int = 7,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Seconds of each thing in each round, A B A B ..., after a warm-up.

    Args:
        clock: `time.process_time` counts the processor alone, which a busy machine changes less.
    """
    seconds: list[list[float]] = [[] for _ in things]
    for index in range(warmup + rounds):
        for place, thing in enumerate(things):
            start = clock()
            thing()
            if index >= warmup:
                seconds[place].append(clock() - start)
    return seconds


def report(
    name: str, mine: list[float], other: list[float], of: str, limit: float | None = None
) -> None:
    """Print the median of the ratios of paired rounds, with the spread."""
    goal = "" if limit is None else f", goal at most {limit:g}"
    _print_ratio(name, mine, other, [a / b for a, b in zip(mine, other, strict=True)], of, goal)


def report_speed(
    name: str, mine: list[float], other: list[float], of: str, least: float | None = None
) -> None:
    """As `report`, how many times as fast."""
    goal = "" if least is None else f", goal at least {least:g}"
    ratios = [b / a for a, b in zip(mine, other, strict=True)]
    _print_ratio(name, mine, other, ratios, f"as fast as {of}", goal)


def _print_ratio(
    name: str, mine: list[float], other: list[float], ratios: list[float], of: str, goal: str
) -> None:
    first, second = statistics.median(mine) * 1e3, statistics.median(other) * 1e3
    print(
        f"  {name}: {statistics.median(ratios):.3f} x {of} ({min(ratios):.3f} to {max(ratios):.3f}"
        f"{goal}); {first:.1f} ms against {second:.1f} ms"
    )


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds; MiB of its largest process, and of all of them at one time."""

    seconds: float
    largest: float
    together: float


def cost_of(command: Sequence[str], interval: float = 0.1) -> Cost:
    """Run a command; its memory is looked at from outside, in /proc (so 0 where there is none).

    Raises:
        SystemExit: it did not end with 0; with what it said.
    """
    largest, together, start = 0.0, 0.0, time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        with subprocess.Popen(command, stdout=said, stderr=said) as process:
            while process.poll() is None:
                sizes = [_peak_and_present(pid) for pid in _family(process.pid)]
                largest = max([largest, *(peak for peak, _ in sizes)])
                together = max(together, sum(present for _, present in sizes))
                time.sleep(interval)
        seconds = time.perf_counter() - start
        said.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} gave {process.returncode}:\n{said.read()}")
    return Cost(seconds, largest, together)


def _family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = entry.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(entry.parent.name)] = int(after_name[1])
    family = [pid]
    for member in family:  # grows while it is read
        family += [child for child, parent in parents.items() if parent == member]
    return family


def _peak_and_present(pid: int) -> tuple[float, float]:
    """MiB of resident memory: the most that one process ever had, and what it has."""
    try:
        told = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0, 0.0
    lines = dict(line.split(":", 1) for line in told.splitlines())
    peak, present = (int(lines.get(key, "0 kB").split()[0]) for key in ("VmHWM", "VmRSS"))
    return peak / 1024, present / 1024


def load_now() -> str:
    """How busy the machine was over the last minute, for the reader of the figures."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"
