"""What is wrong with which slides, told at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from wsizoo.errors import DataError

SHOWN = 10  # slides that an error names


@dataclass
class Problems:
    """What is wrong with which slides, to be told at once."""

    slides: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, slide: str) -> None:
        self.slides.setdefault(what, []).append(slide)

    def raise_if_any(self, whose: str, hint: str = "") -> None:
        """Raises DataError: a line a problem, with the first slides and how many."""
        if not self.slides:
            return
        lines = [f"{len(names)} {what}: {some(names)}" for what, names in self.slides.items()]
        raise DataError("\n  ".join([f"{whose}:", *lines]) + (f"\n{hint}" if hint else ""))


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
