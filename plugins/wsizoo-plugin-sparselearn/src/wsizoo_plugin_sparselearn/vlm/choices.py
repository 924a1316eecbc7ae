"""Which option a slide's language model finds likeliest: by its letter, or by its text."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wsizoo.errors import DataError, SpecError
from wsizoo_plugin_sparselearn.vlm.batches import at_least_float32
from wsizoo_plugin_sparselearn.vlm.questions import IMAGE
from wsizoo_plugin_sparselearn.vlm.text import Text, Turns

if TYPE_CHECKING:
    from wsizoo_plugin_sparselearn.vlm.slide_vlm import SlideVLM

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SCORINGS = {
    "letter": "log p of the option's letter, the options listed in the question",
    "sum": "log p of the option's text, the question alone being asked",
    "mean": "the same, a token",
    "per-character": "the same, a character",
    "pmi": "log p of the text with the slide, less that without",
}


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Args:
        index: of the option. scores: (C,) float32, of all, by `scoring`. text: the option's.
    """

    index: int
    text: str
    scores: Tensor
    scoring: str


@dataclass(frozen=True)
class Asked:
    """A question with options as rows of token ids.

    Args:
        prompt: up to where the answer begins. options: the same, each with its answer.
        start: how many ids all of them share.
    """

    prompt: list[int]
    options: list[list[int]]

    @property
    def start(self) -> int:
        rows = [self.prompt, *self.options]
        shared = zip(*rows, strict=False)
        return next((i for i, ids in enumerate(shared) if len(set(ids)) > 1), len(self.prompt))


def asked(question: str, options: Sequence[str] = ()) -> str:
    """A human's turn: the slide, the question and, if given, its options by letter, a line each.

    The slide stands first unless the question says where. As SlideBench asks:
    `<image>\\nQUESTION\\nA. ...\\nB. ...`.
    """
    head = question if IMAGE in question else f"{IMAGE}\n{question}"
    named = zip(LETTERS, options, strict=False)
    return "\n".join([head, *(f"{letter}. {option}" for letter, option in named)])


def answer_rows(text: Text, prompt: str, answers: Sequence[str], slide: bool = True) -> Asked:
    """A human's turn as a row, and one row for each way to answer it.

    Raises:
        DataError: fewer than two answers, an empty one, or two alike to the tokenizer.
    """
    if len(answers) < 2:
        raise DataError(f"a choice needs 2 or more answers, got {list(answers)}")
    turns: Turns = [(prompt, None)]
    options = [text.continued(turns, answer, slide) for answer in answers]
    rows = Asked(text.prompt(turns, slide), options)
    if len({tuple(row) for row in options}) < len(answers):
        raise DataError(
            f"two of the answers {', '.join(map(repr, answers))} are the same tokens to this "
            "tokenizer, so none can be chosen"
        )
    if min(map(len, options)) <= rows.start:
        raise DataError(f"an empty answer among {list(answers)}: nothing of it can be scored")
    return rows


def continuations(
    vlm: SlideVLM, tokens: Tensor | None, rows: Asked, cache: bool = True
) -> list[Tensor]:
    """log p (L_c,) float32 of each token after the shared ones, of each option.

    Args:
        tokens: (K, H) of the slide, or None. cache: keep what the model computed of the shared ids
            and copy it for each option (it grows in place); False: compute it anew.
    """
    start = rows.start
    prefix = vlm.embedded(rows.prompt[:start], tokens)  # (P, H)
    several = any(len(row) - start > 1 for row in rows.options)
    first = _forward(vlm.lm, prefix, keep=1, use_cache=cache and several)
    found = []
    for row in rows.options:
        more = row[start:]
        logits = first.logits[0, -1:]  # (1, V)
        if len(more) > 1:
            rest = vlm.embedded(more[:-1], None)  # (L_c - 1, H)
            if cache:
                past = copy.deepcopy(first.past_key_values)
                out = _forward(vlm.lm, rest, len(rest), past=past, before=len(prefix))
            else:
                out = _forward(vlm.lm, torch.cat([prefix, rest]), len(rest))
            logits = torch.cat([logits, out.logits[0]])  # (L_c, V)
        log_p = at_least_float32(logits).log_softmax(-1)
        ids = torch.tensor(more, device=log_p.device)
        found.append(log_p.gather(1, ids[:, None])[:, 0])  # (L_c,)
    return found


def option_scores(
    vlm: SlideVLM,
    tokens: Tensor | None,
    question: str,
    options: Sequence[str],
    scoring: str = "letter",
    cache: bool = True,
) -> Tensor:
    """Scores (C,) float32 of a question's options; see `SCORINGS`. Args, Raises: `answer_scores`.

    The options are listed in the question only where letters are scored.
    """
    if scoring != "letter":
        return answer_scores(vlm, tokens, asked(question), options, scoring, cache)
    if len(options) > len(LETTERS):
        raise DataError(f"there are {len(options)} options and {len(LETTERS)} letters")
    letters = LETTERS[: len(options)]
    return answer_scores(vlm, tokens, asked(question, options), letters, "sum", cache)


def answer_scores(
    vlm: SlideVLM,
    tokens: Tensor | None,
    prompt: str,
    answers: Sequence[str],
    scoring: str = "sum",
    cache: bool = True,
) -> Tensor:
    """Scores (C,) float32 of answers to a human's turn: log p of their tokens, added up or else.

    What ends an answer is not scored.

    Args:
        tokens: (K, H) of the slide; None: the placeholder is left out of the prompt.
        prompt: all that the human says, `<image>` once. scoring: "sum", "mean", ...

    Raises:
        SpecError: an unknown scoring. DataError: as `answer_rows`; "pmi" without a slide.
    """
    if scoring not in set(SCORINGS) - {"letter"}:
        raise SpecError(f"scoring is '{scoring}', expected {', '.join(SCORINGS)}")
    each = continuations(
        vlm, tokens, answer_rows(vlm.text, prompt, answers, tokens is not None), cache
    )
    scores = torch.stack([log_p.sum() for log_p in each])  # (C,)
    if scoring == "pmi":
        if tokens is None:
            raise DataError("scoring 'pmi' compares with and without a slide, and there is none")
        return scores - answer_scores(vlm, None, prompt, answers, "sum", cache)
    sizes = {"mean": [len(log_p) for log_p in each], "per-character": [len(a) for a in answers]}
    return scores / scores.new_tensor(sizes[scoring]) if scoring in sizes else scores


def _forward(
    lm: Any, x: Tensor, keep: int, past: Any = None, before: int = 0, use_cache: bool = False
) -> Any:
    """One row (L, H) through the language model; logits of its last `keep` places."""
    places = torch.arange(before, before + len(x), device=x.device)[None]
    return lm(
        inputs_embeds=x[None],
        attention_mask=places.new_ones((1, before + len(x))),
        position_ids=places,
        past_key_values=past,
        use_cache=use_cache or past is not None,
        logits_to_keep=keep,
    )
