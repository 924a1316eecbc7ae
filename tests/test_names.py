"""Names: near ones for messages, taken ones, and those of distributions."""

from typing import Any

import pytest

from wsizoo.errors import PluginError, SpecError
from wsizoo.names import check_distribution, describe, refuse_taken, suggest


def test_describe_names_the_kind_of_an_error() -> None:
    assert describe(KeyError("a")) == "KeyError: 'a'"
    assert describe(SystemExit()) == "SystemExit"


def test_suggestions_ignore_case_and_are_cut() -> None:
    assert suggest("ABMIL", ["abmil", "mean"], "") == "Did you mean 'abmil'?"
    listed = suggest("zzz", [f"name{i:02d}" for i in range(20)], "Known: ")
    assert listed.startswith("Known: name00, ") and listed.endswith("name11, ...")


def test_what_begins_as_was_typed_is_suggested() -> None:
    known = ["clam-official", "clamp", "mil-lab"]
    assert suggest("CLAM", known[::2], "") == "Did you mean 'clam-official'?"
    assert suggest("mil", known, "") == "Did you mean 'mil-lab'?"


def test_a_taken_name_names_both_owners() -> None:
    refuse_taken(["head 'x'"], {"head 'y'": "one"}, "two")
    with pytest.raises(PluginError, match=r"head 'x' of two exists already in one: uninstall one"):
        refuse_taken(["head 'x'"], {"head 'x'": "one"}, "two")


@pytest.mark.parametrize("name", [None, "a", "wsizoo-plugin-span", "Lab_X.models2"])
def test_a_distribution_has_a_name_that_pip_takes(name: str | None) -> None:
    check_distribution("model 'm'", name)


@pytest.mark.parametrize(
    "name",
    ["", "-r", "--index-url=x", "a b", "a; rm -rf .", "a\n", "git+https://x/y", "a-", "\u00e4", 3],
)
def test_what_pip_would_read_as_something_else_is_refused(name: Any) -> None:
    with pytest.raises(SpecError, match=r"model 'm': plugin is .*, expected the name of a distrib"):
        check_distribution("model 'm'", name)
