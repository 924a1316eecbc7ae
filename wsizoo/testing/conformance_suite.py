"""The conformance suite: what every encoder, selector, aggregator, head and whole model must do.

In a plugin's tests:

    from wsizoo.testing import conformance

    @conformance(MyAggregator, dim=32)
    def test_my_aggregator(check):
        check()

Each check is one function whose docstring is its reason. A class that must break a rule says so
itself, `conformance_exceptions = {"check name": "reason"}`; an exception that is not needed any
more fails. Small arguments for these checks may stand in the class: `conformance_params = {...}`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from wsizoo.errors import NotFoundError
from wsizoo.hookspecs import KINDS
from wsizoo.names import describe, suggest
from wsizoo.testing import _checks_aggregator as aggregators
from wsizoo.testing import _checks_bag as bags
from wsizoo.testing import _checks_part as parts
from wsizoo.testing._checks_encoder import ENCODER
from wsizoo.testing._checks_head import HEAD
from wsizoo.testing._checks_selector import SELECTOR
from wsizoo.testing._subject import IN_DIM, CheckError, Subject

Outcome = Literal["passed", "failed", "excepted"]
TRAINED = (*parts.ANY, *parts.TRAINED)
CHECKS: dict[str, tuple[Callable[[Subject], None], ...]] = {
    "aggregator": (*TRAINED, *parts.WIDTHS, *bags.BAG, *bags.PLACE, *aggregators.AGGREGATOR),
    "selector": (*TRAINED, *parts.WIDTHS, *bags.BAG, *SELECTOR),
    "head": (*TRAINED, *parts.WIDTHS, *HEAD),
    "encoder": (*parts.ANY, *ENCODER),
    "model": (*TRAINED, *bags.BAG, *bags.PLACE, *aggregators.MODEL),
}


@dataclass(frozen=True)
class Check:
    """One rule: its name, the reason for it, and the function that raises when it is broken."""

    name: str
    reason: str
    function: Callable[[Any], None]


@dataclass(frozen=True)
class Result:
    """What came of one check of one component.

    Args:
        component: whose it is, e.g. `"aggregator SPAN"`. check, why: the rule and its reason.
        outcome: passed; failed; or excepted: fails, as the class declares.
        reason: what is wrong, or the declared reason.
    """

    component: str
    check: str
    why: str
    outcome: Outcome
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Nothing to mend: passed, or excepted."""
        return self.outcome != "failed"


@dataclass(frozen=True)
class BoundCheck:
    """A check together with what it works on; calling it raises AssertionError when it fails."""

    check: Check
    subject: Subject

    def result(self) -> Result:
        """Run it, with the class's declared exceptions taken into account."""
        name, reason = self.check.name, self.check.reason
        whose = f"{self.subject.kind} {getattr(self.subject.cls, '__name__', self.subject.cls)}"
        declared = dict(getattr(self.subject.cls, "conformance_exceptions", {}))
        message = why_failed(self.check, self.subject)
        if name not in declared or name == "exceptions_exist":
            return Result(whose, name, reason, "failed" if message else "passed", message or "")
        if message:
            return Result(whose, name, reason, "excepted", declared[name])
        obsolete = f"passes, though conformance_exceptions declares '{name}': remove it there"
        return Result(whose, name, reason, "failed", obsolete)

    def __call__(self) -> None:
        result = self.result()
        if result.outcome == "failed":
            raise CheckError(f"{result.component}: {result.reason}. Why: {result.why}")


def why_failed(check: Check, subject: Any) -> str | None:
    """What is wrong, or None. Whatever a component raises is its failure."""
    try:
        check.function(subject)
    except CheckError as error:
        return str(error)
    except Exception as error:
        return f"raises {describe(error)}"
    return None


def as_check(function: Callable[[Any], None]) -> Check:
    """`check_<rule>` with its docstring's first line as the reason."""
    reason = (function.__doc__ or "").strip().splitlines()[0]
    return Check(function.__name__.removeprefix("check_"), reason, function)


def checks(kind: str) -> list[Check]:
    """All checks of one kind of component (or `"plugin"`), in order.

    Raises:
        NotFoundError: no such kind.
    """
    if kind == "plugin":
        from wsizoo.testing.plugin_check import PLUGIN

        return [as_check(function) for function in PLUGIN]
    if kind not in CHECKS:
        raise NotFoundError(f"No kind '{kind}'. {suggest(kind, [*KINDS, 'plugin'], 'Kinds: ')}")
    return [as_check(function) for function in CHECKS[kind]]


def bound_checks(
    maker: Callable[..., Any],
    kind: str = "aggregator",
    *,
    in_dim: int = IN_DIM,
    pixels: int = 32,
    **params: Any,
) -> list[BoundCheck]:
    """The checks of this kind, ready to be called on this component."""
    subject = Subject(maker, kind, in_dim, pixels)
    stated: Mapping[str, Any] = getattr(subject.cls, "conformance_params", {})
    given = {"in_dim": in_dim, "pixels": pixels, **stated, **params}
    in_dim, pixels = given.pop("in_dim"), given.pop("pixels")
    subject = Subject(maker, kind, in_dim, pixels, given)
    return [BoundCheck(check, subject) for check in checks(kind)]


def check_component(
    maker: Callable[..., Any],
    kind: str = "aggregator",
    *,
    in_dim: int = IN_DIM,
    pixels: int = 32,
    **params: Any,
) -> list[Result]:
    """Run every check on one component; nothing is raised.

    Args:
        maker: its class. kind: encoder, selector, aggregator, head or model.
        in_dim: width D of the features. pixels: edge of a patch in pixels, where it reads pixels.
        params: the component's keyword arguments; small ones make it quick.

    Cost: some 150 forward passes, most of them on 36 patches, two on 2,000.
    """
    bound = bound_checks(maker, kind, in_dim=in_dim, pixels=pixels, **params)
    return [check.result() for check in bound]


def conformance(
    maker: Callable[..., Any],
    kind: str = "aggregator",
    *,
    in_dim: int = IN_DIM,
    pixels: int = 32,
    **params: Any,
) -> Callable[[Callable[..., Any]], Any]:
    """A pytest decorator: the test runs once a check, and takes it as its argument `check`.

    Args: as `check_component`.
    """
    import pytest

    bound = bound_checks(maker, kind, in_dim=in_dim, pixels=pixels, **params)
    return pytest.mark.parametrize("check", bound, ids=[b.check.name for b in bound])
