"""The report: one file, nothing fetched, nothing run."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from wsizoo.errors import DataError
from wsizoo.viz.report import Report, embed

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
VOID = {"meta", "img", "br", "line", "rect", "circle", "path"}


class Tree(HTMLParser):
    """Every element with its attributes; fails on a tag that is closed out of turn."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def photo(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def full(word):
    return (
        Report(word, word)
        .heading(word)
        .heading("2")
        .heading("3")
        .text(f"{word}\n\n{word}")
        .facts({word: word, "n": 3})
        .table([{word: word, "b": 0.5}], [word, "b"], word)
        .image(photo(), word, width=200)
        .gallery([(photo(1), word), (photo(2), word)])
        .roc([(word, [0, 1], [0, 1], 0.5)], word)
        .bars([(word, 0.5, 0.4, 0.6)], word, word)
        .curve(word, [0, 1], {word: [0, 1]}, word, word)
    )


def test_text_in_any_place_stays_text():
    tree = Tree(full(EVIL).html())
    assert tree.all("script") == []
    assert len(tree.all("img")) == 3
    assert all("onerror" not in attrs for _, attrs in tree.elements)
    assert EVIL in tree.words


def test_nothing_refers_to_anything_outside_the_file():
    text = full("plain").html()
    assert "://" not in text
    assert "url(" not in text
    assert "@import" not in text
    tree = Tree(text)
    for _, attrs in tree.elements:
        assert attrs.get("href", "#").startswith("#")
        assert attrs.get("src", "data:image/").startswith("data:image/")
    policy = next(m["content"] for m in tree.all("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_it_can_be_read_without_seeing_it():
    tree = Tree(full("plain").html())
    assert tree.all("html") == [{"lang": "en"}]
    assert all(attrs["alt"] for attrs in tree.all("img"))
    assert all(a["role"] == "img" and a["aria-label"] for a in tree.all("svg"))
    assert {attrs["scope"] for attrs in tree.all("th")} == {"col", "row"}
    assert len(tree.all("h1")) == 1


def test_it_adapts_to_narrow_windows_dark_mode_and_paper():
    text = full("plain").html()
    assert 'name="viewport"' in text
    for media in ("prefers-color-scheme: dark", "max-width: 34rem", "print"):
        assert re.search(rf"@media \(?{media}", text)


def test_every_colour_that_a_chart_uses_is_defined_for_light_and_dark():
    text = full("plain").html()
    for name in set(re.findall(r"var\((--[a-z0-9]+)\)", text)):
        assert len(re.findall(rf"{name}: #", text)) >= 3, f"{name}: light, dark and print"


def test_three_headings_make_a_list_of_contents_that_leads_to_them():
    tree = Tree(full("plain").html())
    targets = [attrs["href"][1:] for attrs in tree.all("a")]
    assert targets == [attrs["id"] for attrs in tree.all("h2")]
    assert Tree(Report("t").heading("one").html()).all("nav") == []


def test_equal_reports_are_equal_files():
    assert full("plain").html() == full("plain").html()


def test_it_is_written_whole(tmp_path):
    full("é").write(tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text(encoding="utf-8") == full("é").html()
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def decoded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_photographs_become_jpeg_and_flat_pictures_exact_png():
    assert decoded(embed(photo())[0]).format == "JPEG"
    flat = np.zeros((5, 7), np.uint8)
    flat[2] = 200
    uri, size = embed(flat)
    assert size == (7, 5)
    assert np.array_equal(np.asarray(decoded(uri)), flat)


def test_transparency_is_kept():
    clear = Image.new("RGBA", (3, 3), (1, 2, 3, 4))
    assert decoded(embed(clear)[0]).getpixel((0, 0)) == (1, 2, 3, 4)


def test_a_png_or_jpeg_file_is_embedded_byte_for_byte_and_others_are_converted(tmp_path):
    for kind in ("png", "jpeg"):
        path = tmp_path / f"a.{kind}"
        Image.fromarray(photo()).save(path)
        uri, size = embed(path)
        assert size == (32, 24)
        assert base64.b64decode(uri.split(",")[1]) == path.read_bytes()
    Image.fromarray(photo()).save(tmp_path / "a.tiff")
    assert decoded(embed(str(tmp_path / "a.tiff"))[0]).format == "JPEG"


def test_what_is_no_picture_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no picture at .*gone\.png"):
        embed(tmp_path / "gone.png")
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(DataError, match=r"a\.png is no picture"):
        embed(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a picture is \(4, 4, 3\) float64, expected"):
        embed(np.zeros((4, 4, 3)))  # type: ignore[arg-type]


def cells(report):
    return re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", report.html())


def test_numbers_in_a_column_line_up_and_small_ones_are_not_lost():
    rows = [{"m": "a", "p": 0.5}, {"m": "b", "p": 0.0312}, {"m": "c", "p": 1e-9}, {"m": "d"}]
    shown = cells(Report("t").table(rows, ["m", "p"]))
    assert shown == ["m", "p", "a", "0.5000", "b", "0.0312", "c", "1e-09", "d", ""]


def test_values_of_any_kind_are_shown_as_a_reader_wants_them():
    shown = cells(
        Report("t").table(
            [{"a": "x", "b": True, "c": None, "d": float("nan"), "e": np.int64(12_345)}],
            ["a", "b", "c", "d", "e"],
        )
    )
    assert shown[5:] == ["x", "yes", "", "n/a", "12345"]


def test_a_caption_does_not_scroll_away_with_its_table():
    shown = Report("t").table([{"a": 1}], ["a"], "what <it> is").html()
    caption, table = (
        shown.index("<figcaption>what &lt;it&gt; is<"),
        shown.index('<div class="scroll"'),
    )
    assert caption < table < shown.index("<table>")
    assert 'aria-label="what &lt;it&gt; is"' in shown


def test_a_column_that_no_row_has_is_refused():
    with pytest.raises(DataError, match=r"no row has a column \['c'\], expected some of \['a'\]"):
        Report("t").table([{"a": 1}], ["a", "c"])
    with pytest.raises(DataError, match="no row has a column"):
        Report("t").table([{"a": 1}], [])


def test_a_table_without_rows_shows_its_header():
    assert cells(Report("t").table([], ["a", "b"])) == ["a", "b"]
