"""wsizoo.mil.options: every number that is none is refused, whose it is, and what was expected."""

import math
import re
from typing import Any

import pytest

from wsizoo.errors import SpecError
from wsizoo.mil.options import check_choice, check_heads, check_shares, check_sizes


def test_what_fits_passes() -> None:
    check_sizes("X", dim=1, hidden=[3, 2], heads=None)
    check_sizes("X", 0, layers=0)
    check_shares("X", dropout=0, more=0.99, none=None)
    check_shares("X", whole=True, momentum=1.0)
    check_heads("X", 12, heads=4, cross_heads=1)
    check_choice("X", ("a", None), one="a", two=None)


@pytest.mark.parametrize("value", ["c", None, ["a"], 1])
def test_the_one_name_that_is_unknown_is_told_alone(value: Any) -> None:
    told = rf"^X's two is {re.escape(repr(value))}, expected one of a, b$"
    with pytest.raises(SpecError, match=told):
        check_choice("X", {"a": 1, "b": 2}, one="a", two=value)
    with pytest.raises(SpecError, match=r"expected one of a, null$"):
        check_choice("X", ("a", None), one="null" if value is None else value)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, math.nan])
def test_sizes_are_whole_numbers_from_one_on(value: Any) -> None:
    with pytest.raises(SpecError, match=r"X's dim is .*, expected a whole number"):
        check_sizes("X", dim=value)


def test_lists_are_of_sizes() -> None:
    with pytest.raises(SpecError, match=r"hidden is \[4, 0\], expected whole numbers from 1 on"):
        check_sizes("X", hidden=[4, 0])
    with pytest.raises(SpecError, match=r"X's hidden is \(-1,\), expected whole numbers from 0 on"):
        check_sizes("X", 0, hidden=(-1,))


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, math.nan])
def test_dropout_is_a_share_below_one(value: float) -> None:
    with pytest.raises(SpecError, match=r"X's dropout is .*, expected a share from 0 to below 1$"):
        check_shares("X", dropout=value)


def test_other_shares_may_be_one() -> None:
    with pytest.raises(SpecError, match=r"X's momentum is 1.1, expected a share from 0 to 1$"):
        check_shares("X", whole=True, momentum=1.1)


def test_heads_share_the_width() -> None:
    with pytest.raises(SpecError, match=r"X's dim is 12, expected a multiple of its cross_heads"):
        check_heads("X", 12, heads=4, cross_heads=5)
