"""Charts that compare models and runs."""

import xml.etree.ElementTree as ET

import pytest

from wsizoo.errors import DataError
from wsizoo.viz.comparison import interval_plot, rank_plot

EVIL = '<script>alert("x")</script>&'


def texts(svg):
    return [e.text for e in ET.fromstring(svg).iter("text")]


def dots(svg, radius="4.5"):
    return [float(e.get("cx")) for e in ET.fromstring(svg).iter("circle") if e.get("r") == radius]


def test_dots_lie_as_their_values_do_and_whiskers_at_the_ends():
    svg = interval_plot([("a", 0.5, 0.4, 0.6), ("b", 0.75, None, None), ("c", 1.0, 0.5, 1)], "AUC")
    a, b, c = dots(svg)
    assert b - a == pytest.approx(c - b, abs=0.02)
    whiskers = [e for e in ET.fromstring(svg).iter("line") if e.get("class") == "whisker"]
    assert len(whiskers) == 6
    assert float(whiskers[3].get("x1")) == pytest.approx(a, abs=0.02)
    assert "0.500 (0.400 to 0.600)" in texts(svg)
    assert "0.750" in texts(svg)


def test_points_and_guide_lie_within_the_axis():
    svg = interval_plot([("a", 5, 4, 6)], "s", points={"a": [1, 9, float("nan")]}, guide=12)
    assert len(dots(svg, "2.5")) == 2
    guide = next(e for e in ET.fromstring(svg).iter("line") if e.get("class") == "guide")
    assert 18 <= min(dots(svg, "2.5")) < max(dots(svg, "2.5")) < float(guide.get("x1")) <= 382


def test_a_guide_crosses_no_name_and_no_number():
    svg = interval_plot([("a", 0.5, 0.4, 0.6), ("b", 1.0, 0.9, 1.0)], "AUC", guide=0.95)
    drawn = list(ET.fromstring(svg).iter())
    guides = [e for e in drawn if e.get("class") == "guide"]
    names = [float(e.get("y")) for e in drawn if e.tag.endswith("text") and e.text in ("a", "b")]
    spans = [(float(e.get("y1")), float(e.get("y2"))) for e in guides]
    assert len(spans) == 2
    assert all(not start < y < end for start, end in spans for y in names)
    assert all(start > y for (start, _), y in zip(spans, names, strict=True))


def test_shares_that_are_all_equal_get_an_axis_of_shares():
    ticks = texts(interval_plot([("a", 1.0, 1.0, 1.0), ("b", 1.0, None, None)], "AUC"))
    assert ticks[:6] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]


def test_the_best_rank_is_on_top():
    svg = rank_plot(["worse", "better"], [1.75, 1.25], each=[[2, 1.5], [1, 1.5]], critical=0.4)
    assert [t for t in texts(svg) if t in ("worse", "better")] == ["better", "worse"]
    better, worse = dots(svg)
    assert better < worse
    assert len(dots(svg, "2.5")) == 4
    bar = next(ET.fromstring(svg).iter("rect"))
    assert float(bar.get("x")) == pytest.approx(better)
    assert float(bar.get("x")) + float(bar.get("width")) < worse


def test_one_model_and_many_models_have_an_axis():
    assert "1.00" in texts(rank_plot(["only"], [1.0]))
    many = [f"m{i}" for i in range(25)]
    assert set(many) <= set(texts(rank_plot(many, [float(i + 1) for i in range(25)])))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: interval_plot([(EVIL, 1, 0, 2)], EVIL, points={EVIL: [1]}),
        lambda: rank_plot([EVIL, "b"], [1, 2], label=EVIL),
    ],
)
def test_text_stays_text(draw):
    svg = draw()
    assert "<script" not in svg
    assert any("<script>" in (e.text or "") for e in ET.fromstring(svg).iter())


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(DataError, match="no interval to draw"):
        interval_plot([], "AUC")
    with pytest.raises(DataError, match="bar 'a' is nan, expected a finite number"):
        interval_plot([("a", float("nan"), None, None)], "AUC")
    with pytest.raises(DataError, match="1 ranks for 2 models, expected one each"):
        rank_plot(["a", "b"], [1])
    with pytest.raises(DataError, match=r"ranks of 'b' are \[3\], expected 1 to 2"):
        rank_plot(["a", "b"], [1, 3])


def test_an_interval_without_its_value_is_not_stretched_to_it():
    """A percentile interval need not hold its point; the drawing shows that."""
    svg = interval_plot([("a", 0.97, 0.8, 0.9), ("b", 0.5, 0.4, 0.6)], "AUC")
    bar = next(e for e in ET.fromstring(svg).iter("line") if e.get("class") == "whisker")
    assert float(bar.get("x1")) < float(bar.get("x2")) < dots(svg)[0]
    assert "0.970 (0.800 to 0.900)" in texts(svg)
