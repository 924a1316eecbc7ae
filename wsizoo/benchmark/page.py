"""benchmark.html: the table of a benchmark with its charts, in one file."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence

from wsizoo.benchmark.compare import FACTS, Result
from wsizoo.benchmark.results import Row, shown
from wsizoo.benchmark.tables import cells
from wsizoo.measures.names import MAIN, title
from wsizoo.viz.comparison import interval_plot, rank_plot
from wsizoo.viz.page import page, wide_table

REPORT = "report.html"  # of a cell


def benchmark_page(
    rows: Sequence[Row],
    task: str,
    failures: Sequence[tuple[str, str]],
    told: str,
    made: Mapping[str, str] | None = None,
    runs: Sequence[Result] = (),
) -> str:
    """The page.

    Args:
        failures: (cell, reason) of those that failed. told: one line on what was run.
        made: what was run, by name, as `told_of` has it. runs: those that finished, whose reports
            are linked.
    """
    results, *costs = _tables(rows, task)
    body = [
        "<h1>Benchmark</h1>",
        f'<p class="subtitle">{html.escape(told)}</p>',
        results,
        *_charts(rows, MAIN[task]),
        *costs,
        *_failures(failures),
        *(["<h2>What was run</h2>", _facts(made.items())] if made else []),
        *_runs(runs, MAIN[task]),
        "<h2>How to read it</h2>",
        *(f"<p>{html.escape(text)}</p>" for text in HOW),
    ]
    return page("Benchmark", "\n".join(body))


HOW = (
    "Mean and standard deviation (n - 1) are over folds and seeds. The interval is of that mean "
    "with the patients of all test parts drawn anew: the spread that other patients would give, "
    "which the standard deviation over seeds does not show. It may leave out the mean, and there "
    "is none (-) where no draw changes it: of a C-index or Dice of 1, say.",
    "p compares with the first row: DeLong's test of two AUCs of one run each, else a paired "
    "bootstrap of patients; Holm's correction. The best row was chosen on the same data, so p is a "
    "guide.",
    "Rank is the mean over folds and seeds. Every run had one thread of a processor, or the GPU.",
)


def _tables(rows: Sequence[Row], task: str) -> list[str]:
    """What was found, and what it cost: as one table they would be wider than a screen."""
    lines = cells(rows, task, "±", html.escape, lambda text: f"<strong>{text}</strong>")
    named, end = 2, -len(FACTS)
    costs = [[*line[:named], *line[end:]] for line in lines]
    return [
        _table([line[:end] for line in lines], "Results on the test parts"),
        "<h2>Cost</h2>",
        _table(costs, "Means over runs; ms per slide is the forward pass, peak MB the process"),
    ]


def _table(lines: Sequence[Sequence[str]], caption: str) -> str:
    head, *body = lines
    body = [[*row[:2], *(text.replace(" ", "&nbsp;") for text in row[2:])] for row in body]
    told = "".join(f'<th scope="col"{_side(i)}>{text}</th>' for i, text in enumerate(head))
    shown = "\n".join(
        "<tr>" + "".join(f"<td{_side(i)}>{text}</td>" for i, text in enumerate(row)) + "</tr>"
        for row in body
    )
    table = f"<table><thead><tr>{told}</tr></thead><tbody>\n{shown}\n</tbody></table>"
    return wide_table(table, caption)


def _side(column: int) -> str:
    return "" if column < 2 else ' class="number"'


def _charts(rows: Sequence[Row], main: str) -> list[str]:
    """Intervals and ranks of the rows that have them."""
    known = [row for row in rows if math.isfinite(row.mean(main))]
    names = {id(row): _name(row, known) for row in known}
    charts = []
    if known:
        bars = [(names[id(row)], *_bar(row, main)) for row in known]
        points = {names[id(row)]: row.values[main] for row in known}
        plot = interval_plot(bars, title(main), points=points)
        caption = "Large: mean over runs, with its interval. Small: single runs."
        charts += [
            f"<h2>{html.escape(title(main))}</h2>",
            f"<figure>{plot}<figcaption>{caption}</figcaption></figure>",
        ]
    ranked = [row for row in known if row.rank is not None]
    if len(ranked) > 1:
        plot = rank_plot(
            [names[id(row)] for row in ranked],
            [row.rank or 1.0 for row in ranked],
            each=[row.ranks for row in ranked],
        )
        charts += ["<h2>Ranks</h2>", f"<figure>{plot}</figure>"]
    return charts


def _bar(row: Row, main: str) -> tuple[float, float | None, float | None]:
    """Value and interval as the chart takes them; the value may lie outside."""
    if row.low is None or row.high is None or not math.isfinite(row.low + row.high):
        return row.mean(main), None, None
    return row.mean(main), row.low, row.high


def _name(row: Row, rows: Sequence[Row]) -> str:
    """The model's, with its features where there are several sets."""
    several = len({each.features for each in rows}) > 1
    return f"{row.model}, {row.features}" if several else row.model


def _failures(failures: Sequence[tuple[str, str]]) -> list[str]:
    if not failures:
        return []
    return ["<h2>Runs that failed</h2>", _facts(failures)]


def _facts(pairs: Iterable[tuple[str, str]]) -> str:
    items = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in pairs
    )
    return f'<dl class="facts">{items}</dl>'


def _runs(results: Sequence[Result], main: str) -> list[str]:
    """Each run with its main measure and a link to its report, which has all others."""
    if not results:
        return []
    lines = [["Model", "Features", "Fold", "Seed", html.escape(title(main))]]
    for result in results:
        cell = result.cell
        link = f'<a href="cells/{cell.folder}/{REPORT}">{html.escape(cell.model)}</a>'
        ends = [str(cell.fold), str(cell.seed), shown(result.value)]
        lines.append([link, html.escape(cell.features), *ends])
    return ["<h2>Runs</h2>", _table(lines, "Each run; its own report has all its measures")]
