"""Charts of how predictions meet what was true."""

import itertools
import xml.etree.ElementTree as ET

import pytest

from wsizoo.errors import DataError
from wsizoo.viz.charts import curve_chart
from wsizoo.viz.outcomes import (
    Calibration,
    Survivors,
    confusion_chart,
    precision_recall_chart,
    reliability_chart,
    scatter_chart,
    score_chart,
    survival_chart,
)

EVIL = '<script>alert("x")</script>&'
BIN = Calibration(0.75, 0.5, 0.25, 0.8, 12)
GROUP = Survivors("low", [0, 2, 5], [1, 0.75, 0.375], [2, 3, 5, 7], [True, False, True, False])


def all_of(svg, tag, style=None):
    found = ET.fromstring(svg).iter(tag)
    return [e for e in found if style is None or e.get("class", "").startswith(style)]


def texts(svg):
    return [e.text for e in all_of(svg, "text")]


def box(element):
    return [float(element.get(key)) for key in ("x", "y", "width", "height")]


def corners(path):
    return [tuple(map(float, p.split())) for p in path.get("d")[1:].split("L")]


def test_a_cell_is_as_dark_as_its_share_of_its_label():
    svg = confusion_chart([[8, 2], [0, 5]], ["normal", "tumour"])
    cells = all_of(svg, "rect", "cell")
    shown = [float(cell.get("fill-opacity", 1)) for cell in cells]
    assert shown == pytest.approx([0.85 * s for s in (0.8, 0.2, 0, 1)], abs=0.006)
    assert box(cells[0])[1] == box(cells[1])[1] < box(cells[2])[1]
    assert {"8", "80 %", "2", "20 %", "0", "5", "100 %"} <= set(texts(svg))


def test_long_names_of_classes_are_turned_and_stay_in_the_picture():
    names = ["a", "a class whose name is longer than any column is wide", "c"]
    svg = confusion_chart([[1, 0, 0]] * 3, names)
    turned = [e for e in all_of(svg, "text") if e.get("transform")]
    assert len(turned) == 4  # "Label" and the columns
    _, _, width, height = map(float, ET.fromstring(svg).get("viewBox").split())
    for cell in all_of(svg, "rect"):
        x, y, w, h = box(cell)
        assert x + w <= width and y + h <= height


def test_cells_of_many_classes_do_not_overlap():
    svg = confusion_chart([[7] * 30] * 30, [f"class {i}" for i in range(30)])
    cells = [box(cell) for cell in all_of(svg, "rect", "cell")]
    assert len(cells) == 900
    assert all(width >= 18 and height >= 18 for *_, width, height in cells)
    assert cells[0][0] + cells[0][2] <= cells[1][0]


def test_precision_starts_at_recall_0_and_chance_is_level():
    svg = precision_recall_chart([("a", [1, 0.5, 0], [0.5, 1, 1], 0.8)], chance=0.5)
    (guide,) = all_of(svg, "line", "guide")
    assert guide.get("y1") == guide.get("y2")
    assert "AP 0.800, a" in texts(svg)


def test_a_calibration_bin_lies_within_its_interval():
    svg = reliability_chart([BIN, Calibration(0.9, 1, 0.5, 1, 3)], "p")
    whisker, dot = all_of(svg, "line", "whisker")[0], all_of(svg, "circle")[0]
    low, high = float(whisker.get("y1")), float(whisker.get("y2"))
    assert high < float(dot.get("cy")) < low
    assert "12" in texts(svg)


def test_counts_of_neighbouring_bins_do_not_touch():
    bins = [Calibration(p, 0.5, 0.4, 0.6, n) for p, n in ((0.58, 11), (0.6, 5), (0.62, 1000))]
    svg = reliability_chart([*bins, Calibration(0.9, 0.5, 0.4, 0.6, 7)], "p")
    places = {e.text: (float(e.get("x")), float(e.get("y"))) for e in all_of(svg, "text")}
    assert places["11"][1] > places["5"][1] > places["1000"][1]
    assert places["7"][1] == places["11"][1]  # where there is room, the lowest row


def test_scores_are_counted_in_their_bins():
    svg = score_chart([("a", [0.0, 0.01, 0.99, 1.0, 1.0]), ("b", [0.5])], "p", guide=0.5)
    bars = [box(bar) for bar in all_of(svg, "rect", "bar")]
    heights = [height for *_, height in bars if height]
    assert len(bars) == 40
    assert heights[0] / heights[1] == pytest.approx(2 / 3, abs=0.01)
    assert {"a, n 5", "b, n 1"} <= set(texts(svg))


def test_survival_falls_in_steps_and_ends_where_the_last_patient_does():
    svg = survival_chart([GROUP], "years")
    curve = corners(all_of(svg, "path", "mark")[0])
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        assert (x0 == x1 and y1 >= y0) or (y0 == y1 and x1 >= x0)
    drops = sorted({y for _, y in curve})
    assert (drops[1] - drops[0]) / (drops[2] - drops[0]) == pytest.approx(0.25 / 0.625, abs=0.01)
    ticks = [e for e in all_of(svg, "line", "mark") if e.get("x1") == e.get("x2")]
    assert len(ticks) == 2  # one a patient last seen without event
    assert max(x for x, _ in curve) == float(ticks[-1].get("x1"))


def test_numbers_at_risk_count_who_is_still_followed():
    svg = survival_chart([GROUP], "years")
    shown = texts(svg)
    after = shown[shown.index("At risk") + 1 :]
    assert after == ["4", "4", "2", "1", "0"]  # at 0, 2, 4, 6 and 8


def test_equal_pairs_lie_on_the_line():
    svg = scatter_chart([1, 5, 9], [1, 5, 9], "true", "predicted")
    (guide,) = all_of(svg, "line", "guide")
    x1, y1, x2, y2 = (float(guide.get(key)) for key in ("x1", "y1", "x2", "y2"))
    for dot in all_of(svg, "circle"):
        x, y = float(dot.get("cx")), float(dot.get("cy"))
        assert (y - y1) * (x2 - x1) == pytest.approx((y2 - y1) * (x - x1), abs=5)


def test_a_marked_epoch_stands_at_its_place():
    svg = curve_chart("Loss", [1, 2, 3], {"a": [3, 2, 1]}, mark=(2, "kept: epoch 2"))
    (guide,) = all_of(svg, "line", "whisker")  # solid, in ink: seen on the axis of epoch 1 too
    ((_, _), (x, _), (_, _)) = corners(all_of(svg, "path")[0])
    assert float(guide.get("x1")) == x
    assert "kept: epoch 2" in texts(svg)


@pytest.mark.parametrize("last", [1, 2, 3, 7, 8, 12, 13, 20, 33, 50, 100, 250])
def test_epochs_have_whole_ticks(last):
    svg = curve_chart("Loss", range(1, last + 1), {"a": range(last)})
    bottom = [e.text for e in all_of(svg, "text", "soft") if e.get("text-anchor") == "middle"]
    assert bottom
    assert all(text.isdigit() for text in bottom)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: confusion_chart([[1, 0], [0, 1]], [EVIL, "b"]),
        lambda: precision_recall_chart([(EVIL, [0, 1], [1, 0], 0.5)]),
        lambda: reliability_chart([BIN], EVIL),
        lambda: score_chart([(EVIL, [0.5])], EVIL),
        lambda: survival_chart([Survivors(EVIL, [0, 1], [1, 0], [1], [True])], EVIL),
        lambda: scatter_chart([1, 2], [1, 2], EVIL, EVIL),
        lambda: curve_chart("a", [1, 2], {"b": [1, 2]}, mark=(1, EVIL)),
    ],
)
def test_text_stays_text(draw):
    svg = draw()
    assert "<script" not in svg
    ET.fromstring(svg)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: confusion_chart([[1, 0]], ["a", "b"]), "of 2 classes needs 2 rows and columns"),
        (lambda: precision_recall_chart([]), "no precision-recall curve to draw"),
        (lambda: precision_recall_chart([("a", [0, 2], [0, 1], 1)]), "'a' holds a rate outside"),
        (lambda: reliability_chart([], "p"), "p: no calibration bin to draw"),
        (lambda: reliability_chart([Calibration(2, 0, 0, 1, 1)], "p"), "holds a share outside"),
        (lambda: score_chart([("a", [])], "p"), "p: no score to draw"),
        (lambda: score_chart([("a", [1.5])], "p"), r"p: a score lies outside \[0, 1\]"),
        (lambda: survival_chart([], "t"), "no survival curve to draw"),
        (lambda: survival_chart([Survivors("a", [0], [1], [], [])], "t"), "group 'a' is empty"),
        (lambda: scatter_chart([1], [1, 2], "x", "y"), "y: 1 and 2 numbers, expected as many"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, message):
    with pytest.raises(DataError, match=message):
        draw()
