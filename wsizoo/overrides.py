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


def cannot_read(text: str, raw: str, error: ValueError) -> str:
    """What is wrong with the VALUE `raw` of an override, in a line, and what to type instead."""
    why = re.sub(r'\s*in "<unicode string>", line \d+, column \d+\s*', "; ", str(error)).strip("; ")
    told = f"cannot read the override '{text}' as YAML ({why})"
    if inner := re.fullmatch(r"\[\s*(\w[\w.]*=.*?)\s*\]", raw, re.DOTALL):
        each = re.split(r",\s*(?=\w[\w.]*=)", inner[1])
        quoted = ", ".join(f'"{one}"' for one in each)
        key = text.removesuffix(f"={raw}")
        return f"{told}. Put each KEY=VALUE of a list into quotes: '{key}=[{quoted}]'"
    return f"{told}. Is a bracket, a brace or a quote left open? In a shell: 'KEY=[a,b]' in quotes"


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
        raise SpecError(f"{whose}: {cannot_read(text, raw, error)}") from error
    for depth, step in enumerate(path, 1):
        if content.get(step) is None and depth == 1 and step in KINDS:
            raise SpecError(
                f"{whose} has no {step}, so {key} changes nothing. Give it one first: {step}=NAME"
            )
        content = content.setdefault(step, {})
        if not isinstance(content, dict):
            raise SpecError(f"{whose}: {'.'.join(path[:depth])} is {content!r}, it has no '{last}'")
    content[last] = value if path else in_full(last, value)
