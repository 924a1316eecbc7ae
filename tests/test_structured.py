"""wsizoo.structured: data become a dataclass, and what does not fit is named."""

from dataclasses import dataclass, field

import pytest

from wsizoo.errors import SpecError
from wsizoo.structured import MISSING, structured


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    few: int | None = None


@dataclass(frozen=True)
class Outer:
    name: str = MISSING
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    steps: list[int] = field(default_factory=list)
    names: list[str] | None = None


def test_content_is_laid_on_the_defaults_in_nested_dataclasses_too() -> None:
    assert structured(Outer, "x", {"name": "a"}) == Outer("a")
    content = {"name": "a", "inner": {"rate": 1}, "maybe": {}, "steps": [2]}
    assert structured(Outer, "x", content) == Outer("a", Inner(1.0), Inner(), [2])


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({}, r"^the file states no name$"),
        ({"name": "a", "iner": {}}, r"^the file: unknown field 'iner'. Did you mean 'inner'\?$"),
        ({"name": "a", "inner": {"x": 1}}, r"unknown field 'inner\.x'. Fields: few, rate\.$"),
        ({"name": "a", "inner": {"rate": "fast"}}, r"inner\.rate is 'fast', expected a number$"),
        ({"name": "a", "inner": {"few": "x"}}, r"inner\.few is 'x', expected a whole number$"),
        ({"name": "a", "inner": {"rate": None}}, r"inner\.rate is null, expected a number$"),
        ({"name": "a", "steps": [1, 2.5]}, r"steps\[1\] is 2\.5, expected a whole number$"),
        ({"name": "a", "steps": 2}, r"^the file: steps is 2, expected a list: steps=\[2\]$"),
        ({"name": "a", "names": "b"}, r"names is 'b', expected a list: names=\[b\]$"),
        ({"name": [1]}, r"^the file: name is \[1\], expected text$"),
        ({"name": "a", "inner": 3}, "^the file: a field: .*Inner"),
    ],
)
def test_what_does_not_fit_is_named_with_its_key(content: dict[str, object], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        structured(Outer, "the file", content)
