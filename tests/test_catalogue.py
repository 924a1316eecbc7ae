import json
from pathlib import Path
from typing import Any

import pytest

from wsizoo.catalogue import list_models, show, why_not_here
from wsizoo.errors import NotFoundError
from wsizoo.plugins import discover
from wsizoo.registry import Entry, Registry

MODELS: dict[str, dict[str, Any]] = {
    "a-mean": {"aggregator": "mean", "encoder": "free", "licence": "MIT"},
    "a-max": {
        "aggregator": "max",
        "encoder": "closed",
        "licence": "MIT",
        "head": {"name": "survival", "bins": 4},
        "weights": {"repo": "lab/a-max", "revision": "0" * 40, "sha256": "0" * 64},
    },
    "b-other": {
        "aggregator": "other",
        "encoder": "free",
        "licence": "CC-BY-NC-4.0",
        "plugin": "wsizoo-plugin-other",
        "weights": {"repo": "lab/b"},
    },
    "whole": {"model": "reader", "encoder": "unlisted", "licence": "Apache-2.0"},
    "missing-selector": {"selector": "topk", "aggregator": "mean", "encoder": "free"},
}
ENCODERS = {"free": {"licence": "Apache-2.0"}, "closed": {"licence": "CC-BY-NC-ND-4.0"}}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder: Path = tmp_path_factory.mktemp("registry")
    facts = {"summary": "s", "licence": "MIT", "source": "x"}
    content = {
        "models": {name: {**facts, **fields} for name, fields in MODELS.items()},
        "encoders": {name: {**facts, **fields} for name, fields in ENCODERS.items()},
    }
    (folder / "registry.yaml").write_text(json.dumps(content))
    plugins = discover([], allow="")
    plugins.all[0].registry = folder
    return Registry.of(plugins)


@pytest.mark.parametrize(
    ("pattern", "filters", "expected"),
    [
        ("*", {}, sorted(MODELS)),
        ("a-*", {}, ["a-max", "a-mean"]),
        ("A-*", {}, []),
        ("nothing", {}, []),
        ("*", {"aggregator": "mean"}, ["a-mean", "missing-selector"]),
        ("*", {"aggregator": "reader"}, ["whole"]),
        ("*", {"encoder": "closed"}, ["a-max"]),
        ("*", {"weights": True}, ["a-max", "b-other"]),
        ("*", {"weights": False}, ["a-mean", "missing-selector", "whole"]),
        ("*", {"commercial": True}, ["a-mean", "missing-selector", "whole"]),
        ("*", {"commercial": False}, ["a-max", "b-other"]),
        ("a-*", {"weights": True, "encoder": "closed", "commercial": False}, ["a-max"]),
    ],
)
def test_models_are_listed_by_pattern_and_filters(
    pattern: str, filters: dict[str, Any], expected: list[str], registry: Registry
) -> None:
    assert list_models(pattern, registry=registry, **filters) == expected


def test_facts_of_an_encoder_are_those_that_the_model_uses_it_with() -> None:
    facts = show("pixel-mamba-tiny")
    assert (facts["encoder"]["patch_size"], facts["encoder_facts"]["patch_size"]) == (32, 32)
    assert (facts["encoder"]["mpp"], facts["encoder_facts"]["mpp"]) == (4.0, 4.0)


def test_show_tells_everything_about_a_model(registry: Registry) -> None:
    facts = show("a-max", registry)
    assert facts["name"] == "a-max"
    assert facts["head"] == {"name": "survival", "bins": 4}
    assert facts["encoder_facts"]["licence"] == "CC-BY-NC-ND-4.0"
    assert (facts["weights_state"], facts["installed"], facts["commercial"]) == (
        "released",
        True,
        False,
    )
    json.dumps(facts)


@pytest.mark.parametrize(
    ("name", "state", "installed"),
    [
        ("a-mean", "none released", True),
        ("b-other", "not pinned", False),
        ("whole", "none released", False),
        ("missing-selector", "none released", False),
    ],
)
def test_show_tells_what_is_missing(
    name: str, state: str, installed: bool, registry: Registry
) -> None:
    facts = show(name, registry)
    assert (facts["weights_state"], facts["installed"]) == (state, installed)


def test_show_of_an_unlisted_encoder_has_no_facts(registry: Registry) -> None:
    assert show("whole", registry)["encoder_facts"] is None


def test_show_of_an_unknown_model_suggests_the_near_one(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match="Did you mean 'a-mean'"):
        show("a-meen", registry)


def test_show_tells_the_options_of_a_part(registry: Registry) -> None:
    facts = show("mean", registry)
    assert (facts["kind"], facts["from"]) == ("aggregator", "wsizoo")
    assert facts["models"] == ["a-mean", "missing-selector"]
    assert facts["options"] == {"dim": 512, "dropout": 0.0, "hidden": ()}
    assert facts["description"].startswith("The mean of the embedded patches.")
    assert "Args:" in facts["description"]
    assert show("survival", registry)["models"] == ["a-max"]
    with pytest.raises(NotFoundError, match="No model named 'meen'"):
        show("meen", registry)


def test_show_tells_everything_about_an_encoder(registry: Registry) -> None:
    facts = show("free", registry)
    assert (facts["name"], facts["kind"], facts["licence"]) == ("free", "encoder", "Apache-2.0")
    assert (facts["runs_here"], facts["commercial"]) == (False, True)
    assert facts["why_not"] == "only features of it are read"
    json.dumps(facts)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"component": "pixels"}, None),
        ({"component": "timm"}, 'pip install "wsizoo[encoders]"'),
        ({"component": "theirs", "plugin": "wsizoo-plugin-x"}, "pip install wsizoo-plugin-x"),
        ({"component": "theirs"}, "pip install the plugin that holds theirs"),
        ({"refused": "its code is not run"}, "its code is not run"),
    ],
)
def test_why_an_encoder_does_not_run_is_known_without_importing_it(
    record: dict[str, Any],
    reason: str | None,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert why_not_here(Entry("e", record, "a test"), registry) == reason
