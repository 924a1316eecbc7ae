import inspect

import pytest

from wsizoo.encoders.networks import NetworkEncoder
from wsizoo.hookspecs import Component
from wsizoo.interfaces import Aggregator, Encoder, Head, Part
from wsizoo.plugins import CORE, discover
from wsizoo.targets import load_target

PLUGINS = discover([], allow="")
BASES: dict[str, type[Part]] = {"encoder": Encoder, "aggregator": Aggregator, "head": Head}


def test_the_core_is_a_plugin_like_any_other() -> None:
    (core,) = PLUGINS.all
    assert (core.name, core.distribution, core.works) == (CORE, "wsizoo", True)
    assert not core.imports_torch
    assert core.registry is not None and (core.registry / "registry.yaml").is_file()


@pytest.mark.parametrize("component", PLUGINS.components(), ids=lambda c: f"{c.kind}-{c.name}")
def test_every_component_of_the_core_is_what_it_says(component: Component) -> None:
    made = load_target(component.target, component.name)
    assert issubclass(made, BASES[component.kind])
    assert inspect.getdoc(made)
    assert component.source == "folklore" or component.source.startswith(("https://", "wsizoo"))
    assert 10 < len(component.summary) < 60 and not component.summary.endswith(".")


def test_the_built_in_encoders_are_called_what_the_catalogue_calls_them() -> None:
    for component in PLUGINS.components("encoder"):
        made = load_target(component.target, component.name)
        named = not issubclass(made, NetworkEncoder)  # those are named by their entries
        assert not named or made.name == component.name
