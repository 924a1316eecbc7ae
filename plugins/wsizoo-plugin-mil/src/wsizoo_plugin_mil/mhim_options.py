"""What the versions of MHIM-MIL are, and which options there are."""

from __future__ import annotations

from typing import Any

from wsizoo.errors import SpecError

ACTIVATIONS = ("relu", "gelu")
KEEPS = ("all", "embedding", "none")
VERSIONS: dict[str, dict[str, Any]] = {
    "v1": {
        "activation": "relu",
        "by_class": False,
        "high": 0.01,
        "high_among": 0.5,
        "at_random": 0.5,
        "fading": True,
        "queries": 0,
        "alpha": 0.1,
        "momentum": 0.9999,
    },
    "v2": {
        "activation": "gelu",
        "by_class": True,
        "high": 0.03,
        "high_among": 1.0,
        "at_random": 0.0,
        "fading": False,
        "queries": 5,
        "alpha": 0.5,
        "momentum": 0.9997,
    },
}


def settled(version: str, student: str, low: float, keep: float, **asked: Any) -> dict[str, Any]:
    """The options that were asked for, and of the version those that are None.

    Raises:
        SpecError: one that does not exist.
    """
    found = {**VERSIONS.get(version, VERSIONS["v2"])}
    found |= {name: value for name, value in asked.items() if value is not None}
    activation, among, queries = found["activation"], found["high_among"], found["queries"]
    if version not in VERSIONS or student not in KEEPS or activation not in ACTIVATIONS:
        raise SpecError(
            f"MHIM's version is {version!r}, its student {student!r}, its activation "
            f"{activation!r}; expected one of {', '.join(VERSIONS)}; of {', '.join(KEEPS)}; of "
            f"{', '.join(ACTIVATIONS)}"
        )
    shares = {"low": low, "keep": keep, "high": found["high"], "at_random": found["at_random"]}
    wrong = [f"{name}={share}" for name, share in shares.items() if not 0 <= share < 1]
    if wrong:
        raise SpecError(f"MHIM has {', '.join(wrong)}; a share of the patches is in [0, 1)")
    if not 0 < among <= 1 or queries < 0:
        raise SpecError(
            f"MHIM's high_among is {among} and its queries {queries}; expected more than 0 and at "
            "most 1, where none is drawn; and 0 or more"
        )
    return found
