"""How many patches are kept, and what options may say."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from wsizoo.errors import SpecError
from wsizoo.names import suggest


def kept_count(k: int | float, n: int) -> int:
    """How many of n patches a budget keeps: a whole number of them (at most n), or a share.

    Args:
        k: from 1, whole; or a share in (0, 1] with a point: 1 is one patch, 1.0 is all.
        n: from 1.

    Raises:
        SpecError: no such budget.
    """
    check_budget(k)
    if isinstance(k, int):
        return min(k, n)
    return max(1, math.ceil(Fraction(str(k)) * n))  # exact: 0.1 of 30 is 3


def check_budget(k: int | float) -> None:
    """Raise SpecError unless `kept_count` takes it."""
    if isinstance(k, float) and not 0 < k <= 1:
        raise SpecError(
            f"selector.k is {k}, expected a share of the patches in (0, 1], as 0.01, or a whole "
            "number of them, as 32"
        )
    if not isinstance(k, float) and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
        raise SpecError(
            f"selector.k is {k!r}, expected how many patches are kept, from 1, or a share of them "
            "in (0, 1], as 0.01"
        )


def check_option(name: str, value: Any, kept: bool, expected: str) -> None:
    """Raise SpecError: a selector's option has a value that it cannot have."""
    if not kept:
        raise SpecError(f"selector.{name} is {value!r}, expected {expected}")


def check_known(given: Iterable[str], maker: type) -> None:
    """Raise SpecError for an argument that no constructor of a class and its bases names."""
    named = [p for c in maker.__mro__[:-1] for p in inspect.signature(c).parameters.values()]
    known = {p.name for p in named if "VAR" not in p.kind.name} - {"in_dim", "k"}
    for name in given:
        if name not in known:
            raise SpecError(
                f"the selector has no argument '{name}'. {suggest(name, known, 'It takes: ')}"
            )
