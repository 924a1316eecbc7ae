import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wsizoo.errors import NotFoundError, PluginError
from wsizoo.hookspecs import Component, OpBackend, WeightFormat, hookimpl
from wsizoo.plugins import Plugin, Plugins, discover
from wsizoo.registry import Registry

TARGET = "math:sqrt"
SUMMARY, SOURCE = "a test", "https://example.org"


class Distribution:
    def __init__(self, name: str) -> None:
        self.name, self.version = name, "1.2"


class Point:
    """An entry point whose `load` does what a test says."""

    def __init__(self, name: str, load: Callable[[], Any], distribution: str | None = "") -> None:
        self.name, self.value, self.load = name, f"{name}_module.hooks", load
        known = f"wsizoo-plugin-{name}" if distribution == "" else distribution
        self.dist = None if known is None else Distribution(known)


def part(name: str, kind: Any = "aggregator", target: str = TARGET) -> Component:
    return Component(kind, name, target, SUMMARY, SOURCE)


def weights(name: str, components: Any = ("abmil",), target: str = TARGET) -> WeightFormat:
    return WeightFormat(name, components, target, SUMMARY, SOURCE)


def module(*components: Any, **attributes: Any) -> types.ModuleType:
    """A hook module that offers these components; `attributes` replace what it holds."""
    made = types.ModuleType("fake_hooks")
    made.wsizoo_api = 1  # type: ignore[attr-defined]

    def wsizoo_components() -> Any:
        return list(components)

    made.wsizoo_components = hookimpl(wsizoo_components)  # type: ignore[attr-defined]
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def point(name: str, *components: Any, **attributes: Any) -> Point:
    return Point(name, lambda: module(*components, **attributes))


def raising(error: BaseException) -> Callable[[], Any]:
    def load() -> Any:
        raise error

    return load


def hook(function_name: str, answer: Any) -> dict[str, Any]:
    """A hook of this name that returns (or raises) the answer."""

    def function() -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    function.__name__ = function_name
    return {function_name: hookimpl(function)}


def reason(plugin: Plugin) -> str:
    assert plugin.reason is not None
    return plugin.reason


GOOD = point("good", part("good-pooling"))

QUARANTINED = {
    "ImportError": (
        Point("bad", raising(ModuleNotFoundError("No module named 'spconv'", name="spconv"))),
        "fails on import: ModuleNotFoundError: No module named 'spconv' "
        "(install what it needs: pip install spconv)",
    ),
    "SystemExit": (Point("bad", raising(SystemExit(3))), "fails on import: SystemExit: 3"),
    "SyntaxError": (
        Point("bad", raising(SyntaxError("invalid syntax"))),
        "fails on import: SyntaxError: invalid syntax",
    ),
    "KeyError": (Point("bad", raising(KeyError("HOME"))), "fails on import: KeyError: 'HOME'"),
    "an exception without words": (
        Point("bad", raising(RuntimeError())),
        "fails on import: RuntimeError",
    ),
    "an older API": (
        point("bad", part("x"), wsizoo_api=0),
        "states wsizoo_api = 0, this wsizoo speaks 1: pip install --upgrade wsizoo-plugin-bad",
    ),
    "a newer API": (
        point("bad", part("x"), wsizoo_api=2),
        "states wsizoo_api = 2, this wsizoo speaks 1: pip install --upgrade wsizoo",
    ),
    "no API": (
        Point("bad", lambda: types.ModuleType("empty")),
        "states no wsizoo_api, this wsizoo speaks 1: pip install --upgrade wsizoo-plugin-bad",
    ),
    "a misspelt hook": (
        point("bad", **hook("wsizoo_component", [])),
        "has no hook to offer as 'wsizoo_component'. Did you mean 'wsizoo_components'",
    ),
    "a hook of another name": (
        point("bad", **hook("components", [])),
        "unknown hook 'components'",
    ),
    "a hook without its decorator": (
        point("bad", wsizoo_components=lambda: []),
        "wsizoo_components lacks its decorator: @wsizoo.hookimpl",
    ),
    "a hook that wants arguments": (
        point("bad", wsizoo_components=hookimpl(lambda registry: [])),
        "Argument(s) {'registry'} are declared in the hookimpl but can not be found",
    ),
    "a hook that raises": (
        point("bad", **hook("wsizoo_components", ZeroDivisionError("oops"))),
        "fails on its hooks: ZeroDivisionError: oops",
    ),
    "None returned": (
        point("bad", **hook("wsizoo_components", None)),
        "wsizoo_components() returned None, expected [Component(...), ...]",
    ),
    "one component returned": (
        point("bad", **hook("wsizoo_components", part("x"))),
        "expected [Component(...), ...]",
    ),
    "a string returned": (
        point("bad", **hook("wsizoo_components", ["mean"])),
        "wsizoo_components() returned 'mean', expected Component(...)",
    ),
    "backends of the wrong type": (
        point("bad", **hook("wsizoo_op_backends", [part("x")])),
        "expected OpBackend(...)",
    ),
    "an unknown kind": (
        point("bad", part("x", kind="agregator")),
        "component 'x' has kind 'agregator'. Did you mean 'aggregator'?",
    ),
    "a target without a colon": (
        point("bad", part("x", target="pkg.model.Class")),
        "'x' has target 'pkg.model.Class', expected 'package.module:Name'",
    ),
    "a why_not that is no target": (
        point("bad", **hook("wsizoo_op_backends", [OpBackend("segment_sum", "b", TARGET, "no")])),
        "'b' has why_not 'no', expected 'package.module:Name'",
    ),
    "a backend called reference": (
        point(
            "bad",
            **hook("wsizoo_op_backends", [OpBackend("segment_sum", "reference", TARGET, TARGET)]),
        ),
        "a backend of segment_sum is named 'reference', which every op has",
    ),
    "weight formats of the wrong type": (
        point("bad", **hook("wsizoo_weight_formats", [part("x")])),
        "wsizoo_weight_formats() returned Component(",
    ),
    "a weight format of a text": (
        point("bad", **hook("wsizoo_weight_formats", [weights("x", "span")])),
        "'x' has components 'span', expected names",
    ),
    "a weight format whose target is none": (
        point("bad", **hook("wsizoo_weight_formats", [weights("x", target="official")])),
        "'x' has target 'official', expected 'package.module:Name'",
    ),
    "a weight format twice": (
        point("bad", **hook("wsizoo_weight_formats", [weights("x"), weights("x")])),
        "weight format 'x' of wsizoo-plugin-bad exists already in wsizoo-plugin-bad",
    ),
    "a name of the core": (
        point("bad", part("abmil")),
        "aggregator 'abmil' of wsizoo-plugin-bad exists already in wsizoo: uninstall one",
    ),
    "a name twice": (
        point("bad", part("x"), part("x")),
        "aggregator 'x' of wsizoo-plugin-bad exists already in wsizoo-plugin-bad",
    ),
    "a registry that is not there": (
        point("bad", **hook("wsizoo_registry", Path("/nowhere"))),
        "wsizoo_registry() names '/nowhere', which holds no registry.yaml",
    ),
    "a registry that is no path": (
        point("bad", **hook("wsizoo_registry", 3)),
        "wsizoo_registry() names '3', which holds no registry.yaml",
    ),
}


@pytest.mark.parametrize("case", QUARANTINED)
def test_a_broken_plugin_goes_into_quarantine_alone(case: str) -> None:
    broken, expected = QUARANTINED[case]
    plugins = discover([broken, GOOD])
    core, bad, good = plugins.all
    assert expected in reason(bad)
    assert not bad.works
    assert (bad.components, bad.backends, bad.formats, bad.registry) == ((), (), (), None)
    assert core.works and good.works
    assert plugins.component("aggregator", "good-pooling").target == TARGET
    assert plugins.component("aggregator", "mean")


def test_ctrl_c_passes_through_discovery() -> None:
    with pytest.raises(KeyboardInterrupt):
        discover([Point("bad", raising(KeyboardInterrupt()))])


def test_the_name_of_the_core_makes_no_core_of_a_plugin() -> None:
    named = Point("wsizoo", raising(KeyError("x")), "wsizoo-plugin-odd")
    core, good, odd = discover([named, GOOD], allow="wsizoo,good").all
    assert reason(odd) == "has an entry point named 'wsizoo', the core's: rename it"
    assert (core.core, odd.core, good.core) == (True, False, False)
    assert core.works and good.works


def test_the_first_of_two_plugins_with_one_name_keeps_it() -> None:
    plugins = discover([point("b", part("same")), point("a", part("same"))])
    assert plugins.owner(plugins.component("aggregator", "same")).name == "a"
    assert "aggregator 'same' of wsizoo-plugin-b exists already in wsizoo-plugin-a" in reason(
        plugins.all[-1]
    )


def test_one_name_may_stand_for_parts_of_two_kinds() -> None:
    plugins = discover([point("a", part("same"), part("same", kind="selector"))])
    assert plugins.all[-1].works


def test_two_plugins_with_one_backend_of_one_op_collide() -> None:
    backend = hook("wsizoo_op_backends", [OpBackend("segment_sum", "triton", TARGET, TARGET)])
    plugins = discover([point("a", **backend), point("b", **backend)])
    assert plugins.all[1].works
    assert "backend 'triton' of op segment_sum of wsizoo-plugin-b exists already" in reason(
        plugins.all[-1]
    )
    found = [backend.name for backend in plugins.backends() if backend.op == "segment_sum"]
    assert found == ["triton"]


def test_the_weight_formats_of_all_plugins_are_known() -> None:
    points = [
        point(name, **hook("wsizoo_weight_formats", (weights(f"{name}-official", ["abmil"]),)))
        for name in ("b", "a")
    ]
    assert [found.name for found in discover(points).formats()] == ["a-official", "b-official"]
    assert discover([GOOD]).formats() == []


def test_a_module_that_imports_its_own_package_offers_no_misspelt_hook() -> None:
    names = {"wsizoo_plugin_good": types.ModuleType("wsizoo_plugin_good"), "wsizoo_note": "text"}
    assert discover([point("good", part("x"), **names)]).all[-1].works


def test_a_distribution_is_named_as_pip_names_it() -> None:
    named = Point("a", module, "WSIzoo_Plugin.Span")
    unnamed = Point("b", module, None)
    found = {p.distribution: p.version for p in discover([named, unnamed]).all}
    assert found["wsizoo-plugin-span"] == "1.2"
    assert found["b-module-hooks"] == "?"


@pytest.mark.parametrize(
    ("allow", "working"),
    [
        ("", ["wsizoo"]),
        ("a", ["wsizoo", "a"]),
        (" wsizoo-plugin-b , c", ["wsizoo", "b"]),
        (None, ["wsizoo", "a", "b"]),
    ],
)
def test_the_allow_list_lets_named_plugins_in(
    allow: str | None, working: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WSIZOO_PLUGINS", raising=False)
    if allow is not None:
        monkeypatch.setenv("WSIZOO_PLUGINS", allow)
    plugins = discover([point("a", part("x")), point("b", part("y"))])
    assert [plugin.name for plugin in plugins.working()] == working
    left_out = [reason(p) for p in plugins.all if not p.works]
    assert left_out == [f"not in the allow-list WSIZOO_PLUGINS={allow}"] * (3 - len(working))


def test_a_plugin_that_is_not_allowed_is_not_imported() -> None:
    assert not discover([Point("bad", raising(KeyboardInterrupt()))], allow="").all[-1].works


def test_a_core_that_does_not_work_is_an_error_not_a_quarantine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("wsizoo.builtin.core_folder", lambda: tmp_path)
    with pytest.raises(
        PluginError, match=r"wsizoo itself wsizoo_registry\(\) names .* --force-reinstall wsizoo"
    ):
        discover([])


def test_a_hook_module_that_imports_torch_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)

    def load() -> Any:
        monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
        return module(part("heavy"))

    plugins = discover([Point("heavy", load), GOOD])
    assert {p.name: p.imports_torch for p in plugins.all} == {
        "wsizoo": False,
        "good": False,
        "heavy": True,
    }


def test_an_unknown_name_suggests_the_near_one() -> None:
    with pytest.raises(
        NotFoundError,
        match=r"No aggregator named 'abmill' is installed\. Did you mean 'abmil'\? See: wsizoo",
    ):
        discover([]).component("aggregator", "abmill")


def test_a_name_like_no_other_lists_what_is_known() -> None:
    with pytest.raises(NotFoundError, match=r"Known aggregators: abmil, max, mean\. See: wsizoo"):
        discover([]).component("aggregator", "zzzzzzzzzzzz")
    with pytest.raises(NotFoundError, match=r"Known selectors: none\."):
        discover([]).component("selector", "top-k")


def test_a_name_that_a_known_plugin_holds_names_the_pip_command() -> None:
    with pytest.raises(
        NotFoundError,
        match=r"No aggregator named 'span' is installed\. Install it: pip install wsizoo-plugin-s",
    ):
        discover([]).component("aggregator", "span", "wsizoo-plugin-span")


def test_a_plugin_that_only_a_publisher_names_is_to_be_looked_at_first() -> None:
    with pytest.raises(
        NotFoundError,
        match=r"Lab X names the plugin lab-x, which the registry of wsizoo does not list\. Look at "
        r"whose it is, then: pip install lab-x$",
    ):
        discover([]).component("aggregator", "span", "lab-x", "Lab X")


def test_a_name_of_a_quarantined_plugin_says_why() -> None:
    plugins = discover([Point("span", raising(KeyError("x")))])
    with pytest.raises(
        NotFoundError,
        match=r"'span' is installed\. Its plugin wsizoo-plugin-span is in quarantine: fails on",
    ):
        plugins.component("aggregator", "span", "wsizoo-plugin-span")


def test_an_unknown_name_mentions_plugins_in_quarantine() -> None:
    plugins = discover([Point("odd", raising(KeyError("x")))])
    with pytest.raises(NotFoundError, match=r"In quarantine: wsizoo-plugin-odd\. See: wsizoo pl"):
        plugins.component("aggregator", "odd-pooling")


def test_a_working_plugin_is_not_offered_for_installation() -> None:
    with pytest.raises(NotFoundError, match=r"'goodpooling' .* Did you mean 'good-pooling'\?"):
        discover([GOOD]).component("aggregator", "goodpooling", "wsizoo-plugin-good")


def test_loading_gives_the_announced_object() -> None:
    import math

    assert discover([GOOD]).load("aggregator", "good-pooling") is math.sqrt


def test_a_target_that_is_not_there_names_its_owner() -> None:
    plugins = discover([point("a", part("x", target="math:nothing"))])
    with pytest.raises(
        PluginError, match=r"aggregator 'x' of wsizoo-plugin-a: 'math' holds no 'nothing'"
    ):
        plugins.load("aggregator", "x")


class TestRegistryFiles:
    """A plugin's registry file is part of what can be broken."""

    ENTRY = "{summary: s, licence: MIT, source: x, encoder: uni, aggregator: mean}"

    BROKEN: dict[str, tuple[str, str]] = {  # noqa: RUF012
        "not YAML": ("models: [", "is not valid YAML"),
        "not a mapping": ("- a\n- b", "expected a mapping with models and encoders"),
        "empty": ("", "expected a mapping with models and encoders"),
        "an unknown section": ("modells: {}", "unknown section 'modells', expected models or enc"),
        "a duplicate key": (
            f"models:\n  a: {ENTRY}\n  a: {ENTRY}",
            "'a' stands here a second time",
        ),
        "a duplicate number": ("models:\n  1: {}\n  1: {}", "'1' stands here a second time"),
        "a key that is no name": ("models:\n  [a, b]: {}", "is no name"),
        "models as a list": ("models: [a]", "'models' is not a mapping of names"),
        "an entry as a text": ("models: {a: b}", "models 'a' is not a mapping of fields"),
        "a path for a name": (f"models: {{a/b: {ENTRY}}}", "'a/b' is no name, expected letters"),
        "aliases as a text": (
            "models: {a: {aliases: b}}",
            "model 'a': aliases is 'b', expected a list of names",
        ),
        "a model of the core": (
            f"models: {{abmil-uni: {ENTRY}}}",
            "model 'abmil-uni' of wsizoo-plugin-bad exists already in wsizoo: uninstall one",
        ),
        "an encoder of the core": (
            "encoders: {uni: {dim: 3}}",
            "encoder 'uni' of wsizoo-plugin-bad exists already in wsizoo: uninstall one",
        ),
        "a plugin that is no distribution": (
            "models: {a: {plugin: --index-url=http://evil.example x}}",
            "models 'a': plugin is '--index-url=http://evil.example x', expected the name of a d",
        ),
        "an alias that is a model": (
            "models: {a: {aliases: [abmil-uni]}}",
            "model 'abmil-uni' of wsizoo-plugin-bad exists already in wsizoo: uninstall one",
        ),
        "an alias of its own model's name": (
            "models: {a: {aliases: [a]}}",
            "model 'a' of wsizoo-plugin-bad exists already in wsizoo-plugin-bad",
        ),
        "two models with one alias": (
            "models: {a: {aliases: [old]}, b: {aliases: [old]}}",
            "model 'old' of wsizoo-plugin-bad exists already in wsizoo-plugin-bad",
        ),
    }

    def registry(self, tmp_path: Path, text: str) -> Registry:
        (tmp_path / "registry.yaml").write_text(text)
        bad = point("bad", part("bad-pooling"), **hook("wsizoo_registry", tmp_path))
        return Registry.of(discover([bad, GOOD]))

    @pytest.mark.parametrize("case", BROKEN)
    def test_a_broken_file_puts_the_whole_plugin_into_quarantine(
        self, case: str, tmp_path: Path
    ) -> None:
        text, expected = self.BROKEN[case]
        registry = self.registry(tmp_path, text)
        core, bad, good = registry.plugins.all
        assert expected in reason(bad)
        assert core.works and good.works
        assert registry.model("abmil-uni").owner == "wsizoo"
        with pytest.raises(NotFoundError, match="In quarantine: wsizoo-plugin-bad"):
            registry.plugins.component("aggregator", "bad-pooling")

    def test_a_good_file_states_its_plugin(self, tmp_path: Path) -> None:
        registry = self.registry(tmp_path, f"models: {{new-model: {self.ENTRY}}}")
        assert registry.model("new-model").record["plugin"] == "wsizoo-plugin-bad"
        assert registry.model_spec("new-model").plugin == "wsizoo-plugin-bad"

    def test_a_model_of_a_quarantined_plugin_names_it(self, tmp_path: Path) -> None:
        registry = self.registry(tmp_path, "models: [")
        with pytest.raises(
            NotFoundError,
            match=r"No model named 'new-model'\. .*In quarantine: wsizoo-plugin-bad\. See: wsizoo",
        ):
            registry.model("new-model")

    def test_a_file_that_cannot_be_read_is_a_reason(self, tmp_path: Path) -> None:
        (tmp_path / "registry.yaml").write_bytes(b"\xff\xfe\xfa")
        bad = point("bad", **hook("wsizoo_registry", str(tmp_path)))
        assert "is not valid YAML" in reason(Registry.of(discover([bad])).plugins.all[-1])


def test_withdrawing_a_plugin_withdraws_everything_it_offers() -> None:
    plugins = Plugins([Plugin("a", "wsizoo-plugin-a", "1", (part("x"),))])
    plugins.quarantine(plugins.all[0], "no reason")
    assert plugins.components() == []
