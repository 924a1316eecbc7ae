"""A report as one HTML file that holds all it shows: no script, no network, nothing beside it."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from wsizoo.errors import DataError
from wsizoo.files import write_text
from wsizoo.viz.charts import Bar, Curve, bar_chart, curve_chart, histogram_chart, roc_chart
from wsizoo.viz.page import page, wide_table
from wsizoo.viz.svg import shared_decimals

Picture = NDArray[np.uint8] | Image.Image | Path | str

JPEG_QUALITY = 88
MISSING = "-"  # in a column of numbers
FEW_COLOURS = 256  # up to so many, PNG is smaller and exact
EMBEDDED_AS_IS = {"JPEG": "image/jpeg", "PNG": "image/png"}


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than a value.

    Args:
        text: what stands there. beside: a file it links to, relative to the report.
        marked: whether to point at it.
    """

    text: str
    beside: str = ""
    marked: bool = False

    def html(self) -> str:
        """The text with its link and mark."""
        shown = _link(self.text, self.beside) if self.beside else html.escape(self.text)
        return f"<strong>{shown}</strong>" if self.marked else shown


class Report:
    """Sections in the order they are added; every text is escaped, every method returns self.

    Args:
        title: of the page. subtitle: one line under it.

    A new kind of chart needs no new method here: `figure(svg, caption)` takes any drawing of
    `wsizoo.viz.svg`.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self._sections: list[str] = []
        self._headings: list[str] = []

    def heading(self, text: str) -> Self:
        """Begin a section; from three on, the page opens with links to them."""
        self._headings.append(text)
        return self._add(f'<h2 id="part-{len(self._headings)}">{html.escape(text)}</h2>')

    def text(self, text: str) -> Self:
        """Plain text; an empty line begins a new paragraph."""
        for paragraph in text.split("\n\n"):
            if paragraph.strip():
                self._add(f"<p>{html.escape(paragraph.strip())}</p>")
        return self

    def files(self, files: Mapping[str, str]) -> Self:
        """Links to files beside the report: what they are called -> relative path."""
        links = ", ".join(_link(name, path) for name, path in files.items())
        return self._add(f"<p>{links}</p>")

    def code(self, text: str) -> Self:
        """Commands or code, line by line as they stand."""
        return self._add(f'<pre class="scroll"><code>{html.escape(text.strip())}</code></pre>')

    def facts(self, facts: Mapping[str, Any]) -> Self:
        """Names and values, two columns."""
        pairs = (
            f"<dt>{html.escape(str(key))}</dt><dd>{html.escape(_shown(value))}</dd>"
            for key, value in facts.items()
        )
        return self._add(f'<dl class="facts">{"".join(pairs)}</dl>')

    def table(
        self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], caption: str = ""
    ) -> Self:
        """One row a mapping; a missing value is an empty cell. The first column names the row.

        Values are numbers, texts or `Cell`s.

        Raises:
            DataError: no column, or a column that no row has.
        """
        unknown = [c for c in columns if rows and not any(c in row for row in rows)]
        if unknown or not columns:
            raise DataError(
                f"table {caption!r}: no row has a column {unknown}, expected some of "
                f"{sorted({str(key) for row in rows for key in row})}"
            )
        numeric = [c for c in columns if _is_numeric([row.get(c) for row in rows])]
        head = "".join(
            f'<th scope="col"{_align(c in numeric)}>{html.escape(c)}</th>' for c in columns
        )
        decimals = {c: _decimals([row.get(c) for row in rows]) for c in numeric}
        body = "".join(f"<tr>{_cells(row, columns, decimals)}</tr>\n" for row in rows)
        table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
        return self._add(wide_table(table, caption))

    def image(self, image: Picture, caption: str, width: int | None = None) -> Self:
        """A picture, embedded.

        Args:
            image: (h, w, 3) or (h, w) uint8, a PIL image, or a file; a PNG or JPEG file is
                embedded as it is.
            caption: under it, and read out in its place.
            width: largest width shown, CSS px; never wider than the page.
        """
        return self._add(_figure(_img(image, caption, width), caption))

    def gallery(self, items: Sequence[tuple[Picture, str]]) -> Self:
        """Small pictures side by side, (image, caption) each."""
        cells = "".join(
            f"<li>{_figure(_img(image, caption, None), caption)}</li>" for image, caption in items
        )
        return self._add(f'<ul class="gallery">{cells}</ul>')

    def pictures(self, items: Sequence[tuple[Picture, str]], width: int) -> Self:
        """Pictures to read, (image, caption) each: as wide as said, side by side where that fits.

        Args:
            width: largest width shown, CSS px.
        """
        return self.pair([(_img(image, caption, width), caption) for image, caption in items])

    def figure(self, drawing: str, caption: str = "") -> Self:
        """A drawing as made by `Drawing.svg()`, trusted as it is."""
        return self._add(_figure(drawing, caption))

    def pair(self, drawings: Sequence[tuple[str, str]]) -> Self:
        """Drawings that belong together, (drawing, caption) each: side by side where that fits."""
        figures = "".join(_figure(drawing, caption) for drawing, caption in drawings)
        return self._add(f'<div class="pair">{figures}</div>')

    def roc(self, curves: Sequence[Curve], caption: str = "") -> Self:
        """ROC curves: (name, fpr, tpr, auc) each."""
        return self.figure(roc_chart(curves), caption)

    def bars(self, rows: Sequence[Bar], label: str, caption: str = "") -> Self:
        """Bars: (name, value, low, high) each; low and high the ends of an interval, or None."""
        return self.figure(bar_chart(rows, label), caption)

    def histogram(self, values: Sequence[float], label: str, caption: str = "") -> Self:
        """How often which value is met."""
        return self.figure(histogram_chart(values, label), caption)

    def curve(
        self,
        name: str,
        xs: Sequence[float],
        series: Mapping[str, Sequence[float | None]],
        x_label: str = "Epoch",
        caption: str = "",
    ) -> Self:
        """Lines over one x axis: name -> values; None or NaN leaves a gap."""
        return self.figure(curve_chart(name, xs, series, x_label), caption)

    def html(self) -> str:
        """The whole document; equal reports give equal text."""
        subtitle = f'<p class="subtitle">{html.escape(self.subtitle)}</p>' if self.subtitle else ""
        head = f"<header>\n<h1>{html.escape(self.title)}</h1>\n{subtitle}\n</header>"
        return page(self.title, "\n".join([head, self._contents(), *self._sections]))

    def write(self, path: Path | str) -> None:
        """Write the document; nobody ever sees half of it."""
        write_text(path, self.html())

    def _add(self, section: str) -> Self:
        self._sections.append(section)
        return self

    def _contents(self) -> str:
        if len(self._headings) < 3:
            return ""
        links = (
            f'<li><a href="#part-{i}">{html.escape(text)}</a></li>'
            for i, text in enumerate(self._headings, 1)
        )
        return f'<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>'


def embed(image: Picture) -> tuple[str, tuple[int, int]]:
    """A picture as a data URI, and its size (width, height), px.

    Raises:
        DataError: no such file, no picture in it, or an array of another shape or type.
    """
    if isinstance(image, str | Path):
        return _embed_file(Path(image))
    picture = image if isinstance(image, Image.Image) else _picture(np.asarray(image))
    if picture.mode not in ("RGB", "L"):
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    buffer = io.BytesIO()
    if picture.mode == "RGBA" or picture.getcolors(FEW_COLOURS) is not None:
        picture.save(buffer, "PNG", optimize=True)
        return _uri("image/png", buffer.getvalue()), picture.size
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
    return _uri("image/jpeg", buffer.getvalue()), picture.size


def _embed_file(path: Path) -> tuple[str, tuple[int, int]]:
    try:
        with Image.open(path) as picture:
            kind = EMBEDDED_AS_IS.get(picture.format or "")
            if kind is None:
                picture.load()
                return embed(picture.copy())
            return _uri(kind, path.read_bytes()), picture.size
    except FileNotFoundError:
        raise DataError(f"no picture at {path}, expected a PNG, JPEG or TIFF file") from None
    except UnidentifiedImageError:
        raise DataError(f"{path} is no picture, expected a PNG, JPEG or TIFF file") from None


def _picture(array: NDArray[Any]) -> Image.Image:
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if not shaped or array.dtype != np.uint8 or array.size == 0:
        raise DataError(
            f"a picture is {array.shape} {array.dtype}, expected (h, w, 3) or (h, w) uint8"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _img(image: Picture, caption: str, width: int | None) -> str:
    uri, (w, h) = embed(image)
    style = "" if width is None else f' style="width: {int(width)}px"'
    return f'<img src="{uri}" alt="{html.escape(caption)}" width="{w}" height="{h}"{style}>'


def _figure(content: str, caption: str) -> str:
    under = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{content}{under}</figure>"


def _shown(value: Any) -> str:
    """A value as a reader wants it: floats to four digits, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float | np.floating):
        return f"{float(value):.4g}" if math.isfinite(value) else "n/a"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return str(value)


def _is_numeric(values: Sequence[Any]) -> bool:
    known = [value for value in values if value not in (None, MISSING)]
    kinds = (int, float, np.integer, np.floating)
    return bool(known) and all(isinstance(v, kinds) and not isinstance(v, bool) for v in known)


def _decimals(values: Sequence[Any]) -> int:
    """How many make four digits of a column's largest float, so that its points line up."""
    return shared_decimals((float(v) for v in values if isinstance(v, float | np.floating)), 4)


def _aligned(value: Any, decimals: int) -> str:
    """A number of a column; what its decimals would round away keeps two digits."""
    if not isinstance(value, float | np.floating) or not math.isfinite(value):
        return _shown(value)
    if value and abs(value) < 0.5 * 10**-decimals:
        return f"{float(value):.2g}"
    return f"{float(value):.{decimals}f}"


def _align(numeric: bool) -> str:
    return ' class="number"' if numeric else ""


def _cells(row: Mapping[str, Any], columns: Sequence[str], decimals: Mapping[str, int]) -> str:
    cells = []
    for i, column in enumerate(columns):
        tag, scope = ("th", ' scope="row"') if i == 0 else ("td", "")
        value = row.get(column)
        text = _aligned(value, decimals[column]) if column in decimals else _shown(value)
        inner = value.html() if isinstance(value, Cell) else html.escape(text)
        cells.append(f"<{tag}{scope}{_align(column in decimals)}>{inner}</{tag}>")
    return "".join(cells)


def _link(text: str, path: str) -> str:
    """To a file beside the report; no name of a file can become another kind of address."""
    return f'<a href="{html.escape(quote(path))}">{html.escape(text)}</a>'
