"""What the files of slide language models hold: conversations to learn from, questions to answer.

Texts are as the files have them; what is wrong with them, `defects` says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

IMAGE = "<image>"  # where the slide stands in a text
SUFFIXES = (".csv", ".pt", ".pth", ".h5", ".hdf5", ".npy", ".jpg", ".png")
"""Of files of features and images, as names of slides in the files end in."""
LETTERS = "ABCDEFGH"
Shown = Literal["lines", "text", "not"]


@dataclass(frozen=True)
class Turn:
    """What a person says, and what the assistant answers; the text may hold `<image>`."""

    human: str
    assistant: str


@dataclass(frozen=True)
class Conversation:
    """About a slide, to train on.

    Args:
        id: as the file has it, a number or a text. slides: files of features, as it names them.
    """

    id: int | str
    slides: tuple[str, ...]
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Question:
    """About a slide, to be answered and compared.

    Args:
        id: unique in its file. slide: a slide, a file of its features or a patient, see `features`.
        text: without options, unless `shown` is "text".
        options: by letter, in the file's order; none: the answer is free text.
        answer: as the file has it: a letter, the text of an option, or free text.
        categories: what questions are grouped by, e.g. {"Broad Category": "Diagnosis"}.
        shown: how the model sees the options: as lines "A. ..." below the text, within the text
            already, or not.
    """

    id: str
    slide: str
    text: str
    options: Mapping[str, str] = field(default_factory=dict)
    answer: str = ""
    categories: Mapping[str, str] = field(default_factory=dict)
    shown: Shown = "lines"

    @property
    def prompt(self) -> str:
        """What the model is asked, after the slide.

        Source: the layout of SlideBench-VQA, github.com/uni-medical/SlideChat at aa1ff55e.
        """
        if self.shown != "lines":
            return self.text
        return self.text + "".join(f"\n{letter}. {text}" for letter, text in self.options.items())

    @property
    def right(self) -> str | None:
        """The letter of the answer; None: it is none of the options, or there are none."""
        if self.answer in self.options:
            return self.answer
        wanted = plain(self.answer)
        same = [letter for letter, text in self.options.items() if plain(text) == wanted]
        return same[0] if wanted and len(same) == 1 else None


def plain(text: str) -> str:
    """Case folded, without punctuation, blanks as one: what texts are compared by."""
    return " ".join(re.sub(r"[^\w\s]|_", "", text.casefold()).split())


def slide_name(told: str) -> str:
    """`TCGA-LUSC/S1.pt` -> `S1`; dots within a name stay."""
    name = PurePosixPath(told.replace("\\", "/")).name
    suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


def options_in(text: str) -> dict[str, str]:
    """The options that run on in a text, `A) ... B) ...` or one a line; {} where it has none.

    Letters follow each other from A on, all with the same sign behind them; of several such rows
    the longest counts, then the last.
    """
    found: list[re.Match[str]] = []
    for sign in (r"\)", r"\.(?=\s|$)", r":(?=\s|$)"):
        marks = list(re.finditer(rf"(?:^|(?<=[\s(]))([A-H]){sign}", text))
        for start, mark in enumerate(marks):
            row = _row(marks[start:]) if mark[1] == "A" else []
            if len(row) >= max(2, len(found)):
                found = row
    ends = [mark.start() for mark in found[1:]] + [len(text)]
    return {
        mark[1]: text[mark.end() : end].replace(IMAGE, "").strip()
        for mark, end in zip(found, ends, strict=False)
    }


def _row(marks: Sequence[re.Match[str]]) -> list[re.Match[str]]:
    """Marks of A, B, C, ... as far as they go."""
    row: list[re.Match[str]] = []
    for mark in marks:
        if mark[1] == LETTERS[len(row) : len(row) + 1]:
            row.append(mark)
    return row


@dataclass(frozen=True)
class Defect:
    """Something that is wrong with rows of a file; they are left as they are.

    Args:
        what: e.g. "empty answer". ids: of the rows.
    """

    what: str
    ids: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(self.ids[:5]) + (", ..." if len(self.ids) > 5 else "")
        return f"{len(self.ids)} with {self.what} ({shown})"


def defects_of(items: Iterable[Question | Conversation]) -> list[Defect]:
    """All that is wrong with the rows of a file, the most frequent first."""
    found: dict[str, list[str]] = {}
    seen: set[int | str] = set()
    for item in items:
        own = _of_question(item) if isinstance(item, Question) else _of_conversation(item)
        if item.id in seen:
            own.append("an id that another has too")
        seen.add(item.id)
        for what in dict.fromkeys(own):
            found.setdefault(what, []).append(str(item.id))
    return sorted((Defect(k, tuple(v)) for k, v in found.items()), key=lambda d: -len(d.ids))


EMPTY, OUTSIDE = "an empty answer", "an answer outside the options"
NO_LETTERS, NO_TEXT = "a letter as answer and no option letters", "an option without text"


def _of_question(item: Question) -> list[str]:
    texts = [plain(text) or text.casefold() for text in item.options.values()]
    letters = "".join(item.options)
    told = {
        EMPTY: not item.answer.strip(),
        OUTSIDE: bool(item.options and item.answer.strip() and item.right is None),
        NO_LETTERS: not item.options and _letter(item.answer) is not None,
        NO_TEXT: not all(text.strip() for text in item.options.values()),
        "two options of one text": len(set(texts)) < len(texts),
        "a gap in the option letters": letters != LETTERS[: len(letters)],
        "a single option": len(texts) == 1,
    }
    return [what for what, is_so in told.items() if is_so]


def _of_conversation(item: Conversation) -> list[str]:
    found = []
    for turn in item.turns:
        options, letter = options_in(turn.human), _letter(turn.assistant)
        told = {
            EMPTY: not turn.assistant.strip(),
            OUTSIDE: bool(options and letter and letter not in options),
            NO_LETTERS: not options and letter is not None,
            NO_TEXT: not all(options.values()),
        }
        found += [what for what, is_so in told.items() if is_so]
    marks = sum(turn.human.count(IMAGE) for turn in item.turns)
    if item.slides and marks != 1:
        found.append(f"{marks} times {IMAGE}, expected once")
    return found


def _letter(answer: str) -> str | None:
    """The letter that an answer is, or begins with as `B.` or `B)`."""
    found = re.match(r"\s*\(?([A-H])(?:[.):](?=\s|$)|\s*$)", answer)
    return found[1] if found else None
