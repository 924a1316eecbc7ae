"""Overrides of an entry: `KEY=VALUE` texts of a command line, laid over it."""

from __future__ import annotations

import re
from typing import Any

from wsizoo.errors import SpecError
from wsizoo.hookspecs import KINDS
from wsizoo.yaml_data import read_value


def in_full(key: str, value: Any) -> Any:
    """A part given as a bare name is `{name: ...}`."""
    return {"name": value} if key in KINDS and isinstance(value, str) else value


def lay_over(whose: str, content: dict[str, Any], text: str) -> None:
    """Lay one `a.b=VALUE` over an entry, in place."""
    key, equals, raw = text.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise SpecError(
            f"{whose}: cannot read the override '{text}', expected KEY=VALUE, for instance "
            "head.classes=[normal,tumour]"
        )
    *path, last = key.split(".")
    try:
        value = read_value(last, raw)
    except ValueError as error:
        raise SpecError(f"{whose}: cannot read the override '{text}': {error}") from error
    for depth, step in enumerate(path, 1):
        if content.get(step) is None and depth == 1 and step in KINDS:
            raise SpecError(
                f"{whose} has no {step}, so {key} changes nothing. Give it one first: {step}=NAME"
            )
        content = content.setdefault(step, {})
        if not isinstance(content, dict):
            raise SpecError(f"{whose}: {'.'.join(path[:depth])} is {content!r}, it has no '{last}'")
    content[last] = value if path else in_full(last, value)
