"""What is wrong with a split, and what to know of it before its numbers are believed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsizoo.splits.contents import Contents, Pair
from wsizoo.splits.files import Assigned, rows_of_names, split_digest
from wsizoo.splits.parts import PARTS
from wsizoo.splits.tables import SlideColumns

InParts = Mapping[int, Sequence[str]]  # row of the table -> the parts that it is in
LEAKS = ("slide-in-two-parts", "patient-in-two-parts", "same-content", "near-content")
"""Kinds of findings that make a test too good; they are told first."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Args:
        kind: such as "patient-in-two-parts"; the same word for the same thing. names: of slides or
            patients. told: a sentence. fold: if it is wrong in one fold of the split.
    """

    kind: str
    names: tuple[str, ...]
    told: str
    fold: int | None = None


@dataclass(frozen=True)
class Part:
    """One part of one fold.

    Args:
        classes: slides by label. sites: how many. shared_sites: of them, in other parts too.
        site_bias: Cramer's V, 0 to 1, of a patient's site and of being in this part; 1 if no site
            is shared. None where nothing tells sites, or all patients are in this part.
        site_p: chi-square probability of as much where parts are drawn without regard to sites.
    """

    fold: int
    part: str
    slides: int
    patients: int
    classes: dict[str, int]
    sites: int | None = None
    shared_sites: int | None = None
    site_bias: float | None = None
    site_p: float | None = None


@dataclass(frozen=True)
class Audit:
    """Of a split. digests: `split_digest` of each fold. sources: of patients and sites."""

    findings: list[Finding]
    parts: list[Part]
    digests: list[str]
    sources: dict[str, str]

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        """Every field, by name."""
        return {"clean": self.clean, **dataclasses.asdict(self)}


def audit_split(
    folds: Sequence[Assigned], columns: SlideColumns, contents: Contents | None = None
) -> Audit:
    """Hold a split to its table, and to the features of its slides.

    Args:
        folds: as `read_assigned` has them; they may name slides or patients.
        contents: of the feature files, to find slides that are two times the same.
    """
    findings = [*_slides_twice(columns), *_labels_that_disagree(columns)]
    parts: list[Part] = []
    digests: list[str] = []
    in_parts: list[InParts] = []
    for fold, assigned in enumerate(folds):
        found, missing = rows_of_names(
            [name for name, _ in assigned], columns.slides, columns.patients
        )
        where: dict[int, list[str]] = {}
        for part in PARTS:
            for row in {
                row for name, own in assigned if own == part for row in found.get(name, ())
            }:
                where.setdefault(row, []).append(part)
        findings += _of_fold(fold, where, missing, columns)
        parts += _parts(fold, where, columns)
        rows = [(columns.slides[row], part) for row, own in where.items() for part in own]
        digests.append(split_digest(rows))
        in_parts.append(where)
    if contents is not None:
        findings += _contents(contents, columns, in_parts)
    findings.sort(key=lambda finding: finding.kind not in LEAKS)
    return Audit(findings, parts, digests, dict(columns.sources))


def _slides_twice(columns: SlideColumns) -> Iterator[Finding]:
    for slide, count in Counter(columns.slides).items():
        if count > 1:
            yield Finding("slide-twice", (slide,), f"slide '{slide}' has {count} rows in the table")


def _labels_that_disagree(columns: SlideColumns) -> Iterator[Finding]:
    for column, values in columns.labels.items():
        of: dict[str, dict[str, str]] = {}  # patient -> label -> its first slide
        for slide, patient, value in zip(columns.slides, columns.patients, values, strict=True):
            of.setdefault(patient, {}).setdefault(value, slide)
        for patient, slides in of.items():
            if len(slides) > 1:
                shown = ", ".join(f"{value} ({slide})" for value, slide in sorted(slides.items()))
                told = f"patient '{patient}' has in column {column}: {shown}"
                yield Finding("labels-disagree", (patient,), told)


def _of_fold(
    fold: int, where: InParts, missing: Sequence[str], columns: SlideColumns
) -> Iterator[Finding]:
    """Names in two parts, or on one side only, and parts that nothing can be learnt from."""
    patients: dict[str, dict[str, str]] = {}  # patient -> part -> its first slide there
    for row in sorted(where):
        slide, parts = columns.slides[row], where[row]
        if len(parts) > 1:
            told = f"slide '{slide}' is in {' and '.join(parts)}"
            yield Finding("slide-in-two-parts", (slide,), told, fold)
        for part in parts:
            patients.setdefault(columns.patients[row], {}).setdefault(part, slide)
    for patient, slides in patients.items():
        if len(slides) > 1:
            shown = ", ".join(f"{part} ({slides[part]})" for part in PARTS if part in slides)
            told = f"patient '{patient}' is in {shown}"
            yield Finding("patient-in-two-parts", (patient,), told, fold)
    left = [slide for row, slide in enumerate(columns.slides) if row not in where]
    for kind, names, told in (
        ("not-in-table", missing, "named in the split, but not in the table"),
        ("not-in-split", left, "in the table, but in no part"),
    ):
        if names:
            yield Finding(kind, tuple(names), f"{told}: {_some(names)}", fold)
    yield from _classes(fold, where, columns)


def _classes(fold: int, where: InParts, columns: SlideColumns) -> Iterator[Finding]:
    labels = next(iter(columns.labels.values()), None)
    if labels is None:
        return
    by_part = {part: {labels[row] for row in where if part in where[row]} for part in PARTS}
    every = set().union(*by_part.values())
    for part, classes in by_part.items():
        lacks = sorted(every - classes)
        if len(classes) == 1 and lacks:
            told = f"the {part} part is of one class, '{min(classes)}'"
            yield Finding("one-class-part", (part,), told, fold)
        elif part == "train" and classes and lacks:
            told = f"class {_some(lacks)} is in another part, but not in the training part"
            yield Finding("untrained-class", tuple(lacks), told, fold)


def _parts(fold: int, where: InParts, columns: SlideColumns) -> Iterator[Part]:
    labels = next(iter(columns.labels.values()), None)
    for part in PARTS:
        rows = [row for row in where if part in where[row]]
        if not rows:
            continue
        classes = Counter(labels[row] for row in rows) if labels is not None else Counter()
        patients = {columns.patients[row] for row in rows}
        known = dict(sorted(classes.items()))
        of_sites = _sites(columns.sites, columns.patients, where, part) if columns.sites else {}
        yield Part(fold, part, len(rows), len(patients), known, **of_sites)


def _sites(
    sites: Sequence[str], patients: Sequence[str], where: InParts, part: str
) -> dict[str, Any]:
    """Fields of `Part` about sites; each patient counts once in a part."""
    from scipy.stats import chi2_contingency

    inside, outside = (
        Counter({(patients[row], sites[row]) for row in where if (part in where[row]) is side})
        for side in (True, False)
    )
    ours, others = (Counter(site for _, site in pairs) for pairs in (inside, outside))
    names = sorted({*ours, *others})
    told: dict[str, Any] = {"sites": len(ours), "shared_sites": len({*ours} & {*others})}
    if len(names) > 1 and others:
        table = np.array([[ours[name], others[name]] for name in names])
        found = chi2_contingency(table, correction=False)
        told["site_bias"] = float(np.sqrt(found.statistic / table.sum()))
        told["site_p"] = float(found.pvalue)
    return told


def _contents(
    contents: Contents, columns: SlideColumns, folds: Sequence[InParts]
) -> Iterator[Finding]:
    for slide, reason in contents.unread.items():
        yield Finding("no-features", (slide,), f"slide '{slide}' cannot be compared: {reason}")
    rows = {slide: row for row, slide in enumerate(columns.slides)}
    for kind, pairs in (("same-content", contents.same), ("near-content", contents.near)):
        for pair in pairs:
            apart = list(_apart(pair, rows, folds))
            if apart or kind == "same-content":  # within a part, likeness is no leak
                told = f"slides '{pair.one}' and '{pair.other}' have {pair.told}"
                where = f", in {'; '.join(apart)}" if apart else ""
                yield Finding(kind, (pair.one, pair.other), told + where)


def _apart(pair: Pair, rows: Mapping[str, int], folds: Sequence[InParts]) -> Iterator[str]:
    """`train and test of fold 0`, for each fold that has the two in different parts."""
    for fold, where in enumerate(folds):
        one, other = (where.get(rows[slide], ()) for slide in (pair.one, pair.other))
        if one and other and set(one) != set(other):
            yield f"{one[0]} and {other[-1]} of fold {fold}"


def _some(names: Sequence[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(f"'{name}'" for name in names[:shown]) + more
