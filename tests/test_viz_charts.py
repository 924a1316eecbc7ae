"""Axes, ticks and charts as SVG."""

import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsizoo.errors import DataError
from wsizoo.viz.charts import bar_chart, curve_chart, roc_chart
from wsizoo.viz.svg import ROW, Plot, Scale, nice_ticks, shared_decimals, tick_labels

EVIL = '<script>alert("x")</script>&'


def texts(svg):
    return [e.text for e in ET.fromstring(svg).iter("text")]


def points(svg):
    """The points of every line drawn as a path, without those of the key (horizontal)."""
    paths = [e.get("d") for e in ET.fromstring(svg).iter("path")]
    lines = [[tuple(map(float, p.split())) for p in d[1:].split("L")] for d in paths]
    return [line for line in lines if not (len(line) == 2 and line[0][1] == line[1][1])]


@given(st.floats(-1e6, 1e6), st.floats(0.001, 1e6), st.integers(3, 8))
def test_ticks_are_evenly_spaced_round_numbers_around_the_range(low, span, count):
    ticks = nice_ticks(low, low + span, count)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-6 * step
    assert ticks[-1] >= low + span - 1e-6 * step
    assert 3 <= len(ticks) <= count + 3
    leading = step / 10 ** math.floor(math.log10(step * (1 + 1e-9)))
    rounding = 1e-6 + 1e-15 * abs(low) / step  # of the difference of two large ticks
    assert min(abs(leading - m) for m in (1, 2, 2.5, 5, 10)) < rounding
    assert len(set(tick_labels(ticks))) == len(ticks)


def test_a_range_of_one_value_still_has_an_axis():
    assert nice_ticks(3, 3)[0] < 3 < nice_ticks(3, 3)[-1]
    assert nice_ticks(0, 0)[0] < 0 < nice_ticks(0, 0)[-1]


def test_labels_have_the_decimals_they_need():
    assert tick_labels([0, 0.25, 0.5]) == ["0.00", "0.25", "0.50"]
    assert tick_labels([0, 5, 10]) == ["0", "5", "10"]
    assert tick_labels([0, 1e6, 2e6]) == ["0", "1e+06", "2e+06"]


def test_an_axis_that_is_not_finite_is_refused():
    with pytest.raises(DataError, match="an axis from 0 to nan"):
        nice_ticks(0, math.nan)


def test_numbers_of_one_chart_share_their_decimals():
    assert shared_decimals([0.91, 0.871], 3) == 3
    assert shared_decimals([12.5, 3.25], 3) == 1
    assert shared_decimals([129.0, 3.0], 3) == 0
    assert shared_decimals([], 3) == 0


def test_a_scale_is_linear():
    scale = Scale(10, 20, 100, 0)
    assert [scale(v) for v in (10, 15, 20)] == [100, 50, 0]


def test_roc_starts_at_one_corner_of_its_axes_and_ends_at_the_other():
    svg = roc_chart([("span", [0, 0.1, 1], [0, 0.8, 1], 0.853)])
    (line,) = points(svg)
    plot = Plot("", [0, 1], [0.0, 0.2], x_label="", y_label="", inner=370)
    assert line[0] == pytest.approx(plot.at(0, 0), abs=0.01)
    assert line[-1] == pytest.approx(plot.at(1, 0.2), abs=0.01)
    assert "AUC 0.853, span" in texts(svg)
    assert any("specificity" in text for text in texts(svg))


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ([], "no ROC curve to draw"),
        ([("a", [0, 1], [0], 0.5)], "'a': 2 rates along x and 1 along y"),
        ([("a", [0, 1.2], [0, 1], 0.5)], "'a' holds a rate outside"),
        ([("a", [0, math.nan], [0, 1], 0.5)], "'a' holds a rate outside"),
    ],
)
def test_rates_that_are_none_are_refused(curves, message):
    with pytest.raises(DataError, match=message):
        roc_chart(curves)


def test_short_names_of_the_key_share_a_row_and_long_ones_do_not():
    def rows(names):
        plot = Plot("t", [0, 1], [0, 1], x_label="x", y_label="y")
        before = plot.height
        plot.key(names)
        return (plot.height - before - 8) / ROW

    assert rows([f"head {i}" for i in range(4)]) == 1
    assert rows([f"head {i}" for i in range(5)]) == 2
    assert rows(["a name of some length, of a model", "b"]) == 2
    assert rows(["x" * 300] * 3) == 3


def test_a_bar_is_as_long_as_its_value_and_names_its_interval():
    svg = bar_chart([("a", 0.5, None, None), ("b", 1.0, 0.75, 1.0)], "AUC")
    widths = [
        float(e.get("width")) for e in ET.fromstring(svg).iter("rect") if e.get("class") == "bar"
    ]
    assert widths[0] * 2 == pytest.approx(widths[1], abs=0.02)
    assert "0.50" in texts(svg)
    assert "1.00 (0.75 to 1.00)" in texts(svg)


def test_negative_bars_grow_to_the_left_of_zero():
    svg = bar_chart([("a", -2, None, None), ("b", 4, None, None)], "change")
    low, high = (e for e in ET.fromstring(svg).iter("rect") if e.get("class") == "bar")
    end_of_low = float(low.get("x")) + float(low.get("width"))
    assert end_of_low == pytest.approx(float(high.get("x")), abs=0.02)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no bar to draw"),
        ([("a", math.nan, None, None)], "'a' is nan"),
        ([("a", 1, 0, None)], "one end of an interval only"),
        ([("a", 1, 2, 3)], "'a' is 1, outside its interval 2 to 3"),
        ([("a", 1, math.nan, 3)], "outside its interval"),
    ],
)
def test_bars_that_mean_nothing_are_refused(rows, message):
    with pytest.raises(DataError, match=message):
        bar_chart(rows, "AUC")


def test_a_missing_value_is_a_gap_and_a_lone_one_a_dot():
    svg = curve_chart("loss", range(6), {"a": [3, 2, None, 1, math.nan, 0]})
    assert len(points(svg)) == 1
    assert len(list(ET.fromstring(svg).iter("circle"))) == 2


def test_series_differ_in_more_than_colour():
    svg = curve_chart("loss", [0, 1], {"a": [0, 1], "b": [1, 0]})
    dashes = {e.get("class"): e.get("stroke-dasharray") for e in ET.fromstring(svg).iter("path")}
    assert dashes["mark s0"] != dashes["mark s1"]


def test_many_series_have_their_own_look():
    svg = curve_chart("loss", [0, 1], {f"{i}": [0, i] for i in range(14)})
    looks = [(e.get("class"), e.get("stroke-dasharray")) for e in ET.fromstring(svg).iter("path")]
    assert len(set(looks)) == 14


@pytest.mark.parametrize(
    ("series", "message"),
    [({"a": [1]}, "series 'a' has 1 values for 2 points"), ({}, "no finite number to draw")],
)
def test_curves_without_values_are_refused(series, message):
    with pytest.raises(DataError, match=message):
        curve_chart("loss", [0, 1], series)


def test_every_name_is_escaped_and_long_ones_are_whole_in_the_tooltip():
    long = EVIL * 9
    for svg in (
        roc_chart([(long, [0, 1], [0, 1], 0.5)]),
        bar_chart([(long, 0.5, 0.4, 0.6)], EVIL),
        curve_chart(EVIL, [0, 1], {long: [0, 1]}, EVIL),
    ):
        assert "<script" not in svg
        assert any(long in (e.text or "") for e in ET.fromstring(svg).iter("title"))
        assert EVIL in (ET.fromstring(svg).get("aria-label") or "")
