"""What was generated, read as an option; and how near free text is to an answer."""

import math

import numpy as np
import pytest
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

from wsizoo.measures.weighted import value_of

OPTIONS = {"A": "Grade 1", "B": "Grade 12", "C": "Invasive carcinoma", "D": "Vitamin A. deficiency"}


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("B", "B"),
        (" b ", "B"),
        ("(B)", "B"),
        ("E", None),
        ("", None),
        ("B. Grade 12", "B"),
        ("B) because of A", "B"),
        ("(C) it is", "C"),
        ("D. Vitamin A. deficiency", "D"),
        ("A. Grade 1 B. Grade 12", None),
        ("A. or B.", None),
        ("A and B", None),
        ("A tumour is seen.", None),
        ("A tumour of grade 1 is seen.", "A"),
        ("The answer is C.", "C"),
        ("The answer is C because it is", "C"),
        ("answer: B", "B"),
        ("Answer is: (B)", "B"),
        ("The answer is A tumour", None),
        ("The answer is A.", "A"),
        ("The answer is A. No, the answer is B.", None),
        ("The answer is unclear", None),
        ("grade 12!", "B"),
        ("It is Grade 12, surely", "B"),
        ("Grade 1 or Grade 12", None),
        ("a non-invasive carcinoma", None),
        ("an invasive carcinoma", "C"),
        ("E. coli in an invasive carcinoma", "C"),
        ("The answer is E.", None),
    ],
)
def test_an_output_names_an_option_or_none(output, letter):
    assert parse_letter(output, OPTIONS) == letter


def test_options_that_differ_in_punctuation_alone_are_told_by_exact_text():
    options = {"A": "ER+", "B": "ER-"}
    assert parse_letter("er-", options) == "B"
    assert parse_letter("it is ER-", options) is None


def test_an_option_within_a_longer_one_that_was_said_does_not_count():
    options = {"A": "carcinoma", "B": "squamous cell carcinoma"}
    assert parse_letter("a squamous cell carcinoma", options) == "B"


def test_a_strict_match_is_of_the_whole_text():
    assert strict_match(" High. ", "high")
    assert strict_match("-", "-")
    assert not strict_match("high grade", "high")
    assert not strict_match("", "")
    assert not strict_match("!", "?")


def test_the_published_match_of_wsi_vqa_calls_the_empty_output_right():
    choices = ["low", "intermediate", "high", "not mentioned"]
    assert all(wsi_vqa_difflib("", answer, choices) for answer in choices)
    assert [c for c in choices if wsi_vqa_difflib("hihg", c, choices)] == ["high"]
    assert [c for c in choices if wsi_vqa_difflib("a", c, choices)] == ["intermediate"]


def test_no_and_not_are_words():
    assert says_no("No, it is benign.")
    assert says_no("It is not.")
    assert not says_no("Nodes are normal")
    assert not says_no("")


def test_words_are_counted_as_often_as_they_stand_there():
    assert token_f1("The tumour.", "the tumour") == 1
    assert token_f1("a a b", "a c") == pytest.approx(2 * 1 / 5)
    assert token_f1("", "a") == token_f1("a", "") == 0


def test_rouge_l_is_of_the_longest_common_subsequence():
    # "the cell is large" and "the large cell": "the cell" is common
    p, r = 2 / 4, 2 / 3
    expected = (1 + 1.44) * p * r / (r + 1.44 * p)
    assert rouge_l("the cell is large", "the large cell") == pytest.approx(expected)
    assert rouge_l("same words", "Same words!") == pytest.approx(1)
    assert rouge_l("", "x") == 0


def test_bleu_is_of_all_pairs_together():
    said, wanted = ["the cat sat on the mat", "x y"], ["the cat is on the mat", "x y"]
    # 1-grams: 5 + 2 of 6 + 2; 2-grams: 3 + 1 of 5 + 1; lengths are alike
    assert value_of(bleu(said, wanted, 1), 2) == pytest.approx(7 / 8)
    assert value_of(bleu(said, wanted, 2), 2) == pytest.approx(math.sqrt(7 / 8 * 4 / 6))
    assert value_of(bleu(["a"], ["a b c"], 1), 1) == pytest.approx(math.exp(1 - 3))
    assert value_of(bleu(["q"], ["a"], 1), 1) == 0
    assert value_of(bleu([""], ["a"], 1), 1) == 0
    # a resample of the second pair alone
    assert bleu(said, wanted, 1)(np.array([[0.0, 2.0]]))[0] == pytest.approx(1)


def test_a_survival_time_is_a_decimal_and_nothing_else():
    assert [number_in(text) for text in ("812", " 81.5. ")] == [812, 81.5]
    assert all(math.isnan(number_in(text)) for text in ("", "about 3", "3 days", "-1"))
