"""Answers compared with those of the file, as SlideBench, WSI-VQA, WSI-Bench and Quilt-VQA do.

All readings of an answer (`readings`) are of the same rows: an option's likelihood beside what was
generated. Intervals are by patient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsizoo.errors import DataError
from wsizoo.measures.bootstrap import RESAMPLES, Resamples
from wsizoo.measures.compare import Difference, paired_bootstrap
from wsizoo.measures.measured import Measured, with_intervals
from wsizoo.measures.survival import concordance
from wsizoo.measures.weighted import Floats, Ints, Weighted, mean_of
from wsizoo.tables import BARCODE
from wsizoo_plugin_sparselearn.vlm.answers import bleu, number_in
from wsizoo_plugin_sparselearn.vlm.asking import GIVEN, NO_SLIDE, SLIDE, Answers, Record, Tick, ask
from wsizoo_plugin_sparselearn.vlm.asking import plan as plan_of
from wsizoo_plugin_sparselearn.vlm.features import FeatureFolder
from wsizoo_plugin_sparselearn.vlm.formats import QuestionFile
from wsizoo_plugin_sparselearn.vlm.questions import Defect, Question, defects_of, slide_name
from wsizoo_plugin_sparselearn.vlm.readings import (
    BLEUS,
    SHARES,
    UNPARSABLE,
    readings_of,
    without_model,
)

CINDEX = "c-index, a short time is a high risk"
CINDEX_PUBLISHED = "c-index, as the published script has it"
JOURNAL = "answers.jsonl"
ALL = "all"


@dataclass(frozen=True)
class Line:
    """One measure of some questions.

    Args:
        group, value: of a category, e.g. "Broad Category", "Diagnosis"; ALL, "" of all.
        given: one of `asking.GIVEN`, or what answers without a model.
    """

    group: str
    value: str
    given: str
    reading: str
    measured: Measured


@dataclass(frozen=True)
class Evaluation:
    """What there is to report.

    Args:
        missing: slides without features, whose questions were left out.
        differences: its slide minus none, by reading, paired.
    """

    file: QuestionFile
    model: str
    records: list[Record]
    lines: list[Line]
    differences: Mapping[str, Difference]
    patients: int
    defects: list[Defect]
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def evaluate(
    answers: Answers,
    file: QuestionFile,
    folder: FeatureFolder,
    out: Path,
    *,
    controls: bool = True,
    available: bool = False,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    tick: Tick | None = None,
) -> Evaluation:
    """Ask all questions of a file, and measure the answers.

    Args:
        out: folder of `answers.jsonl`, from which the same call goes on.
        controls: ask without a slide, and about a slide of another patient, too.
        available: leave out questions about slides without features, and say how many.
        settings: of generation; an interrupted evaluation goes on with the same ones only.

    Raises:
        DataError: slides without features, or `out` is of another evaluation.
    """
    files = folder.find_all(each.slide for each in file.questions)
    missing = sorted({each.slide for each in file.questions} - set(files))
    if missing and not (available and files):
        raise DataError(
            f"{len(missing)} of {len(files) + len(missing)} slides of '{file.path}' have no "
            f"features in '{folder.folder}', first '{missing[0]}'. Add them, or leave their "
            "questions out: --available"
        )
    patients = patients_of(file.questions)
    asked = plan_of(file.questions, files, patients, GIVEN if controls else (SLIDE,), seed)
    whose = {"questions": file.sha256, "model": answers.identity, **(settings or {}), "seed": seed}
    records = ask(answers, file.questions, asked, folder, out / JOURNAL, whose, tick)
    return measured(file, records, answers.identity, missing, seed, resamples)


def patients_of(questions: Sequence[Question]) -> list[str]:
    """The patient of each question: of TCGA's barcodes, else each slide is its own."""
    names = [slide_name(each.slide) for each in questions]
    return [found[1] if (found := BARCODE.match(name)) else name for name in names]


def measured(
    file: QuestionFile,
    records: Sequence[Record],
    model: str,
    missing: Sequence[str] = (),
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Evaluation:
    """All measures of answers, over all questions and by each category of the file."""
    measuring = _Measuring(file, records, seed, resamples)
    answered = measuring.answered
    return Evaluation(
        file,
        model,
        list(records),
        [*measuring.lines(), *measuring.controls(), *measuring.corpus()],
        measuring.differences(),
        len(set(measuring.patients[answered].tolist())),
        defects_of(file.questions),
        list(missing),
        _notes(file, answered.tolist(), records),
    )


class _Measuring:
    """Arguments as of `measured`.

    Attributes:
        answered: rows of the questions that were. readings: of each `given`, (n,) by name.
    """

    def __init__(
        self, file: QuestionFile, records: Sequence[Record], seed: int, resamples: int
    ) -> None:
        self.file, self.records, self.seed, self.resamples = file, records, seed, resamples
        self.patients = np.array(patients_of(file.questions))
        self.answered = np.array(sorted({each.row for each in records}), np.int64)
        self.groups = _groups(file.questions)
        self.readings: dict[str, dict[str, Floats]] = {given: {} for given in GIVEN}
        for each in records:
            named = self.readings[each.given]
            for name, value in readings_of(file.questions[each.row], each, file.format).items():
                values = named.setdefault(name, np.full(len(file.questions), np.nan))
                values[each.row] = value

    def lines(self) -> list[Line]:
        """Of all readings, all and by category."""
        return [
            line
            for given, named in self.readings.items()
            for reading, values in named.items()
            for line in self._by_group(given, reading, values)
        ]

    def controls(self) -> list[Line]:
        """Of what is right without a model."""
        questions, found = self.file.questions, []
        closed = [row for row in self.answered.tolist() if questions[row].options]
        told = without_model([questions[row] for row in closed], self.file.format)
        for (given, reading), right in told.items():
            values = np.full(len(questions), np.nan)
            values[closed] = right
            found += self._by_group(given, reading, values)
        return found

    def corpus(self) -> list[Line]:
        """BLEU of all open answers together, and how survival times are ordered."""
        questions = self.file.questions
        own = [r for r in self.records if r.given == SLIDE and not questions[r.row].options]
        said = {r.row: r.output for r in own if r.output is not None}
        found = []
        if said:
            texts = list(said.values()), [questions[row].answer for row in said]
            found = [self._all(f"{BLEUS}{n}", bleu(*texts, n), list(said)) for n in range(1, 5)]
        timed = {
            row: (number_in(questions[row].answer), number_in(text))
            for row, text in said.items()
            if "survival time" in questions[row].text.lower()
        }
        timed = {row: pair for row, pair in timed.items() if np.isfinite(pair).all()}
        if len(timed) > 1:
            times, told = np.array(list(timed.values())).T
            for name, risk in ((CINDEX, -told), (CINDEX_PUBLISHED, told)):
                measure = concordance(times, np.ones(len(times), bool), risk)
                found.append(self._all(name, measure, list(timed)))
        return found

    def differences(self) -> dict[str, Difference]:
        """Its slide minus none, of the questions that were asked both ways."""
        found = {}
        for name in self.readings[NO_SLIDE]:
            a, b = (self.readings[given].get(name) for given in (SLIDE, NO_SLIDE))
            if a is not None and b is not None and name != UNPARSABLE:
                rows = np.flatnonzero(~np.isnan(a) & ~np.isnan(b))
                pair, whose = (mean_of(a[rows]), mean_of(b[rows])), self.patients[rows].tolist()
                found[name] = paired_bootstrap(
                    *pair, len(rows), whose, seed=self.seed, resamples=self.resamples
                )
        return found

    def _by_group(self, given: str, reading: str, values: Floats) -> list[Line]:
        found = []
        for group, value, rows in self.groups:
            own = rows[~np.isnan(values[rows])]
            if len(own):
                measure = self._measured(reading, mean_of(values[own]), own)
                found.append(Line(group, value, given, reading, measure))
        return found

    def _all(self, reading: str, measure: Weighted, rows: Sequence[int]) -> Line:
        return Line(ALL, "", SLIDE, reading, self._measured(reading, measure, rows))

    def _measured(self, reading: str, measure: Weighted, rows: Sequence[int] | Ints) -> Measured:
        name = "accuracy" if reading in SHARES else reading
        whose = self.patients[rows].tolist()
        drawn = Resamples(len(whose), whose, self.resamples, self.seed)
        return with_intervals({name: measure}, drawn)[name]


def _groups(questions: Sequence[Question]) -> list[tuple[str, str, Ints]]:
    """All rows, and those of each value of each category, as the file has them."""
    found = [(ALL, "", np.arange(len(questions)))]
    for name in dict.fromkeys(name for each in questions for name in each.categories):
        own = [each.categories.get(name) for each in questions]
        for value in dict.fromkeys(v for v in own if v):
            rows = np.array([i for i, v in enumerate(own) if v == value])
            found.append((name, value, rows))
    return found


def _notes(file: QuestionFile, answered: Sequence[int], records: Sequence[Record]) -> list[str]:
    found = []
    left_out = len(file.questions) - len(answered)
    if left_out:
        found.append(f"{left_out} questions were left out: their slides have no features")
    own = [file.questions[row] for row in answered]
    outside = sum(bool(each.options) and each.right is None for each in own)
    if outside:
        found.append(f"{outside} closed questions have no right option, and count as wrong")
    absent = [given for given in GIVEN if not any(r.given == given for r in records)]
    if absent:
        found.append(f"not asked about: {', '.join(absent)}")
    return found
