"""Timing two things in turn, so that a drifting machine slows both."""

import statistics
import time
from collections.abc import Callable


def interleaved(
    *things: Callable[[], object], rounds: int = 7, warmup: int = 1
) -> list[list[float]]:
    """Seconds of each thing in each round, A B A B ..., after a warm-up."""
    seconds: list[list[float]] = [[] for _ in things]
    for index in range(warmup + rounds):
        for place, thing in enumerate(things):
            start = time.perf_counter()
            thing()
            if index >= warmup:
                seconds[place].append(time.perf_counter() - start)
    return seconds


def report(
    name: str, mine: list[float], other: list[float], of: str, limit: float | None = None
) -> None:
    """Print the median of the ratios of paired rounds, with the spread."""
    ratios = sorted(a / b for a, b in zip(mine, other, strict=True))
    goal = "" if limit is None else f", goal at most {limit:g}"
    first, second = statistics.median(mine) * 1e3, statistics.median(other) * 1e3
    print(
        f"  {name}: {statistics.median(ratios):.3f} x {of} ({ratios[0]:.3f} to {ratios[-1]:.3f}"
        f"{goal}); {first:.1f} ms against {second:.1f} ms"
    )
