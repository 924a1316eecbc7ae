"""Putting the questions of a file to a model, so that it goes on where it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wsizoo.bag import Bag
from wsizoo.errors import DataError
from wsizoo_plugin_sparselearn.vlm.features import FeatureFolder
from wsizoo_plugin_sparselearn.vlm.questions import Question

SLIDE, NO_SLIDE, OTHER = "its slide", "no slide", "another slide"
GIVEN = (SLIDE, NO_SLIDE, OTHER)
"""What a question is asked about: the two last are controls, for what the text alone tells."""
Tick = Callable[[str, int, int], None]  # (slide, done, in all)


class Answers(Protocol):
    """What answers questions: a model, or what a test puts in its place.

    Attributes:
        identity: changes with whatever changes an answer, as the sha256 of the weights.
    """

    identity: str

    def letter_scores(self, bag: Bag | None, question: Question) -> Mapping[str, float]:
        """log p of the letter of each option after `question.prompt`; bag None: without a slide.

        {}: the options cannot be told apart.
        """
        ...

    def text_scores(self, bag: Bag | None, question: Question) -> Mapping[str, float]:
        """By letter, how likely the text of each option is after `question.prompt`; or {}."""
        ...

    def generate(self, bag: Bag | None, text: str) -> str:
        """What is said, greedily, of a slide (None: of none) after a prompt."""
        ...


@dataclass(frozen=True)
class Record:
    """One answer.

    Args:
        row: of the question, from 0. given: one of `GIVEN`. output: what was generated; None:
            nothing was to be.
        scores: by letter, of letters or of texts; None: not asked for; {}: there are none, as two
            options are alike, which counts as wrong.
    """

    row: int
    given: str
    output: str | None = None
    scores: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Asked:
    """One question to be put, about the file of a slide, or None."""

    row: int
    given: str
    path: Path | None


def plan(
    questions: Sequence[Question],
    files: Mapping[str, Path],
    patients: Sequence[str],
    given: Sequence[str] = GIVEN,
    seed: int = 0,
) -> list[Asked]:
    """All that is asked, file after file, so that each is read once; those without a slide first.

    Args:
        files: of the slides that have one; questions about others are not asked.
        patients: of each question; another slide is one of another patient.
    """
    there = [row for row, each in enumerate(questions) if each.slide in files]
    own = {row: files[questions[row].slide] for row in there}
    found = []
    if NO_SLIDE in given:
        found += [Asked(row, NO_SLIDE, None) for row in there]
    pairs = [(SLIDE, own)] if SLIDE in given else []
    if OTHER in given:
        pairs.append((OTHER, _others(own, patients, seed)))
    about = [Asked(row, name, path) for name, paths in pairs for row, path in paths.items()]
    return found + sorted(about, key=lambda each: str(each.path))


def _others(own: Mapping[int, Path], patients: Sequence[str], seed: int) -> dict[int, Path]:
    """A file of the next patient in a random order, for each row; {} where there is one patient."""
    names = list(dict.fromkeys(patients[row] for row in own))
    if len(names) < 2:
        return {}
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    following = dict(zip(order, order[1:] + order[:1], strict=True))
    first = {patients[row]: path for row, path in reversed(list(own.items()))}
    return {row: first[following[patients[row]]] for row in own}


def ask(
    answers: Answers,
    questions: Sequence[Question],
    asked: Sequence[Asked],
    folder: FeatureFolder,
    journal: Path,
    whose: Mapping[str, Any],
    tick: Tick | None = None,
) -> list[Record]:
    """The answers, each written to `journal` as it is there; those of an earlier run are kept.

    Args:
        journal: JSON lines, `whose` first. whose: what an earlier run has to agree with.

    Raises:
        DataError: the journal is of another evaluation, or a bag cannot be read.
    """
    records = {(each.row, each.given): each for each in _resumed(journal, whose)}
    done = len(records)
    path, bag = None, None
    with open(journal, "a", encoding="utf-8") as file:
        for each in asked:
            if (each.row, each.given) in records:
                continue
            if each.path != path:
                bag = None if each.path is None else folder.read(each.path)
                path = each.path
            record = _answered(answers, questions[each.row], each, bag)
            file.write(json.dumps(asdict(record), allow_nan=False) + "\n")
            file.flush()
            records[each.row, each.given] = record
            done += 1
            if tick:
                tick(questions[each.row].slide, done, len(asked))
    return [records[each.row, each.given] for each in asked]


def _answered(answers: Answers, question: Question, asked: Asked, bag: Bag | None) -> Record:
    scores = None
    if question.options:
        seen = question.shown != "not"
        found = (answers.letter_scores if seen else answers.text_scores)(bag, question)
        scores = {letter: float(score) for letter, score in found.items()}
    return Record(asked.row, asked.given, answers.generate(bag, question.prompt), scores)


def _resumed(journal: Path, whose: Mapping[str, Any]) -> Iterator[Record]:
    """The records of an earlier run; a last line that was being written is taken away."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    whole = journal.read_bytes() if journal.is_file() else b""
    lines = whole[: whole.rfind(b"\n") + 1].splitlines(keepends=True)
    if not lines:
        journal.write_text(json.dumps(whose) + "\n", encoding="utf-8")
        return
    there = json.loads(lines[0])
    for name, mine in json.loads(json.dumps(whose)).items():
        if there.get(name) != mine:
            raise DataError(
                f"'{journal}' is of another evaluation: {name} was {there.get(name)}, now {mine}. "
                "Choose another folder, or delete that file"
            )
    if len(whole) > sum(map(len, lines)):
        journal.write_bytes(b"".join(lines))
    yield from (Record(**json.loads(line)) for line in lines[1:])
