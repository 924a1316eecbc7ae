"""Names: near ones for messages, taken ones, and those of distributions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from wsizoo.errors import PluginError, SpecError

DISTRIBUTION = re.compile(r"[a-z0-9]([\w.-]*[a-z0-9])?", re.ASCII | re.IGNORECASE)


def near_names(name: str, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Up to three that may have been meant, the nearest first.

    Args:
        cutoff: how near at least, 0 to 1, see `difflib.get_close_matches`.
    """
    lower = {n.lower(): n for n in sorted(known)}
    return [lower[n] for n in difflib.get_close_matches(name.lower(), list(lower), 3, cutoff)]


def suggest(name: str, known: Iterable[str], otherwise: str) -> str:
    """`Did you mean ...?`, of names that are near or begin so, or everything that is known."""
    names = sorted(known)
    near = near_names(name, names) or [n for n in names if n.startswith(f"{name.lower()}-")][:3]
    if near:
        return "Did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    return otherwise + (", ".join(names[:12]) or "none") + (", ..." if len(names) > 12 else ".")


def describe(error: BaseException) -> str:
    """`Kind: message`."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def refuse_taken(labels: Iterable[str], taken: Mapping[str, str], owner: str) -> None:
    """Raise PluginError where a label is `taken` (label -> its owner) or stands twice."""
    owners = dict(taken)
    for label in labels:
        if label in owners:
            raise PluginError(
                f"{label} of {owner} exists already in {owners[label]}: uninstall one, or ask its "
                "author to rename it"
            )
        owners[label] = owner


def check_distribution(whose: str, name: Any) -> None:
    """Raise SpecError unless a `plugin` is None or a distribution's name: it is told to be typed.

    Source: https://packaging.python.org/en/latest/specifications/name-normalization/
    """
    if name is not None and not (isinstance(name, str) and DISTRIBUTION.fullmatch(name)):
        raise SpecError(
            f"{whose}: plugin is {name!r}, expected the name of a distribution, such as "
            "wsizoo-plugin-span"
        )
