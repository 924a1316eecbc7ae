"""The pages of an evaluation: Markdown, csv and JSON, with the file's digest and its defects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wsizoo.files import write_csv, write_json, write_text
from wsizoo_plugin_sparselearn.vlm.answers import parse_letter
from wsizoo_plugin_sparselearn.vlm.asking import SLIDE
from wsizoo_plugin_sparselearn.vlm.evaluation import ALL, Evaluation, Line
from wsizoo_plugin_sparselearn.vlm.formats import facts_of
from wsizoo_plugin_sparselearn.vlm.readings import CLOSED, DIFFLIB

RELEASED = (
    "On the released test file of WSI-VQA (390 closed questions) `wsi_vqa_difflib` is 1.00 for the "
    "empty output, 0.49 for the output 'a', 0.28 for always the first choice; the most frequent "
    "position is right in 0.39."
)
COLUMNS = (
    "group",
    "value",
    "given",
    "reading",
    "n",
    "patients",
    "measure",
    "low",
    "high",
    "method",
)


def write_report(evaluation: Evaluation, out: Path) -> str:
    """report.md, table.csv, report.json, and answers.csv with a row a question; the Markdown."""
    text = markdown(evaluation)
    write_text(out / "report.md", text)
    write_csv(out / "table.csv", [_row(line) for line in evaluation.lines], COLUMNS)
    write_json(out / "report.json", as_json(evaluation))
    rows = _answers(evaluation)
    write_csv(out / "answers.csv", rows, list(dict.fromkeys(k for row in rows for k in row)))
    return text


def markdown(evaluation: Evaluation) -> str:
    """What was asked, which file it was, one table by category, one of the controls."""
    file, lines = evaluation.file, evaluation.lines
    asked = len({each.row for each in evaluation.records})
    whose = f"questions answered by `{evaluation.model}`, of {evaluation.patients} patients"
    own = [line for line in lines if line.given == SLIDE]
    controls = [line for line in lines if line.group == ALL]
    parts = [
        f"# {file.format}\n",
        f"- {asked} {whose}",
        *(f"- {told}" for told in [*facts_of(file.path, file.questions), *evaluation.notes]),
        "\nShares with 95 % intervals by bootstrap of patients. An answer that names no option, or "
        "several, is unparsable and counts as wrong.\n",
        *_tables(own, ("group", "value"), ("", ""), "by category"),
        *_tables(controls, ("given",), ("answered with",), "and controls"),
        *(
            f"- {name}: its slide against no slide {d.value:+.3f} ({d.low:+.3f} to {d.high:+.3f})"
            for name, d in evaluation.differences.items()
        ),
    ]
    if any(line.reading == DIFFLIB for line in lines):
        parts.append(f"\n{RELEASED}")
    return "\n".join(parts) + "\n"


def _tables(
    lines: Sequence[Line], keys: tuple[str, ...], heads: tuple[str, ...], what: str
) -> list[str]:
    """One of closed questions, one of open ones, as there are."""
    closed = [line for line in lines if line.reading in CLOSED]
    open_ones = [line for line in lines if line.reading not in CLOSED]
    named = {"Closed": closed, "Open": open_ones}
    return [
        f"## {name} questions, {what}\n\n{_table(own, keys, heads)}"
        for name, own in named.items()
        if own
    ]


def _table(lines: Sequence[Line], keys: tuple[str, ...], heads: tuple[str, ...]) -> str:
    """A row for each value of the keys, a column a reading; n of the reading that has most."""
    readings = list(dict.fromkeys(line.reading for line in lines))
    rows: dict[tuple[str, ...], dict[str, Line]] = {}
    for line in lines:
        rows.setdefault(tuple(getattr(line, key) for key in keys), {})[line.reading] = line
    head = [*heads, "n", *readings]
    body = [
        [
            *key,
            str(max(line.measured.n for line in named.values())),
            *(str(named[name].measured) if name in named else "" for name in readings),
        ]
        for key, named in rows.items()
    ]
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    rule = ["-" * width for width in widths]
    return "".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |\n"
        for row in [head, rule, *body]
    )


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """All of it but the answers; NaN is None."""
    file = evaluation.file
    told = {"name": file.path.name, "format": file.format, "sha256": file.sha256}
    return {
        "questions": {**told, "rows": len(file.questions)},
        "model": evaluation.model,
        "answered": len({each.row for each in evaluation.records}),
        "patients": evaluation.patients,
        "slides_without_features": evaluation.missing,
        "defects": [{"what": each.what, "ids": list(each.ids)} for each in evaluation.defects],
        "measures": [{k: v for k, v in _row(line).items() if v != ""} for line in evaluation.lines],
        "its_slide_minus_no_slide": {
            name: {k: _or_none(v) for k, v in asdict(each).items()}
            for name, each in evaluation.differences.items()
        },
        "notes": evaluation.notes,
    }


def _or_none(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _row(line: Line) -> dict[str, Any]:
    """A line for csv; a bound that is not defined is an empty cell."""
    one = line.measured
    numbers = {"measure": one.value, "low": one.low, "high": one.high}
    return {
        "group": line.group,
        "value": line.value,
        "given": line.given,
        "reading": line.reading,
        "n": one.n,
        "patients": one.patients,
        **{k: "" if math.isnan(v) else v for k, v in numbers.items()},
        "method": one.method,
    }


def _answers(evaluation: Evaluation) -> list[dict[str, Any]]:
    """A row an answer, `Output` as the official tester of SlideBench names it."""
    found = []
    for record in evaluation.records:
        question = evaluation.file.questions[record.row]
        told = {"ID": question.id, "Slide": question.slide, "given": record.given}
        scored = record.scores or {}
        likely = max(scored, key=scored.__getitem__, default="")
        said = record.output or ""
        parsed = parse_letter(said, question.options) if question.options else None
        scores = {f"log p {letter}": value for letter, value in scored.items()}
        answer = {"Answer": question.answer, "Output": said, "parsed": parsed or ""}
        found.append({**told, **answer, "likeliest": likely, **scores})
    return found
