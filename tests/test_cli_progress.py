"""Bars and lines share a terminal."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable

import pytest

from wsizoo.cli.progress import bar, slide_bars, tell

pty = pytest.importorskip("pty", reason="terminals are tested on POSIX only")


def lines_on_terminal(monkeypatch: pytest.MonkeyPatch, draw: Callable[[], None]) -> list[str]:
    """What stands on the lines of a terminal when `draw` has ended."""
    leader, follower = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", terminal)
        draw()
        print("END", file=terminal, flush=True)
        monkeypatch.undo()
        written = ""
        while not written.endswith("END\r\n"):
            written += os.read(leader, 65536).decode()
    os.close(leader)
    return screen(written)


def screen(written: str) -> list[str]:
    """Lines after the movements that rich makes: down, to the start, up, erase the line."""
    lines, row = [""], 0
    for move, letters in re.findall(r"(\n|\r|\x1b\[[0-9;?]*[A-Za-z])|([^\n\r\x1b]+)", written):
        if move == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif move.endswith("A"):
            row -= int(move[2:-1])
        elif move.endswith("2K"):
            lines[row] = ""
        lines[row] += letters
    return lines


@pytest.mark.parametrize("err", [False, True])
def test_a_line_told_under_a_bar_stands_on_a_line_of_its_own(
    monkeypatch: pytest.MonkeyPatch, err: bool
) -> None:
    def draw() -> None:
        with bar(quiet=False) as tick:
            for epoch in range(3):
                tick("slides trained on", epoch, 3)
                time.sleep(0.2)  # the bar is drawn ten times a second
                tell(f"epoch {epoch}", err=err)

    lines = lines_on_terminal(monkeypatch, draw)
    assert [line for line in lines if "epoch" in line] == ["epoch 0", "epoch 1", "epoch 2"]


def test_the_line_of_a_slide_stands_on_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw() -> None:
        with slide_bars(2) as (tick, after):
            report = after(lambda name: f"done {name}")
            for name in ("S0", "S1"):
                tick(name, 1, 2)
                report(name)

    lines = lines_on_terminal(monkeypatch, draw)
    assert [line for line in lines if "done" in line] == ["done S0", "done S1"]


def test_what_is_told_goes_to_the_stream_that_was_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tell("out")
    tell("err", err=True)
    assert capsys.readouterr() == ("out\n", "err\n")
