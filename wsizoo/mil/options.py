"""What an aggregator's options may be: names, sizes, shares, widths that heads share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wsizoo.errors import SpecError


def check_choice(whose: str, known: Iterable[str | None], /, **given: str | None) -> None:
    """Raise SpecError unless each option is one of the names that are known; it alone is named.

    Args:
        whose: the aggregator. given: its options by name; None is told as null.
    """
    names = list(known)
    for option, value in given.items():
        if value not in names:
            told = ", ".join("null" if name is None else name for name in names)
            raise SpecError(f"{whose}'s {option} is {value!r}, expected one of {told}")


def preset(
    whose: str, variants: Mapping[str, Mapping[str, Any]], variant: str, /, **given: Any
) -> dict[str, Any]:
    """The settings of a variant, and over them the options that are given, not None.

    Raises:
        SpecError: no such variant.
    """
    check_choice(whose, variants, variant=variant)
    return {**variants[variant], **{name: v for name, v in given.items() if v is not None}}


def check_sizes(whose: str, least: int = 1, /, **given: int | Sequence[int] | None) -> None:
    """Raise SpecError unless each option is a whole number from `least` on, or a list of such.

    Args:
        whose: the aggregator. given: its options by name; None: one that was left open.
    """
    for name, value in given.items():
        numbers, each = "a whole number", [value]
        if isinstance(value, Sequence):
            numbers, each = "whole numbers", list(value)
        if value is not None and any(type(one) is not int or one < least for one in each):
            raise SpecError(f"{whose}'s {name} is {value!r}, expected {numbers} from {least} on")


def check_shares(whose: str, /, *, whole: bool = False, **given: float | None) -> None:
    """Raise SpecError unless each option is a share from 0 to below 1, as of dropout.

    Args:
        whose, given: as of `check_sizes`. whole: 1 is one too.
    """
    for name, value in given.items():
        if value is None or 0 <= value < 1 or (whole and value == 1):
            continue
        end = "1" if whole else "below 1"
        raise SpecError(f"{whose}'s {name} is {value!r}, expected a share from 0 to {end}")


def check_heads(whose: str, dim: int, /, **heads: int) -> None:
    """Raise SpecError unless each number of heads shares the width evenly; both are sizes."""
    for name, count in heads.items():
        if dim % count:
            raise SpecError(f"{whose}'s dim is {dim}, expected a multiple of its {name} ({count})")
