"""Bars on a terminal, on stderr; nothing where stderr is a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

    from wsizoo.extraction.progress import Pace

Tick = Callable[[str, int, int], None]
"""(what, done, in all)"""
After = Callable[[Callable[[Any], str]], Callable[[Any], None]]
"""(result -> line) -> what to call with each result"""
LONGEST_NAME = 24
MOST_NAMES = 3


def tell(text: str, err: bool = False) -> None:
    """A line, above the bar where one is drawn: click.echo writes past what rich puts in place of
    sys.stdout, onto the bar's own line.
    """
    print(text, file=sys.stderr if err else sys.stdout, flush=True)


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
                tell(line(result))
                progress.advance(slides)

            return report

        yield tick, after


@contextmanager
def cohort_bar(pace: Pace, quiet: bool = False) -> Iterator[tuple[Tick, After]]:
    """One bar of all slides: how many, patches a second, time left, and the slides under way."""
    from rich.markup import escape

    with _drawn(quiet, timed=False) as progress:
        task = progress.add_task("", total=1.0)

        def show() -> None:
            names = [_short(name) for name in pace.under_way[:MOST_NAMES]]
            more = len(pace.under_way) - len(names)
            told = ", ".join(names) + (f" and {more} more" if more > 0 else "")
            text = pace.line() + (f"  [{told}]" if told else "")
            progress.update(task, description=escape(text), completed=pace.share)

        def tick(what: str, done: int, total: int) -> None:
            pace.update(what, done, total)
            show()

        def after(line: Callable[[Any], str]) -> Callable[[Any], None]:
            def report(result: Any) -> None:
                pace.finish(result)
                tell(line(result))
                show()

            return report

        show()
        yield tick, after


def _ticking(progress: Progress) -> Tick:
    """A bar that appears with the first call."""
    task = progress.add_task("", total=None, visible=False)

    def tick(what: str, done: int, total: int) -> None:
        name = _short(what)
        progress.update(task, description=name, completed=done, total=total, visible=done < total)

    return tick


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _drawn(quiet: bool, timed: bool = True) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Left

    console = Console(stderr=True)
    # Lines go through the bar's console only where stdout is the same terminal, not a file or pipe.
    numbers = [MofNCompleteColumn(), Left()] if timed else []
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *numbers,
        console=console,
        disable=quiet or not console.is_terminal,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )
