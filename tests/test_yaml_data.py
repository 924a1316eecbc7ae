"""YAML as data: no key twice, numbers as people write them, names of classes as typed."""

from typing import Any

import pytest

from wsizoo.yaml_data import read_value, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("3", 3),
        ("1e-3", 0.001),
        ("[-3, +4, 0, 10]", [-3, 4, 0, 10]),
        ("[011, 1_1, 1:30, 0x1f, 0b1]", ["011", "1_1", "1:30", "0x1f", "0b1"]),
        ("[a, 2, null]", ["a", 2, None]),
        ("{a: {b: yes}}", {"a": {"b": True}}),
        ("classes: [yes, 0.10, ~, 'x']", {"classes": ["yes", "0.10", "~", "x"]}),
        ("{head: {classes: [[1]]}}", {"head": {"classes": [[1]]}}),
        ("{classes: 3}", {"classes": 3}),
    ],
)
def test_a_text_is_read_as_data(text: str, value: Any) -> None:
    assert read_yaml(text) == value


def test_a_value_is_read_as_its_key_wants() -> None:
    assert read_value("classes", "[no, 1]") == ["no", "1"]
    assert read_value("layers", "[1, 2]") == [1, 2]
    assert read_value("classes", "") is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{a: 1, a: 2}", "'a' stands here a second time"),
        ("{[a]: 1}", "is no name"),
        ("[a", "line 2, column 1"),
        ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: 1\n---\nb: 2", "expected a single document"),
    ],
)
def test_what_is_no_data_is_a_value_error(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_yaml(text)
