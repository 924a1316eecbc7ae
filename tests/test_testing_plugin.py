import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from wsizoo.errors import NotFoundError
from wsizoo.testing import check_plugin
from wsizoo.testing.plugin_check import PluginReport

HOOKS = """
from pathlib import Path
from wsizoo import Component, OpBackend, hookimpl

wsizoo_api = 1

@hookimpl
def wsizoo_components():
    return [Component("aggregator", "{name}", "{name}_model:Mine", "one line", "a paper")]
"""
ENTRIES = """
@hookimpl
def wsizoo_registry():
    return Path(__file__).parent
"""
BACKENDS = """
@hookimpl
def wsizoo_op_backends():
    return [OpBackend("segment_sum", "mine", "{name}_model:run", "{name}_model:why_not")]
"""
FORMATS = """
from wsizoo import WeightFormat

@hookimpl
def wsizoo_weight_formats():
    return [WeightFormat("Theirs", ("{name}",), "{name}_model:Layout", "", "a paper")]
"""
LIGHT_MODEL = "class Mine: pass\n"
MODEL = """
from wsizoo.testing._museum_aggregators import Sound

class Mine(Sound):
    conformance_params = {"in_dim": 8}
"""
REGISTRY = """
models:
  {name}-toy:
    summary: a toy
    licence: MIT
    source: a paper
    encoder: {{name: made-up, dim: 8}}
    aggregator: {name}
    head: {{name: classification}}
"""

Maker = Callable[..., str]


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Maker]:
    """Writes a plugin's modules; returns the hook module's name, which is this test's own."""
    name = "zz_" + tmp_path.name.replace("-", "_").lower()
    monkeypatch.syspath_prepend(tmp_path)

    def make(hooks: str = HOOKS, model: str = LIGHT_MODEL, registry: str = REGISTRY) -> str:
        for suffix, code in (("_hooks.py", hooks), ("_model.py", model)):
            (tmp_path / (name + suffix)).write_text(code.replace("{name}", name))
        (tmp_path / "registry.yaml").write_text(registry.format(name=name))
        return name + "_hooks"

    yield make
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


def failures(report: PluginReport) -> dict[str, str]:
    return {result.check: result.reason for result in report.failures}


def test_a_sound_plugin_passes_with_its_components(plugin: Maker) -> None:
    report = check_plugin(plugin(HOOKS + ENTRIES, MODEL))
    assert failures(report) == {}
    assert report.passed
    assert {result.component.split()[0] for result in report.results} == {"plugin", "aggregator"}


def test_a_broken_rule_and_an_entry_that_does_not_build_are_reported(plugin: Maker) -> None:
    registry = REGISTRY.replace("aggregator: {name}", "aggregator: {{name: {name}, width: 3}}")
    model = MODEL + "    order_matters = True\n"
    failed = failures(check_plugin(plugin(HOOKS + ENTRIES, model, registry)))
    assert set(failed) == {"permutation_as_declared", "entries_build"}
    assert "has no argument 'width'" in failed["entries_build"]


@pytest.mark.parametrize("stands_in", [True, False])
def test_what_an_entry_needs_of_elsewhere_is_stood_in_for(plugin: Maker, stands_in: bool) -> None:
    registry = REGISTRY.replace("aggregator:", "model:")
    registry = registry.replace("    head: {{name: classification}}", "")
    model = """
        from wsizoo import WholeModel

        class Mine(WholeModel):
            conformance_overrides = ("model.file=here",)

            def __init__(self, in_dim, file="elsewhere"):
                super().__init__()
                if file != "here":
                    raise ValueError("no such file")
    """
    if not stands_in:
        model = model.replace("conformance_overrides", "others")
    hooks = HOOKS.replace('"aggregator"', '"model"') + ENTRIES
    failed = failures(check_plugin(plugin(hooks, dedent(model), registry), components=False))
    assert ("no such file" in failed.get("entries_build", "")) is not stands_in
    assert set(failed) <= {"entries_build"}


def test_heavy_imports_and_connections_at_hook_import_are_caught(plugin: Maker) -> None:
    start = """
        import socket
        import numpy
        try:
            socket.create_connection(("127.0.0.1", 9))
        except OSError:
            pass
    """
    failed = failures(check_plugin(plugin(dedent(start) + HOOKS), components=False))
    assert set(failed) == {"hooks_are_light", "hooks_open_no_socket"}
    assert "imports numpy; use them in model.py" in failed["hooks_are_light"]
    assert "127.0.0.1" in failed["hooks_open_no_socket"]


def test_a_connection_when_a_component_is_imported_is_caught(plugin: Maker) -> None:
    start = """
        import socket
        try:
            socket.create_connection(("127.0.0.1", 9))
        except OSError:
            pass
    """
    failed = failures(check_plugin(plugin(model=dedent(start) + LIGHT_MODEL), components=False))
    assert set(failed) == {"components_open_no_socket"}


def test_what_a_module_prints_does_not_disturb_the_check(plugin: Maker) -> None:
    hooks = "print('{}')\n" + HOOKS
    assert (
        failures(check_plugin(plugin(hooks, "print('hello')\n" + LIGHT_MODEL), components=False))
        == {}
    )


def test_a_module_that_ends_the_process_is_caught(plugin: Maker) -> None:
    model = "import os, sys\nif '_plugin_probe' in sys.argv[0]:\n    os._exit(3)\n" + LIGHT_MODEL
    failed = failures(check_plugin(plugin(model=model)))
    assert "importing it ends the process (3)" in failed["components_importable"]


def test_a_component_that_is_not_there_is_caught(plugin: Maker) -> None:
    failed = failures(check_plugin(plugin(model="Other = 1")))
    assert set(failed) == {"components_importable"}
    assert "has no attribute 'Mine'" in failed["components_importable"]


def test_a_plugin_in_quarantine_is_reported_with_the_reason(plugin: Maker) -> None:
    failed = failures(check_plugin(plugin(HOOKS.replace("wsizoo_api = 1", "wsizoo_api = 2"))))
    assert set(failed) == {"plugin_works"}
    assert "wsizoo_api = 2" in failed["plugin_works"]


def test_a_plugin_without_hooks_is_caught(plugin: Maker) -> None:
    assert set(failures(check_plugin(plugin("wsizoo_api = 1")))) == {"offers_something"}


def test_names_summaries_and_licences_are_required(plugin: Maker) -> None:
    hooks = HOOKS.replace('"one line"', '" "').replace('"{name}"', '"Big"')
    registry = REGISTRY.replace("aggregator: {name}", "aggregator: mean").replace("MIT", "''")
    failed = failures(check_plugin(plugin(hooks + ENTRIES, registry=registry), components=False))
    assert set(failed) == {"names_lower_case", "summary_and_source", "entries_parse"}, failed
    assert "'Big' is not a plain lower-case name" in failed["names_lower_case"]
    assert "has an empty summary" in failed["summary_and_source"]
    assert "licence" in failed["entries_parse"]


def test_an_encoder_that_calls_itself_otherwise_is_caught(plugin: Maker) -> None:
    hooks = HOOKS.replace('"aggregator"', '"encoder"')
    model = LIGHT_MODEL.replace("pass", "name = 'other'")
    failed = failures(check_plugin(plugin(hooks, model), components=False))
    assert set(failed) == {"encoder_names_agree"}


def test_backends_must_name_an_op_and_take_its_arguments(plugin: Maker) -> None:
    functions = "def run(values, cuts): ...\ndef why_not(*args): return 'not here'\n"
    report = check_plugin(plugin(HOOKS + BACKENDS, LIGHT_MODEL + functions), components=False)
    expected = "takes ['values', 'cuts'], the reference takes ['values', 'offsets']"
    assert set(failures(report)) == {"backends_fit"}
    assert expected in failures(report)["backends_fit"]


def test_a_weight_format_is_checked_as_a_component_is(plugin: Maker) -> None:
    failed = failures(check_plugin(plugin(HOOKS + FORMATS), components=False))
    assert set(failed) == {"names_lower_case", "summary_and_source", "components_importable"}
    assert "'Theirs' is not a plain lower-case name" in failed["names_lower_case"]
    assert "weight format 'Theirs' has an empty summary" in failed["summary_and_source"]
    assert "has no attribute 'Layout'" in failed["components_importable"]


def test_an_unknown_plugin_is_an_error() -> None:
    with pytest.raises(NotFoundError, match="No plugin 'wsizoo-plugin-nowhere'"):
        check_plugin("wsizoo-plugin-nowhere")


def test_the_core_is_no_plugin() -> None:
    with pytest.raises(NotFoundError, match="is the core, not a plugin"):
        check_plugin("wsizoo")
