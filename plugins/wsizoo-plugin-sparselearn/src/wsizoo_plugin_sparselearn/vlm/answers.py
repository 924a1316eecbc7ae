"""What a model said, as one of the options; and how near free text is to an answer."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from difflib import SequenceMatcher

import numpy as np

from wsizoo.measures.weighted import Floats, Weighted
from wsizoo_plugin_sparselearn.vlm.questions import plain

ORDER = 4  # n of the longest n-grams of BLEU
BETA = 1.2  # by which recall counts more in ROUGE-L, as where captions are measured


def parse_letter(output: str, options: Mapping[str, str]) -> str | None:
    """The option that an output names; None: none, or more than one.

    In this order: the output is a letter; it begins with `X.`, `X)` or `X:`; it says `answer is X`
    or `answer: X`; it holds the whole text of one option and of no other. The letter A that begins
    a sentence ("A tumour ...") is an article, no option.

    Args:
        options: by letter. What the answer is, is not known here.
    """
    said = output.strip()
    alone = re.fullmatch(r"\(?([A-Za-z])\)?", said)
    if alone:
        return _if_option(alone[1].upper(), options)
    start = re.match(r"\(?([A-Z])[.):]", said)
    if start and start[1] in options:
        return _checked_start(start[1], said[start.end() :], options)
    named = re.findall(r"(?i:answer\s*(?:is|:)\s*:?\s*)\(?([A-Z])(?=[\s.,;:)]*$|[.,;:)])", said)
    named += re.findall(r"(?i:answer\s*(?:is|:)\s*:?\s*)\(?([B-Z])(?=\s)", said)
    if named:
        return _if_option(named[0], options) if len(set(named)) == 1 else None
    return _by_text(said, options)


def _if_option(letter: str, options: Collection[str]) -> str | None:
    return letter if letter in options else None


def _checked_start(letter: str, rest: str, options: Mapping[str, str]) -> str | None:
    """The letter that an output begins with, unless it names others in the same way."""
    if plain(rest) == plain(options[letter]):
        return letter
    others = set(re.findall(r"(?<![\w'])([A-Z])[.):](?=\s|$)", rest)) & set(options)
    return letter if others <= {letter} else None


def _by_text(said: str, options: Mapping[str, str]) -> str | None:
    exact = [letter for letter, text in options.items() if text.casefold() == said.casefold()]
    if len(exact) == 1:
        return exact[0]
    texts = Counter(plain(text) for text in options.values())
    known = {k: plain(text) for k, text in options.items() if texts[plain(text)] == 1}
    words = f" {plain(said)} "
    inside = {k: text for k, text in known.items() if text and f" {text} " in words}
    longest = [
        letter
        for letter, text in inside.items()
        if not any(text != other and f" {text} " in f" {other} " for other in inside.values())
    ]
    return longest[0] if len(longest) == 1 else None


def strict_match(output: str, answer: str) -> bool:
    """Whether they are one text, case and punctuation aside."""
    if output.strip().casefold() == answer.strip().casefold():
        return bool(answer.strip())
    return bool(plain(answer)) and plain(output) == plain(answer)


def wsi_vqa_difflib(output: str, answer: str, choices: Sequence[str]) -> bool:
    """Right as the published script of WSI-VQA counts: no choice is more like the output.

    Ties count as right, so that an empty output always is: compare with `strict_match`.

    Source: github.com/cpystan/WSI-VQA at 8f708aeb.
    """
    own = _alike(output, answer)
    return all(_alike(output, choice) <= own for choice in choices)


def _alike(output: str, text: str) -> float:
    return SequenceMatcher(None, output, text).quick_ratio()


def says_no(output: str) -> bool:
    """As Quilt-VQA's closed questions are read: the words `no` or `not` are a no, all else is yes.

    Source: github.com/aldraus/quilt-llava at a7a9a4c3.
    """
    return bool({"no", "not"} & set(plain(output).split()))


def token_f1(output: str, answer: str) -> float:
    """Harmonic mean of precision and recall of words, each counted as often as it stands there."""
    said, wanted = plain(output).split(), plain(answer).split()
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def rouge_l(output: str, answer: str) -> float:
    """F of the longest common subsequence of words, recall counting 1.2 times.

    Source: Lin, "ROUGE: a package for automatic evaluation of summaries", 2004, section 3.
    """
    said, wanted = plain(output).split(), plain(answer).split()
    common = _common_subsequence(said, wanted)
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(wanted)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        corner = 0
        for j, other in enumerate(b, 1):
            corner, row[j] = row[j], corner + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def bleu(outputs: Sequence[str], answers: Sequence[str], order: int = ORDER) -> Weighted:
    """BLEU of all pairs (n,) as one corpus, of n-grams up to `order`, one reference, unsmoothed.

    Source: Papineni et al., "BLEU: a method for automatic evaluation of machine translation", 2002.
    """
    pairs = [(plain(a).split(), plain(b).split()) for a, b in zip(outputs, answers, strict=True)]
    counts = np.array([_matches(*pair, order) for pair in pairs], np.float64)  # (n, 2 order + 2)

    def measure(weights: Floats) -> Floats:
        total = weights @ counts  # (R, 2 order + 2)
        right, said = total[:, :order], total[:, order : 2 * order]
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = np.exp(np.log(right / said).mean(1))
            brevity = np.exp(np.minimum(0, 1 - total[:, -1] / total[:, -2]))
        found: Floats = np.where((right > 0).all(1), mean * brevity, 0.0)
        return found

    return measure


def _matches(said: list[str], wanted: list[str], order: int) -> list[int]:
    right, made = [], []
    for n in range(1, order + 1):
        own, other = _grams(said, n), _grams(wanted, n)
        right.append(sum((own & other).values()))
        made.append(sum(own.values()))
    return [*right, *made, len(said), len(wanted)]


def _grams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def number_in(output: str) -> float:
    """An output that is a decimal number, e.g. a survival time; NaN: it is none."""
    said = output.strip().rstrip(".")
    return float(said) if re.fullmatch(r"\d+(\.\d+)?", said) else math.nan
