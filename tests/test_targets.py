"""From a target's text to an object, through imports and calls that may fail."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from wsizoo.errors import PluginError, SpecError
from wsizoo.targets import REQUIRED, call, load_target, options_of


def raising(error: BaseException) -> Callable[[str], Any]:
    def load(name: str) -> Any:
        raise error

    return load


class Base:
    def __init__(self, in_dim: int, out_dim: int, k: int = 3, *, bias: bool = True) -> None: ...


class Handing(Base):
    def __init__(self, in_dim: int, lm: str, k: int = 5, **options: Any) -> None: ...


class Own(Base):
    def __init__(self, in_dim: int, n_outputs: int | None, task: str | None = None) -> None: ...


class Typed(Base):
    options_type = Base

    def __init__(self, in_dim: int, **options: Any) -> None: ...


def test_options_are_those_that_wsizoo_does_not_give() -> None:
    assert options_of(Handing) == {"lm": REQUIRED, "k": 5, "bias": True}
    assert options_of(Own) == {}
    assert options_of(Typed) == {"k": 3, "bias": True}


def test_ctrl_c_passes_through_a_component_s_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.import_module", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        load_target("pkg.model:Class", "a test")


def test_a_target_whose_module_fails_names_the_cause() -> None:
    with pytest.raises(
        PluginError,
        match="a test cannot be imported from 'no_such:X': ModuleNotFoundError: No module named",
    ):
        load_target("no_such:X", "a test")


@pytest.mark.parametrize("error", [SystemExit(1), AttributeError("half way"), KeyError("x")])
def test_whatever_a_target_s_module_raises_is_a_plugin_error(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.import_module", raising(error))
    with pytest.raises(PluginError, match=f"cannot be imported from .*{type(error).__name__}"):
        load_target("pkg.model:Class", "a test")


def made(in_dim: int, dim: int, dropout: float = 0.0) -> tuple[int, int, float]:
    if dim < 0:
        raise ValueError("a negative dim")
    return in_dim, dim, dropout


class Base:
    def __init__(self, in_dim: int, rate: float = 1.0, deep: bool = True) -> None: ...


class Part(Base):
    def __init__(
        self,
        in_dim: int,
        k: int | float = 32,
        name: str | None = None,
        widths: Sequence[int] = (),
        whatever: Any = None,
        **more: Any,
    ) -> None:
        super().__init__(in_dim, **more)


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"k": "abc"}, "selector 'x': k is 'abc', expected a number"),
        ({"rate": "hot"}, "rate is 'hot', expected a number"),
        ({"rate": True}, "rate is True, expected a number"),
        ({"deep": "maybe"}, "deep is 'maybe', expected true or false"),
        ({"deep": 1}, "deep is 1, expected true or false"),
        ({"widths": 512}, "widths is 512, expected a list"),
        ({"name": 3}, "name is 3, expected text"),
        ({"name": ["a"]}, r"name is \['a'\], expected text"),
    ],
)
def test_arguments_of_another_kind_are_named(params: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        call(Part, "selector 'x'", params, in_dim=8)


def test_arguments_of_their_kind_pass() -> None:
    assert isinstance(call(Part, "selector 'x'", {"widths": [3]}, in_dim=8), Part)
    for params in ({"k": 2}, {"k": 0.5}, {"rate": 1, "deep": False}, {"name": None, "whatever": 3}):
        assert isinstance(call(Part, "selector 'x'", params, in_dim=8), Part)


def test_arguments_of_the_entry_and_of_the_model_are_given_together() -> None:
    assert call(made, "aggregator 'x'", {"dim": 3}, in_dim=8) == (8, 3, 0.0)


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"dim": 3, "dropuot": 1}, r"'x' has no argument 'dropuot'\. Did you mean 'dropout'\?"),
        ({"dim": 3, "in_dim": 4}, r"'x' has no argument 'in_dim'"),
        ({}, r"'x' needs dim\. Give it: aggregator\.dim=VALUE"),
        ({"dim": -1}, r"'x' cannot be made with \{'dim': -1\}: a negative dim"),
    ],
)
def test_arguments_that_do_not_fit_are_named(params: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        call(made, "aggregator 'x'", params, in_dim=8)
