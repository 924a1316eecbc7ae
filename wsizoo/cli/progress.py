"""Bars on a terminal, on stderr; nothing where stderr is a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import Progress

Tick = Callable[[str, int, int], None]
"""(what, done, in all)"""
After = Callable[[Callable[[Any], str]], Callable[[Any], None]]
"""(result -> line) -> what to call with each result"""
LONGEST_NAME = 24


@contextmanager
def bar(quiet: bool) -> Iterator[Tick]:
    """One bar; gives what to call with what is being done, and how far."""
    with _drawn(quiet) as progress:
        yield _ticking(progress)


@contextmanager
def slide_bars(total: int, quiet: bool = False) -> Iterator[tuple[Tick, After]]:
    """Bars of all slides and of the patches of the current one; each result's line above them."""
    with _drawn(quiet) as progress:
        slides = progress.add_task("slides", total=total)
        tick = _ticking(progress)

        def after(line: Callable[[Any], str]) -> Callable[[Any], None]:
            def report(result: Any) -> None:
                click.echo(line(result))
                progress.advance(slides)

            return report

        yield tick, after


def _ticking(progress: Progress) -> Tick:
    """A bar that appears with the first call."""
    task = progress.add_task("", total=None, visible=False)

    def tick(what: str, done: int, total: int) -> None:
        name = what if len(what) <= LONGEST_NAME else what[: LONGEST_NAME - 1] + "…"
        progress.update(task, description=name, completed=done, total=total, visible=done < total)

    return tick


def _drawn(quiet: bool) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Left

    console = Console(stderr=True)
    # Lines go through the bar's console only where stdout is the same terminal, not a file or pipe.
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Left(),
        console=console,
        disable=quiet or not console.is_terminal,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )
