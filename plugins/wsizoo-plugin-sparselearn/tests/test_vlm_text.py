"""Conversations as rows of ids: against lists written by hand."""

import re
from pathlib import Path
from typing import Any

import pytest
from wsizoo_plugin_sparselearn.vlm.text import Text
from wsizoo_plugin_sparselearn.vlm.tiny import CHAT, ids, tokenizer

from wsizoo.errors import DataError, SpecError

TWO_TURNS = [("<image>\nis ring seen ?", "yes"), ("where ?", "A . no")]


def shown(row: Any, text: str) -> None:
    """`text`: words, the labelled ones after a `=`."""
    words = text.split()
    assert row.ids == ids(" ".join(w.lstrip("=") for w in words))
    assert row.labels == [ids(w[1:])[0] if w.startswith("=") else -100 for w in words]


def test_the_plain_template_labels_each_answer_and_its_end() -> None:
    row = Text(tokenizer()).answered(TWO_TURNS)
    shown(
        row,
        "<bos> User: @ is ring seen ? Assistant: =yes =<eos> "
        "User: where ? Assistant: =A =. =no =<eos>",
    )


def test_a_chat_template_of_the_tokenizer_is_used_and_states_its_own_beginning() -> None:
    row = Text(tokenizer(CHAT)).answered(TWO_TURNS)
    shown(
        row,
        "<bos> user : @ is ring seen ? <end> assistant : =yes =<end> "
        "user : where ? <end> assistant : =A =. =no =<end>",
    )


def test_a_template_that_is_given_takes_the_place_of_the_tokenizers() -> None:
    chat = CHAT.replace("{{ bos_token }}", "")
    assert Text(tokenizer(CHAT), chat).prompt([("<image>", None)]) == ids(
        "<bos> user : @ <end> assistant :"
    )


def test_the_slide_may_stand_anywhere_in_the_first_turn() -> None:
    assert Text(tokenizer()).prompt([("is ring <image> seen ?", None)]) == ids(
        "<bos> User: is ring @ seen ? Assistant:"
    )


def test_without_a_slide_the_placeholder_is_left_out() -> None:
    assert Text(tokenizer()).prompt([("<image>\nwhere ?", None)], slide=False) == ids(
        "<bos> User: where ? Assistant:"
    )


def test_what_is_continued_ends_with_the_answers_text() -> None:
    turns = [("<image>\nwhere ?", None)]
    text = Text(tokenizer(CHAT))
    assert text.continued(turns, "A") == ids("<bos> user : @ where ? <end> assistant : A")
    assert text.continued(turns, "A")[:-1] == text.prompt(turns)


@pytest.mark.parametrize(("chat", "stops"), [(None, "<eos>"), (CHAT, "<eos> <end>")])
def test_an_answer_stops_at_the_templates_end_or_the_tokenizers(chat: Any, stops: str) -> None:
    assert Text(tokenizer(chat)).stops() == sorted(ids(stops))


def test_an_empty_answer_teaches_its_end_alone() -> None:
    shown(Text(tokenizer()).answered([("<image>", "")]), "<bos> User: @ Assistant: =<eos>")


@pytest.mark.parametrize(("human", "count"), [("where ?", 0), ("<image> where <image> ?", 2)])
def test_a_slide_question_has_one_placeholder(human: str, count: int) -> None:
    match = re.escape(f"holds {count} placeholders <image>, expected 1")
    with pytest.raises(DataError, match=match):
        Text(tokenizer()).prompt([(human, None)])


def test_an_answer_with_a_placeholder_is_refused() -> None:
    with pytest.raises(DataError, match="holds 2 placeholders"):
        Text(tokenizer()).answered([("<image>", "<image>")])


def test_a_turn_without_an_answer_teaches_nothing() -> None:
    with pytest.raises(DataError, match="a turn to learn from has no answer: '<image> where"):
        Text(tokenizer()).answered([("<image> where ?", None)])
    with pytest.raises(DataError, match="a conversation has no turns"):
        Text(tokenizer()).answered([])


@pytest.mark.parametrize(
    ("chat", "match"),
    [
        (CHAT.replace("' <end>'", "' .'"), "ends an answer with no special token"),
        (
            "{{ messages|length }} " + CHAT,
            r"renders a conversation otherwise once it goes on, from '1 .*It is: '\{\{ messages",
        ),
        (CHAT.replace("m['content']", "m['content']|upper"), "changes the answer 'yes'"),
    ],
)
def test_a_template_that_labels_cannot_be_found_in_is_named(chat: str, match: str) -> None:
    with pytest.raises(SpecError, match=match):
        Text(tokenizer(chat)).answered([("<image>", "yes"), ("where ?", "no")])


def test_labels_of_a_byte_level_tokenizer_cover_the_answer_and_no_more(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = pre_tokenizers.ByteLevel.alphabet()
    vocab = {c: i for i, c in enumerate(sorted(letters))} | {"ĠA": 256, "<eos>": 257}
    made = Tokenizer(models.BPE(vocab, [("Ġ", "A")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")
    text = Text(fast)
    row = text.answered([("<image>\nQ?", "A\n\nB")])
    labelled = [label for label in row.labels if label != -100]
    assert fast.decode(labelled) == " A\n\nB<eos>"
    # The letter and the space before it are one token, in the prompt neither is there.
    turns = [("<image>\nQ?", None)]
    assert text.continued(turns, "A") == [*text.prompt(turns), 256]


def test_a_tokenizer_without_an_end_token_needs_a_template() -> None:
    without = tokenizer()
    without.eos_token = None
    with pytest.raises(SpecError, match="neither a chat template nor an end token"):
        Text(without)


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(SpecError, match=r"needs a fast tokenizer .* got a Slow"):
        Text(Slow())
