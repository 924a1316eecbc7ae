"""Tables and long lines, fitted to a terminal; whole where stdout is a file or a pipe."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import click


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is, or None."""
    return shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else None


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Columns as wide as they need; what does not fit into the terminal is cut, with a mark."""
    if not rows:
        return
    lines = [list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    edge = terminal_width()
    for cells in lines:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
        line = line.rstrip()
        click.echo(line[: edge - 1] + "…" if edge and len(line) > edge else line)


def print_field(label: str, value: str) -> None:
    """A label and its text; on a terminal, further lines begin under the text's first word."""
    edge = terminal_width()
    if edge is None:
        click.echo(f"{label}{value}".rstrip())
        return
    for line in textwrap.wrap(
        label + value,
        max(edge, len(label) + 20),
        subsequent_indent=" " * len(label),
        drop_whitespace=True,
        break_on_hyphens=False,
        break_long_words=False,
        replace_whitespace=False,
        tabsize=1,
    ) or [label]:
        click.echo(line)


def _shown(value: Any) -> str:
    if value is None or value is False:
        return "-"
    return "yes" if value is True else str(value)
