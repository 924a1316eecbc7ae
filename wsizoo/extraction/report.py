"""The report of a cohort: extract.csv, a row a slide; extract.html, which shows what stands out.

Jobs that share a folder share the report: each adds its rows under a lock.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from wsizoo.errors import DataError
from wsizoo.extraction.job import Extracted
from wsizoo.files import locked, write_csv
from wsizoo.viz.report import Report

TABLE, PAGE = "extract.csv", "extract.html"
COLUMNS = [field.name for field in fields(Extracted)]
FEW_PATCHES = 10
FAR = (
    3.5  # modified z-score beyond which a number of patches stands out (Iglewicz and Hoaglin 1993)
)
ENOUGH = 8  # slides; of fewer none stands out
SCALE_ERROR = 1e-3
MUCH_BEYOND = 0.05  # of the tissue
PATIENCE = 60.0  # s to wait for other jobs that write the report

Row = Mapping[str, Any]


def write_report(out: Path, results: Sequence[Extracted]) -> None:
    """Write both files; rows of earlier calls, and of other shards, are kept.

    Raises:
        DataError: another process holds the report for a minute, or the disk does not take it.
    """
    try:
        with locked(out / TABLE, PATIENCE):
            rows = {str(row["slide_id"]): row for row in read_rows(out / TABLE)}
            rows |= {result.slide_id: _text(vars(result)) for result in results}
            ordered = [rows[name] for name in sorted(rows)]
            write_csv(out / TABLE, ordered, COLUMNS)
            page(ordered).write(out / PAGE)
    except OSError as error:
        raise DataError(
            f"the report '{out / TABLE}' cannot be written: {error}. Feature files are not touched"
        ) from error


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a report, as text; none where it is missing, or no report."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if set(row) == set(COLUMNS)]
    except (OSError, ValueError, csv.Error):
        return []


@dataclass(frozen=True)
class Finding:
    """Something to look at: a slide and why."""

    slide_id: str
    why: str


def findings(rows: Sequence[Row]) -> list[Finding]:
    """Slides that were done but stand out."""
    found = []
    done = [row for row in rows if row["state"] != "failed"]
    logs = [math.log1p(_number(row["patches"])) for row in done]
    middle = statistics.median(logs) if logs else 0.0
    spread = statistics.median([abs(value - middle) for value in logs]) if logs else 0.0
    for row, value in zip(done, logs, strict=True):
        for why in _reasons(row, value - middle, spread, len(logs), math.expm1(middle)):
            found.append(Finding(str(row["slide_id"]), why))
    return found


def _reasons(row: Row, away: float, spread: float, n: int, usual: float) -> list[str]:
    why, patches = [], int(_number(row["patches"]))
    far = n >= ENOUGH and spread > 0 and 0.6745 * abs(away) > FAR * spread
    if far or patches < FEW_PATCHES:
        more = "many" if away > 0 else "few"
        why.append(f"{more} patches: {patches}, usual here are {usual:.0f}")
    if unreadable := int(_number(row["unreadable"])):
        why.append(f"{unreadable} patches could not be decoded: the file is damaged in places")
    if (beyond := _number(row["beyond_grid"])) > MUCH_BEYOND:
        why.append(
            f"{beyond * 100:.0f} % of the tissue is at the right and bottom edge, where no whole "
            "patch fits: it is not read. --pad takes patches there too, smaller ones reach further "
            "(--patch-size)"
        )
    if _number(row["scale_error"]) > SCALE_ERROR:
        why.append(f"patches are off scale by {_number(row['scale_error']) * 100:.2g} %")
    if str(row["mpp_source"]).startswith("objective"):
        why.append(f"um/px only nominal: {_number(row['mpp']):g} from its {row['mpp_source']}")
    return why


def page(rows: Sequence[Row]) -> Report:
    """The page of a cohort's rows."""
    failed = [row for row in rows if row["state"] == "failed"]
    done = [row for row in rows if row["state"] != "failed"]
    patches = [int(_number(row["patches"])) for row in done]
    title = f"{len(done)} of {len(rows)} slides have features"
    report = Report("Extraction", title)
    report.facts(
        {
            "Slides": f"{len(rows)}, {len(failed)} failed",
            "Patches": f"{sum(patches)} in all"
            + (f", {min(patches)} to {max(patches)} a slide" if patches else ""),
            "Microns per px": ", ".join(_counted(str(row["mpp_source"]) for row in done)),
            "Largest scale error": _percent(
                max((_number(row["scale_error"]) for row in done), default=0.0)
            ),
            "Unreadable patches": sum(int(_number(row["unreadable"])) for row in rows),
        }
    )
    if failed:
        report.heading(f"Failed: {len(failed)}")
        report.table(
            [{"slide": row["slide_id"], "reason": row["reason"]} for row in failed],
            ["slide", "reason"],
        )
    if found := findings(rows):
        report.heading(f"To look at: {len(found)}")
        report.table([{"slide": f.slide_id, "why": f.why} for f in found], ["slide", "why"])
    if len(patches) >= ENOUGH:
        report.heading("Patches per slide")
        report.histogram(patches, "patches per slide")
    report.heading("All slides")
    if rows:
        report.table([_shown(row) for row in rows], list(_shown(rows[0])))
    return report


def _shown(row: Row) -> dict[str, Any]:
    failed = row["state"] == "failed"
    return {
        "slide": row["slide_id"],
        "state": row["state"],
        "patches": None if failed else int(_number(row["patches"])),
        "tissue": None if failed else _percent(_number(row["tissue"])),
        "um/px": None if failed else f"{_number(row['mpp']):.4g}",
        "from": None if failed else row["mpp_source"],
        "scale error": None if failed else _percent(_number(row["scale_error"])),
        "seconds": _number(row["seconds"]),
    }


def _percent(share: float) -> str:
    return f"{share * 100:.2g} %"


def _counted(values: Any) -> list[str]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return [f"{value} ({n})" for value, n in sorted(counts.items())]


def _text(row: Row) -> dict[str, str]:
    """A row as it comes back from the file."""
    return {name: "" if value is None else str(value) for name, value in row.items()}


def _number(text: Any) -> float:
    return float(text) if text not in ("", None) else 0.0
