"""Conversations about a slide as rows of token ids: template, placeholder, labels.

A conversation is rendered to text as a whole, split where the slide stands, and its pieces are
tokenised: nothing is tokenised apart from what it stands beside, and no token is added to the
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wsizoo.errors import DataError, SpecError
from wsizoo_plugin_sparselearn.vlm.questions import IMAGE

SLIDE = -200  # where it stands in a row; never shown to an embedding
UNLABELLED = -100
PLAIN = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'User: ' + m['content'] + '\n' }}"
    "{% else %}{{ 'Assistant: ' + m['content'] + eos_token + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
Turns = Sequence[tuple[str, str | None]]  # human, answer; the last answer may be open


@dataclass(frozen=True)
class Row:
    """One conversation: token ids, `SLIDE` among them, and labels, `UNLABELLED` for no label."""

    ids: list[int]
    labels: list[int]


class Text:
    """Turns conversations into rows, for one tokenizer.

    Args:
        tokenizer: a fast one of transformers.
        template: Jinja, as `apply_chat_template` takes it; None: the tokenizer's own, or, where it
            has none, `PLAIN`. No system text is given; a template may have one of its own.

    Raises:
        SpecError: the tokenizer does not say where its tokens stand in a text, or has no end token.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        if not tokenizer.is_fast:
            raise SpecError(
                f"slidevlm needs a fast tokenizer (one with a tokenizer.json), got a "
                f"{type(tokenizer).__name__}, which does not say where its tokens stand in a text"
            )
        self.tokenizer = tokenizer
        self.template: str = template or tokenizer.chat_template or PLAIN
        if self.template == PLAIN and tokenizer.eos_token is None:
            raise SpecError(
                "slidevlm: the tokenizer has neither a chat template nor an end token. Give it a "
                "template that ends an answer with a special token: model.template=..."
            )
        added = tokenizer.added_tokens_decoder.items()
        self._special = {i for i, t in added if t.special} - {tokenizer.unk_token_id}

    def prompt(self, turns: Turns, slide: bool = True) -> list[int]:
        """Ids up to where the answer of the last turn begins.

        Args:
            slide: the first turn holds `IMAGE`; False: it is left out.

        Raises:
            DataError: not one placeholder.
        """
        return self._tokens(self._opened(_without(turns, slide)), slide)[0]

    def continued(self, turns: Turns, answer: str, slide: bool = True) -> list[int]:
        """Ids of a conversation whose last turn is answered so, up to the end of that text."""
        turns = [*turns[:-1], (turns[-1][0], answer)]
        text, _, end = self._answer(_without(turns, slide))
        return self._tokens(text[:end], slide)[0]

    def answered(self, turns: Turns, slide: bool = True) -> Row:
        """A conversation with a label for each token of each answer, and of the token that ends it.

        Raises:
            DataError: not one placeholder; a turn without an answer; nothing to label.
            SpecError: a template whose conversations are not beginnings of longer ones, that
                changes answers, or ends them with no special token.
        """
        if open_ := [human for human, answer in turns if answer is None]:
            raise DataError(f"a turn to learn from has no answer: '{_short(open_[0])}'")
        turns = _without(turns, slide)
        text, spans = "", []
        for i in range(len(turns)):
            longer, start, end = self._answer(turns[: i + 1])
            self._check_begins(longer, text)
            spans.append((start, end, len(longer)))
            text = longer
        ids, places = self._tokens(text, slide)
        labels = [UNLABELLED] * len(ids)
        for start, end, stop in spans:
            within = [i for i, (a, b) in enumerate(places) if b > start and a < stop and a < b]
            own = [i for i in within if places[i][0] < end]
            last = own[-1] if own else min(within, default=len(ids)) - 1
            closing = next((i for i in within if i > last and ids[i] in self._special), None)
            if closing is None:
                raise self._wrong("ends an answer with no special token, so none would end")
            first = own[0] if own else closing
            labels[first : closing + 1] = ids[first : closing + 1]
        return self._checked(Row(ids, labels))

    def stops(self) -> list[int]:
        """Ids that end an answer: the template's, and the tokenizer's end token."""
        row = self.answered([("x", "y")], slide=False)
        closing = [label for label in row.labels if label != UNLABELLED][-1]
        eos = self.tokenizer.eos_token_id
        return sorted({closing} | ({eos} if eos is not None else set()))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _render(self, turns: Turns, opened: bool) -> str:
        messages = []
        for human, answer in turns:
            messages.append({"role": "user", "content": human})
            if answer is not None:
                messages.append({"role": "assistant", "content": answer})
        return str(
            self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=opened,
            )
        )

    def _opened(self, turns: Turns) -> str:
        """The text up to where the answer of the last turn begins."""
        return self._render([*turns[:-1], (turns[-1][0], None)], opened=True)

    def _answer(self, turns: Turns) -> tuple[str, int, int]:
        """The text, and where in it the last answer begins (after the prompt) and ends."""
        opened, text = self._opened(turns), self._render(turns, opened=False)
        self._check_begins(text, opened)
        answer = str(turns[-1][1]).strip()
        found = text.find(answer, len(opened))
        if found < 0:
            raise self._wrong(f"changes the answer '{_short(answer)}'")
        return text, len(opened), found + len(answer)

    def _check_begins(self, text: str, beginning: str) -> None:
        if not text.startswith(beginning):
            at = next((i for i, (a, b) in enumerate(zip(text, beginning, strict=False)) if a != b))
            raise self._wrong(
                "renders a conversation otherwise once it goes on, from "
                f"'{_short(beginning[at:])}', so answers cannot be told from questions"
            )

    def _tokens(self, text: str, slide: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a rendered conversation, and where in the text each stands."""
        pieces = text.split(IMAGE)
        if len(pieces) != 1 + slide:
            raise DataError(
                f"a conversation holds {len(pieces) - 1} placeholders {IMAGE}, expected "
                f"{int(slide)}: '{_short(text)}'"
            )
        ids, places, at = [], [], 0
        bos = self.tokenizer.bos_token
        if bos is not None and not text.startswith(bos):
            ids, places = [self.tokenizer.bos_token_id], [(0, 0)]
        for i, piece in enumerate(pieces):
            if i:
                ids, places = [*ids, SLIDE], [*places, (at, at)]
                at += len(IMAGE)
            told = self.tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
            ids += told["input_ids"]
            places += [(at + a, at + b) for a, b in told["offset_mapping"]]
            at += len(piece)
        return ids, places

    def _checked(self, row: Row) -> Row:
        if all(label == UNLABELLED for label in row.labels):
            raise DataError("a conversation has no answer to learn from: its loss would be NaN")
        return row

    def _wrong(self, what: str) -> SpecError:
        return SpecError(f"slidevlm: the chat template {what}. It is: '{_short(self.template)}'")


def _without(turns: Turns, slide: bool) -> Turns:
    """The turns, without the placeholder where no slide is shown. Raises DataError: no turn."""
    if not turns:
        raise DataError("a conversation has no turns")
    if slide:
        return turns
    return [(human.replace(IMAGE, "").strip(), answer) for human, answer in turns]


def _short(text: str, most: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."
