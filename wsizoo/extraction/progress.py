"""How far a cohort is, how fast, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable

from wsizoo.extraction.job import Extracted


class Pace:
    """Counts slides and patches; several slides may be under way at once.

    Args:
        slides: in all. clock: seconds, for tests.
    """

    def __init__(self, slides: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.slides, self.finished, self.patches = slides, 0, 0
        self._clock, self._start = clock, clock()
        self._under_way: dict[str, tuple[int, int]] = {}
        self._made = 0  # slides that took work, other than those that were there

    def update(self, slide_id: str, done: int, total: int) -> None:
        """Patches of a slide that is under way."""
        self._under_way[slide_id] = (done, total)

    def finish(self, result: Extracted) -> None:
        """A slide that is finished, in whichever way."""
        self._under_way.pop(result.slide_id, None)
        self.finished += 1
        if result.state != "present":
            self._made += 1
            self.patches += result.patches

    @property
    def share(self) -> float:
        """Of the work, 0 to 1; slides count alike."""
        return (self.finished + self._fractions()) / self.slides if self.slides else 1.0

    @property
    def patches_per_second(self) -> float:
        """Encoded by this call, over all slides."""
        done = self.patches + sum(done for done, _ in self._under_way.values())
        return done / max(self._clock() - self._start, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """None as long as there is nothing to judge by."""
        made = self._made + self._fractions()
        if not made:
            return None
        left = self.slides - self.finished - self._fractions()
        return left * (self._clock() - self._start) / made

    @property
    def under_way(self) -> list[str]:
        """Slides at work, by name."""
        return sorted(self._under_way)

    def line(self) -> str:
        """`12 of 50 slides, 431 patches/s, 3:12 left`."""
        left = self.seconds_left
        told = f"{self.finished} of {self.slides} slides{self.speed}"
        if left is not None and self.finished < self.slides:
            told += f", {_clock_text(left)} left"
        return told

    @property
    def speed(self) -> str:
        """`, 431 patches/s`; nothing where nothing was encoded."""
        rate = self.patches_per_second
        return f", {rate:.0f} patches/s" if rate >= 1 else ""

    def _fractions(self) -> float:
        return sum(done / total for done, total in self._under_way.values() if total)


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
