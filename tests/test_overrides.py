"""Overrides of an entry; tests/test_spec.py shows what becomes of the whole entry."""

from typing import Any

import pytest

from wsizoo.errors import SpecError
from wsizoo.overrides import in_full, lay_over


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("head.classes=[yes,no]", {"head": {"name": "x", "classes": ["yes", "no"]}}),
        ("head.bins=4", {"head": {"name": "x", "bins": 4}}),
        ("head=y", {"head": {"name": "y"}}),
        ("head=", {"head": None}),
        ("weights.repo=lab/m", {"head": {"name": "x"}, "weights": {"repo": "lab/m"}}),
    ],
)
def test_an_override_is_laid_over_in_place(text: str, expected: dict[str, Any]) -> None:
    content: dict[str, Any] = {"head": {"name": "x"}}
    lay_over("model 'm'", content, text)
    assert content == expected


def test_what_has_no_place_is_named() -> None:
    with pytest.raises(SpecError, match=r"model 'm' has no selector, so selector\.k changes noth"):
        lay_over("model 'm'", {}, "selector.k=3")
    with pytest.raises(SpecError, match=r"model 'm': head is \['a'\], it has no 'k'"):
        lay_over("model 'm'", {"head": ["a"]}, "head.k=3")


def test_a_bare_name_of_a_part_stands_for_a_mapping() -> None:
    assert in_full("encoder", "uni") == {"name": "uni"}
    assert in_full("summary", "uni") == "uni"
