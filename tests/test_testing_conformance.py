import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from wsizoo.errors import NotFoundError
from wsizoo.mil.abmil import ABMIL
from wsizoo.mil.heads import (
    ClassificationHead,
    CoxHead,
    RegressionHead,
    SegmentationHead,
    SurvivalHead,
)
from wsizoo.mil.pooling import MaxPooling, MeanPooling
from wsizoo.testing import check_component, checks, conformance
from wsizoo.testing._museum_aggregators import Sound
from wsizoo.testing._subject import CheckError
from wsizoo.testing.conformance_suite import CHECKS, bound_checks
from wsizoo.testing.museum import EXHIBITS, SOUND, Exhibit

CORE: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "mean": (MeanPooling, "aggregator", {"dim": 32}),
    "mean-no-embedding": (MeanPooling, "aggregator", {"dim": None}),
    "max": (MaxPooling, "aggregator", {"dim": 32}),
    "abmil-gated": (ABMIL, "aggregator", {"dim": 32, "attention": 8}),
    "abmil-plain": (ABMIL, "aggregator", {"dim": 32, "attention": 8, "gated": False}),
    "classification": (ClassificationHead, "head", {}),
    "survival": (SurvivalHead, "head", {}),
    "cox": (CoxHead, "head", {}),
    "segmentation": (SegmentationHead, "head", {}),
    "regression": (RegressionHead, "head", {}),
}


def broken(maker: Any, kind: str, **params: Any) -> dict[str, str]:
    """Failed checks by name, with their messages."""
    results = check_component(maker, kind, **params)
    return {result.check: result.reason for result in results if not result.passed}


@pytest.mark.parametrize("name", CORE)
def test_the_cores_own_components_conform(name: str) -> None:
    maker, kind, params = CORE[name]
    assert broken(maker, kind, **params) == {}


def test_the_built_in_encoder_conforms() -> None:
    encoders = pytest.importorskip("wsizoo.encoders.builtin")
    assert broken(encoders.HandcraftedHE, "encoder") == {}


@pytest.mark.parametrize(
    ("maker", "kind"), SOUND, ids=lambda value: getattr(value, "__name__", value)
)
def test_the_models_of_the_exhibits_conform(maker: Any, kind: str) -> None:
    assert broken(maker, kind) == {}


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda e: f"{e.maker.__name__}-{e.caught_by}")
def test_exactly_the_declared_checks_catch_an_exhibit(exhibit: Exhibit) -> None:
    failed = broken(exhibit.maker, exhibit.kind)
    assert set(failed) == {exhibit.caught_by, *exhibit.also_fails}, failed


def test_every_check_has_an_exhibit_that_it_must_catch() -> None:
    names = {check.name for kind in CHECKS for check in checks(kind)}
    assert names == {exhibit.caught_by for exhibit in EXHIBITS}


def test_every_check_states_its_reason_in_one_line() -> None:
    for kind in (*CHECKS, "plugin"):
        for check in checks(kind):
            assert 20 < len(check.reason) < 100, check
            assert check.reason.endswith("."), check


def test_names_of_checks_are_unique_within_a_kind() -> None:
    for kind in (*CHECKS, "plugin"):
        names = [check.name for check in checks(kind)]
        assert len(set(names)) == len(names)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(NotFoundError, match=r"No kind 'agregator'\. Did you mean 'aggregator'"):
        checks("agregator")


class Excused(Sound):
    order_matters = True
    conformance_exceptions: ClassVar = {"permutation_as_declared": "shown to be excused"}


def test_a_declared_exception_is_reported_with_its_reason_and_does_not_fail() -> None:
    results = {r.check: r for r in check_component(Excused)}
    result = results["permutation_as_declared"]
    assert (result.outcome, result.reason) == ("excepted", "shown to be excused")
    assert {r.outcome for r in results.values()} == {"passed", "excepted"}


def test_a_declared_exception_that_passes_fails() -> None:
    exhibit = next(e for e in EXHIBITS if e.maker.__name__ == "NeedlessExcuse")
    message = broken(exhibit.maker, exhibit.kind)["one_patch"]
    assert "passes, though conformance_exceptions declares 'one_patch': remove it" in message


def test_a_failed_check_says_whose_what_and_why() -> None:
    exhibit = next(e for e in EXHIBITS if e.maker.__name__ == "MisstatesWidth")
    check = next(c for c in bound_checks(exhibit.maker) if c.check.name == "stated_widths")
    expected = r"aggregator MisstatesWidth: in_dim is 1, was given 24\. Why: The next part"
    with pytest.raises(CheckError, match=expected):
        check()


class NeedsSize(Sound):
    conformance_params: ClassVar = {"size": 3, "in_dim": 8}

    def __init__(self, in_dim: int, size: int) -> None:
        assert (in_dim, size) in ((8, 3), (8, 4))
        super().__init__(in_dim)


def test_arguments_stated_in_the_class_are_used_and_can_be_overridden() -> None:
    assert broken(NeedsSize, "aggregator") == {}
    assert broken(NeedsSize, "aggregator", size=4) == {}


def test_a_component_that_cannot_be_built_fails_with_its_own_words() -> None:
    failed = broken(ABMIL, "aggregator", width=3)
    assert "unexpected keyword argument 'width'" in failed["one_patch"]


@conformance(ABMIL, dim=16, attention=4)
def test_the_decorator_runs_one_test_a_check(check: Any) -> None:
    check()


def test_the_kit_imports_neither_torch_nor_pytest_until_it_is_used() -> None:
    code = (
        "import sys, wsizoo.testing as t; dir(t); assert 'torch' not in sys.modules;"
        "t.check_component; t.check_plugin; t.compare; t.check_op_backend; t.conformance;"
        "assert callable(t.conformance) and callable(t.parity);"
        "assert 'pytest' not in sys.modules"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=60)
