"""wsizoo.extraction.progress: what is told of slides that are under way side by side."""

from pathlib import Path

import pytest

from wsizoo.extraction.job import Extracted
from wsizoo.extraction.progress import Pace


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def result(name: str, state: str = "done", patches: int = 100) -> Extracted:
    return Extracted(name, Path(name), Path(name), state, patches)


def test_speed_and_time_left_count_slides_that_are_under_way() -> None:
    clock = Clock()
    pace = Pace(4, clock)
    assert (pace.seconds_left, pace.line()) == (None, "0 of 4 slides")
    clock.now = 10
    pace.finish(result("a"))
    pace.update("b", 50, 100)
    pace.update("c", 50, 100)
    assert pace.under_way == ["b", "c"]
    assert pace.share == pytest.approx(0.5)
    assert pace.seconds_left == pytest.approx(10)
    assert pace.line() == "1 of 4 slides, 20 patches/s, 0:10 left"
    for name in "bcd":
        pace.finish(result(name))
    assert (pace.share, pace.line()) == (1.0, "4 of 4 slides, 40 patches/s")


def test_slides_that_were_there_do_not_make_the_rest_look_quick() -> None:
    clock = Clock()
    pace = Pace(101, clock)
    for i in range(99):
        pace.finish(result(str(i), "present"))
    clock.now = 3700
    pace.finish(result("new"))
    assert pace.seconds_left == pytest.approx(3700)
    assert "1:01:40 left" in pace.line()
    pace.finish(result("bad", "failed", 0))
    assert pace.share == 1.0


def test_a_cohort_of_none_is_done() -> None:
    assert Pace(0).share == 1.0
