"""Files of slide language models, as they are published: read into one shape, and written.

Read: conversations of SlideInstruct and LLaVA (`read_conversations`); questions of SlideBench-VQA,
WSI-VQA, WSI-Bench and Quilt-VQA (`read_questions`), told apart by their content. Sources:
github.com/uni-medical/SlideChat at aa1ff55e, github.com/cpystan/WSI-VQA at 8f708aeb,
github.com/XinhengLyu/WSI-LLaVA at 4935038d, github.com/aldraus/quilt-llava at a7a9a4c3.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsizoo.errors import DataError, NotFoundError
from wsizoo.files import sha256_of, write_json
from wsizoo_plugin_sparselearn.vlm import question_tables
from wsizoo_plugin_sparselearn.vlm.questions import (
    IMAGE,
    LETTERS,
    Conversation,
    Question,
    Turn,
    defects_of,
    options_in,
)

Item = Mapping[str, Any]
HUMAN, GPT = "human", "gpt"
YES_NO = {"A": "Yes", "B": "No"}


@dataclass(frozen=True)
class QuestionFormat:
    """One kind of files with questions.

    Args:
        layout: for people. recognises: whether the first item of a JSON list is of this kind.
        read: (item, row from 1, path) -> question.
    """

    name: str
    layout: str
    recognises: Callable[[Item], bool]
    read: Callable[[Item, int, Path], Question]


@dataclass(frozen=True)
class QuestionFile:
    """A file with questions: which one exactly, as releases of one name differ.

    Args:
        format: its name, as of `FORMATS`. sha256: of its bytes.
    """

    path: Path
    format: str
    sha256: str
    questions: list[Question]


def read_questions(path: Path | str) -> list[Question]:
    """The questions of a file, in its order. Raises as `question_file`."""
    return question_file(path).questions


def question_file(path: Path | str) -> QuestionFile:
    """The questions of a file, and which file it is.

    Raises:
        NotFoundError: no such file. DataError: of no known format, or a row that is not of it.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        name, found = question_tables.read(path)
        return QuestionFile(path, name, sha256_of(path), found)
    items = _items(path)
    for each in FORMATS.values():
        if each.recognises(items[0]):
            found = [each.read(item, row, path) for row, item in enumerate(items, 1)]
            return QuestionFile(path, each.name, sha256_of(path), found)
    known = "; ".join([question_tables.LAYOUT, *(each.layout for each in FORMATS.values())])
    raise DataError(f"'{path}': its first item has {sorted(items[0])}. Known files: {known}")


def read_conversations(path: Path | str) -> list[Conversation]:
    """Conversations to train on, of SlideInstruct, WSI-Bench or any file in LLaVA's layout.

    Turns of the assistant before the first of a person are left out, as their own loader does.

    Raises:
        NotFoundError: no such file.
        DataError: no list of conversations, roles other than `human` and `gpt`, or a turn without
            an answer.
    """
    path = Path(path)
    return [_conversation(item, row, path) for row, item in enumerate(_items(path), 1)]


def facts_of(path: Path | str, items: Sequence[Question | Conversation]) -> list[str]:
    """What a report says of a file that was read: which one it is, and what is wrong with it."""
    told = f"'{Path(path).name}', {len(items)} rows, sha256 {sha256_of(path)}"
    return [told, *(f"in the file, left as it is: {defect}" for defect in defects_of(items))]


def write_conversations(path: Path | str, conversations: Iterable[Conversation]) -> None:
    """Write them in SlideInstruct's layout, where `image` is a list."""
    write_json(path, [_as_item(each, list(each.slides)) for each in conversations])


def write_questions(path: Path | str, questions: Sequence[Question], format: str) -> None:
    """Write questions as a file of a format that has a place for them.

    Args:
        format: `slidebench-vqa-tcga`, `slidebench-vqa-bcnb`, or one of `FORMATS`.

    Raises:
        NotFoundError: no such format.
    """
    writers = {"wsi-vqa": _to_wsi_vqa, "wsi-bench": _to_wsi_bench, "quilt-vqa": _to_quilt}
    if format in question_tables.CATEGORIES:
        question_tables.write(Path(path), questions, format)
    elif format in writers:
        write_json(path, [writers[format](each) for each in questions])
    else:
        known = ", ".join([*question_tables.CATEGORIES, *writers])
        raise NotFoundError(f"No format '{format}' of questions. There are: {known}")


def _items(path: Path) -> list[Item]:
    """The items of a JSON list, or of JSON lines."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise NotFoundError(f"No file at '{path}'") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' cannot be read as text: {error}") from error
    try:
        if path.suffix == ".jsonl":
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            found = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"'{path}' is no JSON: {error}") from error
    if not isinstance(found, list) or not found or not all(isinstance(x, dict) for x in found):
        raise DataError(f"'{path}' holds no list of items, expected [{{...}}, {{...}}]")
    return found


def _field(item: Item, name: str, row: int, path: Path) -> str:
    """A field as text. Raises DataError: it is not there, or no text and no number."""
    if not isinstance(item.get(name), str | int | float):
        told = f"'{name}' is {item[name]!r}" if name in item else f"no '{name}'"
        raise DataError(f"'{path}', item {row}: {told}, expected a text; it has {sorted(item)}")
    return str(item[name])


def _slides(item: Item, row: int, path: Path) -> tuple[str, ...]:
    told = item.get("image", [])
    slides = [told] if isinstance(told, str) else told
    if not isinstance(slides, list) or not all(isinstance(x, str) for x in slides):
        raise DataError(f"'{path}', item {row}: 'image' is {told!r}, expected a name or a list")
    return tuple(slides)


def _conversation(item: Item, row: int, path: Path) -> Conversation:
    said = item.get("conversations")
    where = f"'{path}', item {row} (id {item.get('id')!r})"
    if not isinstance(said, list) or not all(isinstance(x, dict) for x in said):
        raise DataError(f"{where}: no list 'conversations'; it has {sorted(item)}")
    parts = [(_field(x, "from", row, path), _field(x, "value", row, path)) for x in said]
    roles = [role for role, _ in parts]
    if wrong := set(roles) - {HUMAN, GPT}:
        raise DataError(f"{where}: role {sorted(wrong)[0]!r}, expected '{HUMAN}' or '{GPT}'")
    start = roles.index(HUMAN) if HUMAN in roles else len(roles)
    kept = parts[start:]
    if not kept or roles[start:] != [HUMAN, GPT] * (len(kept) // 2):
        raise DataError(f"{where}: roles are {roles}, expected {HUMAN} and {GPT} in turn")
    pairs = zip(kept[::2], kept[1::2], strict=True)
    turns = tuple(Turn(human, assistant) for (_, human), (_, assistant) in pairs)
    told = item.get("id", row)
    return Conversation(
        told if isinstance(told, int) else str(told), _slides(item, row, path), turns
    )


def _as_item(each: Conversation, image: Any) -> Item:
    said = [
        {"from": role, "value": text}
        for turn in each.turns
        for role, text in ((HUMAN, turn.human), (GPT, turn.assistant))
    ]
    return {"id": each.id, "image": image, "conversations": said}


def _lettered(choices: Any, row: int, path: Path) -> dict[str, str]:
    if not isinstance(choices, list) or not 0 < len(choices) <= len(LETTERS):
        raise DataError(
            f"'{path}', item {row}: 'Choice' is {choices!r}, expected a list of 1 to {len(LETTERS)}"
        )
    return dict(zip(LETTERS, map(str, choices), strict=False))


def _wsi_vqa(item: Item, row: int, path: Path) -> Question:
    """Its `Id` is a patient, its answers texts, and its model does not see the choices."""
    text, answer = (_field(item, name, row, path) for name in ("Question", "Answer"))
    options = _lettered(item["Choice"], row, path) if "Choice" in item else {}
    kind = {"Kind": "closed" if options else "open"}
    return Question(str(row), _field(item, "Id", row, path), text, options, answer, kind, "not")


def _to_wsi_vqa(each: Question) -> Item:
    told = {"Id": each.slide, "Question": each.text}
    choice = {"Choice": list(each.options.values())} if each.options else {}
    return {**told, **choice, "Answer": each.answer}


def _wsi_bench(item: Item, row: int, path: Path) -> Question:
    """One turn of LLaVA's; the task is in the file's name, the options in the text."""
    talk = _conversation(item, row, path)
    if len(talk.slides) != 1 or len(talk.turns) != 1:
        raise DataError(
            f"'{path}', item {row}: {len(talk.slides)} slides and {len(talk.turns)} turns, "
            "expected a question about one slide"
        )
    (turn,), (slide,) = talk.turns, talk.slides
    text = turn.human.replace(IMAGE, "").strip()
    task = path.stem.removesuffix("_test").removesuffix("_train")
    options = options_in(text)
    if options:
        return Question(str(talk.id), slide, text, options, turn.assistant, {"Task": task}, "text")
    options = YES_NO if "_TF_" in task else {}
    return Question(str(talk.id), slide, text, options, turn.assistant, {"Task": task}, "not")


def _to_wsi_bench(each: Question) -> Item:
    turn = Turn(f"{IMAGE}\n{each.prompt}", each.answer)
    return _as_item(Conversation(each.id, (each.slide,), (turn,)), each.slide)


def _quilt(item: Item, row: int, path: Path) -> Question:
    """Of an image; closed ones are answered with yes or no, `yes_no_answer` where it is there."""
    kind = str(item.get("answer_type", "OPEN")).upper()
    closed = kind == "CLOSED"
    answer = "yes_no_answer" if closed and item.get("yes_no_answer") else "answer"
    id = str(item.get("id", row))
    slide = str(item.get("image", id))
    text = _field(item, "question", row, path).replace(IMAGE, "").strip()
    told = _field(item, answer, row, path)
    return Question(id, slide, text, YES_NO if closed else {}, told, {"answer_type": kind}, "not")


def _to_quilt(each: Question) -> Item:
    told = {"id": each.id, "image": each.slide, "question": each.text, "answer": each.answer}
    closed = {"yes_no_answer": each.answer} if each.options else {}
    return {**told, "answer_type": each.categories["answer_type"], **closed}


FORMATS = {
    each.name: each
    for each in (
        QuestionFormat(
            "wsi-vqa", "WSI-VQA: items with Id, Question, Answer", lambda i: "Id" in i, _wsi_vqa
        ),
        QuestionFormat(
            "wsi-bench",
            "WSI-Bench: items with id, image, conversations",
            lambda i: "conversations" in i,
            _wsi_bench,
        ),
        QuestionFormat(
            "quilt-vqa",
            "Quilt-VQA: items with question, answer, answer_type",
            lambda i: "question" in i and "answer" in i,
            _quilt,
        ),
    )
}
