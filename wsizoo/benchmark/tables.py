"""The table of a benchmark in Markdown, LaTeX and CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wsizoo.benchmark.cells import Outcome
from wsizoo.benchmark.compare import FACTS, Result
from wsizoo.benchmark.results import Row, shown
from wsizoo.files import write_csv, write_text
from wsizoo.measures.names import BESIDE, MAIN, title

NEEDS = r"% \usepackage{booktabs}  % \toprule, \midrule, \bottomrule"
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "²": "$^2$",
    "[": "{[}",  # after the end of a row these two would be read as belonging to it
    "*": "{*}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
Style = Callable[[str], str]


def write_tables(out: Path, rows: Sequence[Row], task: str) -> None:
    """table.md, table.tex and table.csv."""
    write_text(out / "table.md", markdown(rows, task))
    write_text(out / "table.tex", latex(rows, task))
    metrics = list(dict.fromkeys(name for row in rows for name in row.values))
    records = [record(row, metrics, task) for row in rows]
    columns = list(dict.fromkeys(name for each in records for name in each))
    write_csv(out / "table.csv", records, columns)


def markdown(rows: Sequence[Row], task: str) -> str:
    """A table of GitHub's Markdown, the best in bold."""
    head, *body = cells(rows, task, "±", _markdown, lambda text: f"**{text}**")
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(rows: Sequence[Row], task: str) -> str:
    """A `tabular` with the rules of booktabs, the best in bold; `\\input` takes it as it is.

    Characters outside ASCII, of names, need a LaTeX that reads UTF-8, as all since 2018 do.
    """
    head, *body = cells(rows, task, r"$\pm$", _latex, lambda text: rf"\textbf{{{text}}}")
    columns = "ll" + "r" * (len(head) - 2)
    top, *others = (" & ".join(line) + r" \\" for line in (head, *body))
    lines = [NEEDS, rf"\begin{{tabular}}{{{columns}}}", r"\toprule", top, r"\midrule", *others]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def cells(
    rows: Sequence[Row], task: str, plus_minus: str, escaped: Style, bold: Style
) -> list[list[str]]:
    """The table as text, its head first.

    Args:
        escaped: what makes any text safe. bold: what makes safe text bold.
    """
    main = MAIN[task]
    others = [name for name in BESIDE[task] if any(name in row.values for row in rows)]
    head = ["model", "features", "runs", title(main), "95 % interval", "p"]
    head += [*(title(name) for name in others), "rank"]
    head += ["parameters", "training s", "ms per slide", "peak MB"]
    body = []
    for row in rows:
        mark = bold if row.best else str
        body.append(
            [
                mark(escaped(row.model)),
                escaped(row.features),
                str(row.finished)
                if row.finished == row.asked
                else f"{row.finished} of {row.asked}",
                mark(mean_std(row, main, plus_minus)),
                interval(row),
                escaped(p_text(row)),
                *(mean_std(row, name, plus_minus) for name in others),
                shown(row.rank, 2),
                *fact_texts(row),
            ]
        )
    return [[escaped(text) for text in head], *body]


def mean_std(row: Row, metric: str, plus_minus: str = "±") -> str:
    """`0.912 ± 0.034`; without the second where there is one run."""
    mean, std = shown(row.mean(metric)), shown(row.std(metric))
    return mean if std == "-" else f"{mean} {plus_minus} {std}"


def p_text(row: Row) -> str:
    """Of the difference from the best."""
    if row.p is None:
        return "-"
    return "< 0.001" if row.p < 0.001 else f"{row.p:.3f}"


def fact_texts(row: Row) -> list[str]:
    """Parameters, training s, ms a slide, peak MB."""
    values = [row.facts.get(name) for name in FACTS]
    return [shown(value, decimals) for value, decimals in zip(values, (0, 1, 1, 0), strict=True)]


def record(row: Row, metrics: Sequence[str], task: str) -> dict[str, Any]:
    """A row of table.csv, whole numbers; empty where there is none."""
    told: dict[str, Any] = {
        "model": row.model,
        "features": row.features,
        "runs": row.finished,
        "asked": row.asked,
        "best": int(row.best),
    }
    for name in metrics:
        told |= {f"{name}_mean": _known(row.mean(name)), f"{name}_std": _known(row.std(name))}
    main = MAIN[task]
    told |= {f"{main}_low": _known(row.low), f"{main}_high": _known(row.high)}
    told |= {"p": _known(row.p), "rank": _known(row.rank)}
    return told | {name: _known(row.facts.get(name)) for name in FACTS}


def result_records(outcomes: Sequence[Outcome], results: Sequence[Result]) -> list[dict[str, Any]]:
    """Rows of results.csv: a cell each, with its reason where it failed."""
    found = {result.cell.folder: result for result in results}
    records = []
    for outcome in outcomes:
        cell, result = outcome.cell, found.get(outcome.cell.folder)
        numbers = {**result.metrics, **result.facts} if result else {}
        records.append(
            {
                "model": cell.model,
                "features": cell.features,
                "fold": cell.fold,
                "seed": cell.seed,
                "state": "failed" if result is None else "finished",
                "folder": f"cells/{cell.folder}",
                "reason": outcome.reason,
                "recipe": Path(cell.config.recipe or "").stem,
                **(result.digests if result else {}),
                **{name: _known(value) for name, value in numbers.items()},
            }
        )
    return records


def interval(row: Row) -> str:
    """Of the main measure, or "-"."""
    low, high = shown(row.low), shown(row.high)
    return "-" if "-" in (low, high) else f"{low} to {high}"


def _known(value: float | None) -> float | str:
    return "" if value is None or not math.isfinite(value) else value


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))
