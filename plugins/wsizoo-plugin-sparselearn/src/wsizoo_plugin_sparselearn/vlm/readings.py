"""What an answer is worth, by the protocol of its file: a number a question and reading."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from wsizoo_plugin_sparselearn.vlm.answers import (
    parse_letter,
    rouge_l,
    says_no,
    strict_match,
    token_f1,
    wsi_vqa_difflib,
)
from wsizoo_plugin_sparselearn.vlm.asking import Record
from wsizoo_plugin_sparselearn.vlm.questions import Question

LETTER, TEXT, GENERATED = "letter likelihood", "option likelihood", "generated"
STRICT, DIFFLIB, UNPARSABLE = "generated, strict", "generated, wsi_vqa_difflib", "unparsable"
EXACT, TOKENS, ROUGE, BLEUS = "exact match", "token F1", "ROUGE-L", "BLEU-"
MAJORITY = "majority letter"
CLOSED = (LETTER, TEXT, GENERATED, STRICT, DIFFLIB, UNPARSABLE, MAJORITY)
SHARES = (*CLOSED, EXACT)
"""Readings that are 0 or 1."""
CONSTANTS: dict[str, Callable[[Question], str]] = {
    "the empty output": lambda question: "",
    "the output 'a'": lambda question: "a",
    "always the first choice": lambda question: next(iter(question.options.values())),
}
"""Outputs that know nothing: what `wsi_vqa_difflib` gives for them is printed beside it."""


def readings_of(question: Question, record: Record, format: str) -> dict[str, float]:
    """What an answer is worth, by reading: 0 to 1."""
    said, found = record.output, {}
    if question.options and record.scores is not None:
        best = max(record.scores, key=record.scores.__getitem__, default=None)
        hit = float(best is not None and best == question.right)
        found[TEXT if question.shown == "not" else LETTER] = hit
    if said is None:
        return found
    if question.options:
        return {**found, **_generated(question, said, format)}
    wanted = question.answer
    exact = float(strict_match(said, wanted))
    return {EXACT: exact, TOKENS: token_f1(said, wanted), ROUGE: rouge_l(said, wanted)}


def _generated(question: Question, output: str, format: str) -> dict[str, float]:
    right = question.right
    if format == "wsi-vqa":
        strict = float(strict_match(output, question.answer))
        return {STRICT: strict, DIFFLIB: float(_like(question, output))}
    if format == "quilt-vqa":
        return {GENERATED: float(("B" if says_no(output) else "A") == right)}
    parsed = parse_letter(output, question.options)
    hit = float(parsed is not None and parsed == right)
    return {GENERATED: hit, UNPARSABLE: float(parsed is None)}


def _like(question: Question, output: str) -> bool:
    return wsi_vqa_difflib(output, question.answer, list(question.options.values()))


def without_model(closed: Sequence[Question], format: str) -> dict[tuple[str, str], list[float]]:
    """What closed questions give without a model: (what answers, reading) -> 0 or 1 of each."""
    if not closed:
        return {}
    rights = [each.right for each in closed]
    ((best, _),) = Counter(one for one in rights if one).most_common(1) or [("", 0)]
    found = {(f"always {best}", MAJORITY): [float(one == best) for one in rights]}
    if format == "wsi-vqa":
        for name, said in CONSTANTS.items():
            found[name, DIFFLIB] = [float(_like(each, said(each))) for each in closed]
    return found
