"""Answers compared with those of the file, as SlideBench, WSI-VQA, WSI-Bench and Quilt-VQA do.

Each reading is a number a question, all of the same rows: an option's likelihood beside what was
generated. Which readings there are depends on the file's format and on the question's options.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsizoo.errors import DataError
from wsizoo.measures.bootstrap import RESAMPLES, Resamples
from wsizoo.measures.compare import Difference, paired_bootstrap
from wsizoo.measures.measured import Measured, with_intervals
from wsizoo.measures.survival import concordance
from wsizoo.measures.weighted import Floats, Weighted, mean_of
from wsizoo.tables import BARCODE
from wsizoo_plugin_sparselearn.vlm.answers import (
    bleu,
    number_in,
    parse_letter,
    rouge_l,
    says_no,
    strict_match,
    token_f1,
    wsi_vqa_difflib,
)
from wsizoo_plugin_sparselearn.vlm.asking import GIVEN, NO_SLIDE, SLIDE, Answers, Record, Tick, ask
from wsizoo_plugin_sparselearn.vlm.asking import plan as plan_of
from wsizoo_plugin_sparselearn.vlm.features import FeatureFolder
from wsizoo_plugin_sparselearn.vlm.formats import QuestionFile
from wsizoo_plugin_sparselearn.vlm.questions import Defect, Question, defects_of, slide_name

LETTER, TEXT, GENERATED = "letter likelihood", "option likelihood", "generated"
STRICT, DIFFLIB, UNPARSABLE = "generated, strict", "generated, wsi_vqa_difflib", "unparsable"
EXACT, TOKENS, ROUGE, BLEUS = "exact match", "token F1", "ROUGE-L", "BLEU-"
MAJORITY = "majority letter"
CLOSED = (LETTER, TEXT, GENERATED, STRICT, DIFFLIB, UNPARSABLE, MAJORITY)
SHARES = (*CLOSED, EXACT)
CONSTANTS = {"the empty output": lambda q: "", "the output 'a'": lambda q: "a"} | {
    "always the first choice": lambda q: next(iter(q.options.values()))
}
"""What `wsi_vqa_difflib` gives for outputs that know nothing, to be printed beside it."""
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
    patients = np.array(patients_of(file.questions))
    n = len(file.questions)

    def lines(given: str, reading: str, values: Floats) -> list[Line]:
        """Of all, and of each category."""
        found = []
        for group, value, rows in _groups(file.questions):
            own = rows[~np.isnan(values[rows])]
            if len(own):
                drawn = Resamples(len(own), patients[own].tolist(), resamples, seed)
                one = _measured(mean_of(values[own]), reading, drawn)
                found.append(Line(group, value, given, reading, one))
        return found

    readings = {given: _readings(file, records, given) for given in GIVEN}
    found = [
        line
        for given, named in readings.items()
        for reading, values in named.items()
        for line in lines(given, reading, values)
    ]
    answered = np.array(sorted({each.row for each in records}), np.int64)
    for given, reading, values in _without_model(file, answered):
        found += lines(given, reading, values)
    found += _of_corpus(file, records, patients, seed, resamples)
    both = [name for name in readings[NO_SLIDE] if name in readings[SLIDE] and name != UNPARSABLE]
    differences = {
        name: _difference(readings[SLIDE][name], readings[NO_SLIDE][name], patients, seed, resamples)
        for name in both
    }
    own = [file.questions[row] for row in answered]
    notes = _notes(own, n - len(own), records)
    told = len(set(patients[answered].tolist()))
    defects = defects_of(file.questions)
    return Evaluation(
        file, model, list(records), found, differences, told, defects, list(missing), notes
    )


def _measured(measure: Weighted, reading: str, drawn: Resamples) -> Measured:
    name = "accuracy" if reading in SHARES else reading
    return with_intervals({name: measure}, drawn)[name]


def _difference(
    a: Floats, b: Floats, patients: np.ndarray[Any, Any], seed: int, resamples: int
) -> Difference:
    rows = np.flatnonzero(~np.isnan(a) & ~np.isnan(b))
    names = patients[rows].tolist()
    pair = mean_of(a[rows]), mean_of(b[rows])
    return paired_bootstrap(*pair, len(rows), names, seed=seed, resamples=resamples)


def _groups(questions: Sequence[Question]) -> list[tuple[str, str, Any]]:
    """All rows, and those of each value of each category, as the file has them."""
    found = [(ALL, "", np.arange(len(questions)))]
    for name in dict.fromkeys(name for each in questions for name in each.categories):
        own = [each.categories.get(name) for each in questions]
        for value in dict.fromkeys(v for v in own if v):
            rows = np.array([i for i, v in enumerate(own) if v == value])
            found.append((name, value, rows))
    return found


def _readings(file: QuestionFile, records: Sequence[Record], given: str) -> dict[str, Floats]:
    """Each reading (n,) of the questions as they were asked; NaN where it does not apply."""
    found: dict[str, Floats] = {}
    for each in records:
        if each.given == given:
            told = readings_of(file.questions[each.row], each, file.format)
            for name, value in told.items():
                values = found.setdefault(name, np.full(len(file.questions), np.nan))
                values[each.row] = value
    return found


def readings_of(question: Question, record: Record, format: str) -> dict[str, float]:
    """What an answer is worth, by reading: 0 to 1."""
    said, wanted = record.output, question.answer
    if not question.options:
        if said is None:
            return {}
        exact = float(strict_match(said, wanted))
        return {EXACT: exact, TOKENS: token_f1(said, wanted), ROUGE: rouge_l(said, wanted)}
    right, found = question.right, {}
    if record.scores is not None:
        best = max(record.scores, key=record.scores.__getitem__, default=None)
        hit = float(best is not None and best == right)
        found[TEXT if question.shown == "not" else LETTER] = hit
    return found if said is None else {**found, **_generated(question, said, format)}


def _generated(question: Question, output: str, format: str) -> dict[str, float]:
    right = question.right
    if format == "wsi-vqa":
        choices = list(question.options.values())
        like = wsi_vqa_difflib(output, question.answer, choices)
        return {STRICT: float(strict_match(output, question.answer)), DIFFLIB: float(like)}
    if format == "quilt-vqa":
        said = "B" if says_no(output) else "A"
        return {GENERATED: float(said == right)}
    parsed = parse_letter(output, question.options)
    return {GENERATED: float(parsed is not None and parsed == right), UNPARSABLE: float(parsed is None)}


def _without_model(file: QuestionFile, rows: Any) -> list[tuple[str, str, Floats]]:
    """What is right without a model, of the same rows."""
    found: list[tuple[str, str, Floats]] = []
    closed = [row for row in rows.tolist() if file.questions[row].options]
    if not closed:
        return found
    rights = [file.questions[row].right for row in closed]
    letter = Counter(one for one in rights if one).most_common(1)
    best = letter[0][0] if letter else ""
    told: dict[tuple[str, str], Callable[[Question], bool]] = {
        (f"always {best}", MAJORITY): lambda q: q.right == best
    }
    if file.format == "wsi-vqa":
        for name, said in CONSTANTS.items():
            told[name, DIFFLIB] = lambda q, said=said: wsi_vqa_difflib(
                said(q), q.answer, list(q.options.values())
            )
    for (given, reading), is_right in told.items():
        values = np.full(len(file.questions), np.nan)
        values[closed] = [is_right(file.questions[row]) for row in closed]
        found.append((given, reading, values))
    return found


def _of_corpus(
    file: QuestionFile, records: Sequence[Record], patients: Any, seed: int, resamples: int
) -> list[Line]:
    """BLEU of all open answers, and how survival times are ordered."""
    own = [r for r in records if r.given == SLIDE and r.output is not None]
    open_ones = [r for r in own if not file.questions[r.row].options]
    found = []

    def add(reading: str, measure: Weighted, own: Sequence[Record]) -> None:
        drawn = Resamples(len(own), [str(patients[r.row]) for r in own], resamples, seed)
        found.append(Line(ALL, "", SLIDE, reading, _measured(measure, reading, drawn)))

    if open_ones:
        said = [_said(r) for r in open_ones], [file.questions[r.row].answer for r in open_ones]
        for order in range(1, 5):
            add(f"{BLEUS}{order}", bleu(*said, order), open_ones)
    timed = [r for r in open_ones if "survival time" in file.questions[r.row].text.lower()]
    timed = [r for r in timed if not math.isnan(number_in(_said(r)) + _time(file, r))]
    if len(timed) > 1:
        times = np.array([_time(file, r) for r in timed])
        risk, events = np.array([number_in(_said(r)) for r in timed]), np.ones(len(timed), bool)
        add("c-index, a short time is a high risk", concordance(times, events, -risk), timed)
        add("c-index, as the published script has it", concordance(times, events, risk), timed)
    return found


def _said(record: Record) -> str:
    return record.output or ""


def _time(file: QuestionFile, record: Record) -> float:
    return number_in(file.questions[record.row].answer)


def _notes(questions: Sequence[Question], left_out: int, records: Sequence[Record]) -> list[str]:
    found = []
    if left_out:
        found.append(f"{left_out} questions were left out: their slides have no features")
    outside = sum(bool(each.options) and each.right is None for each in questions)
    if outside:
        found.append(f"{outside} closed questions have no right option, and count as wrong")
    absent = [given for given in GIVEN if not any(r.given == given for r in records)]
    if absent:
        found.append(f"not asked about: {', '.join(absent)}")
    return found
