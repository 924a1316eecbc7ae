import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

import wsizoo
from wsizoo import registry as module
from wsizoo.errors import NotFoundError, PluginError, SpecError
from wsizoo.plugins import CORE, Plugin, Plugins, discover
from wsizoo.registry import Registry, core_folder, read_file

ROOT = Path(__file__).parent.parent
CONTENT = yaml.safe_load((ROOT / "registry.yaml").read_text(encoding="utf-8"))
FACTS = {"summary": "s", "licence": "MIT", "source": "x"}


def entry(**fields: Any) -> dict[str, Any]:
    return {**FACTS, "encoder": "uni", "aggregator": {"name": "mean"}, **fields}


def registry(folder: Path, models: dict[str, Any], encoders: dict[str, Any] | None = None) -> Any:
    """A registry of these entries alone, with the core's components."""
    content = {"models": models, "encoders": encoders or {}}
    (folder / "registry.yaml").write_text(json.dumps(content))
    plugins = discover([], allow="")
    plugins.all[0].registry = folder
    return Registry.of(plugins)


@pytest.fixture(scope="module")
def core() -> Registry:
    return Registry.of(discover([], allow=""))


@pytest.mark.parametrize("name", CONTENT["models"])
def test_every_model_of_the_registry_is_well_formed(name: str, core: Registry) -> None:
    spec = core.model_spec(name)
    assert len(spec.summary) < 100
    assert spec.encoder is not None and spec.encoder.name in core.encoders
    weights = spec.weights
    if weights is None or weights.package:
        return
    # the commit of other people's gated files, in their format, is for their reader to pin
    assert weights.repo and (weights.revision or weights.format)


@pytest.mark.parametrize("name", CONTENT["encoders"])
def test_every_encoder_of_the_registry_is_well_formed(name: str, core: Registry) -> None:
    spec = core.encoder_spec(name)
    assert spec.refused or (spec.mpp is not None and spec.patch_size is not None)


@pytest.mark.parametrize("name", CONTENT["models"])
def test_every_part_of_the_registry_is_the_core_s_or_names_its_plugin(
    name: str, core: Registry
) -> None:
    offered = {(c.kind, c.name) for c in core.plugins.components()}
    for kind in ("selector", "aggregator", "head", "model"):
        part = core.models[name].part(kind)
        assert part is None or (kind, part) in offered or core.plugin_of(kind, part), (kind, part)


def test_an_alias_is_followed_with_a_deprecation_warning(tmp_path: Path) -> None:
    made = registry(tmp_path, {"new": entry(aliases=["old", "older"])})
    with pytest.warns(DeprecationWarning, match="model 'older' is now called 'new'"):
        assert made.model("older").name == "new"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made.model("new")
    assert caught == []


def test_the_warning_points_to_the_line_that_used_the_alias(tmp_path: Path) -> None:
    made = registry(tmp_path, {"new": entry(aliases=["old"], encoder={"name": "x", "dim": 4})})
    with pytest.warns(DeprecationWarning, match="'old' is now called 'new'") as caught:
        wsizoo.build("old", registry=made)
    assert [warning.filename for warning in caught] == [__file__]


def test_an_unknown_model_suggests_the_near_one(core: Registry) -> None:
    with pytest.raises(
        NotFoundError,
        match=r"No model named 'abmil-unni'\. Did you mean 'abmil-uni'.* See: wsizoo list$",
    ):
        core.model("abmil-unni")


def test_an_unknown_encoder_suggests_the_near_one(core: Registry) -> None:
    with pytest.raises(
        NotFoundError,
        match=r"No encoder named 'unii'\. Did you mean 'uni'.*\? See: wsizoo list --encoders$",
    ):
        core.encoder_spec("unii")


def test_a_part_is_named_in_short_or_in_full(tmp_path: Path) -> None:
    made = registry(tmp_path, {"a": entry(aggregator="max", head={"name": "survival"})})
    parts = [made.models["a"].part(p) for p in ("encoder", "aggregator", "head", "selector")]
    assert parts == ["uni", "max", "survival", None]


def test_the_plugin_of_a_part_is_known_from_any_model_that_uses_it(core: Registry) -> None:
    assert core.plugin_of("aggregator", "span") == "wsizoo-plugin-span"
    assert core.plugin_of("aggregator", "abmil") is None
    assert core.plugin_of("head", "classification") is None
    assert core.plugin_of("selector", "sparselearn") == "wsizoo-plugin-sparselearn"


def test_the_core_vouches_for_the_plugins_that_its_registry_lists(core: Registry) -> None:
    assert core.vouches_for("wsizoo-plugin-span")
    assert not core.vouches_for("wsizoo-plugin-nobody")


@pytest.mark.parametrize("kind", ["models", "encoders"])
def test_a_plugin_of_a_name_that_pip_would_not_take_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "registry.yaml").write_text(f"{kind}: {{a: {{plugin: -r evil.txt}}}}\n")
    plugins = Plugins([Plugin(CORE, CORE, "1", registry=tmp_path, core=True)])
    with pytest.raises(PluginError, match=rf"{kind} 'a': plugin is '-r evil\.txt', expected the n"):
        Registry.of(plugins)


def test_names_of_classes_in_a_file_are_text_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "registry.yaml").write_text(
        "models: {a: {summary: s, licence: MIT, source: x, aggregator: mean, "
        "head: {name: classification, classes: [0.10, yes, null, 2]}}}\n"
    )
    plugins = discover([], allow="")
    plugins.all[0].registry = tmp_path
    assert Registry.of(plugins).model_spec("a").classes == ["0.10", "yes", "null", "2"]


@pytest.mark.parametrize(
    ("weights", "has"),
    [(None, False), ({}, False), ({"repo": "a/b"}, True), ({"package": "a:b"}, True), (3, False)],
)
def test_listing_survives_any_weights(weights: Any, has: bool, tmp_path: Path) -> None:
    made = registry(tmp_path, {"a": entry(weights=weights)})
    assert made.has_weights(made.models["a"]) is has


def test_a_duplicate_key_of_the_core_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "registry.yaml"
    path.write_text("models:\n  a: {summary: x}\n  a: {summary: y}\n")
    with pytest.raises(SpecError, match=r"'a' stands here a second time\n.*line 3, column 3"):
        read_file(path)


def test_a_duplicate_field_of_an_entry_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "registry.yaml"
    path.write_text("models:\n  a:\n    head: x\n    licence: MIT\n    head: y\n")
    with pytest.raises(SpecError, match="'head' stands here a second time"):
        read_file(path)


def test_an_unknown_section_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "registry.yaml"
    path.write_text("recipes: {}\n")
    with pytest.raises(SpecError, match="unknown section 'recipes', expected models or encoders"):
        read_file(path)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"No such file"):
        read_file(tmp_path / "registry.yaml")


def test_yaml_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "registry.yaml"
    path.write_text("models: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(SpecError, match="could not determine a constructor"):
        read_file(path)


def test_an_interpolation_is_refused_on_use(tmp_path: Path) -> None:
    made = registry(tmp_path, {"a": entry(summary="${oc.env:HOME}")})
    with pytest.raises(SpecError, match=r"model 'a' holds '\$\{': registry entries are data"):
        made.model_spec("a")


@pytest.mark.parametrize("field", ["summary", "licence", "source"])
@pytest.mark.parametrize("kind", ["model", "encoder"])
def test_facts_are_required(field: str, kind: str, tmp_path: Path) -> None:
    facts = {k: v for k, v in FACTS.items() if k != field}
    made = registry(tmp_path, {"a": {**facts, "aggregator": "mean"}}, {"a": facts})
    check = made.model_spec if kind == "model" else made.encoder_spec
    with pytest.raises(SpecError, match=f"^{kind} 'a' states no {field}$"):
        check("a")


def test_a_name_that_yaml_reads_as_a_number_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "registry.yaml").write_text("models:\n  2024: {aggregator: mean}\n")
    plugins = Plugins([Plugin(CORE, CORE, "1", registry=tmp_path)])
    assert list(Registry.of(plugins).models) == ["2024"]


def test_a_broken_file_of_the_core_itself_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "registry.yaml").write_text("- a\n")
    plugins = Plugins([Plugin(CORE, CORE, "1", registry=tmp_path, core=True)])
    with pytest.raises(PluginError, match="expected a mapping with models and encoders"):
        Registry.of(plugins)


def test_in_a_checkout_the_registry_lies_beside_the_package() -> None:
    if (ROOT / "wsizoo" / "registry.yaml").exists():
        pytest.skip("this is not a checkout")
    assert core_folder() == ROOT


def test_in_a_wheel_the_registry_lies_inside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "wsizoo"
    package.mkdir()
    (tmp_path / "registry.yaml").write_text("models: {}\n")
    monkeypatch.setattr(module, "__file__", str(package / "registry.py"))
    assert core_folder() == tmp_path
    (package / "registry.yaml").write_text("models: {}\n")
    assert core_folder() == package


def test_a_hundred_entries_are_listed_without_torch_or_omegaconf(tmp_path: Path) -> None:
    models = {f"model-{i:03d}": entry(weights={"repo": "a/b"}) for i in range(100)}
    (tmp_path / "registry.yaml").write_text(json.dumps({"models": models}))
    program = f"""
import sys, pathlib, wsizoo
from wsizoo.plugins import Plugin, Plugins
from wsizoo.registry import Registry
plugins = Plugins([Plugin("wsizoo", "wsizoo", "1", registry=pathlib.Path({str(tmp_path)!r}))])
registry = Registry.of(plugins)
assert len(wsizoo.list_models("model-0*", weights=True, registry=registry)) == 100
assert len(wsizoo.list_models(encoder="uni", aggregator="mean", registry=registry)) == 100
assert len(wsizoo.list_models(commercial=False, registry=registry)) == 0
print([m for m in ("torch", "omegaconf", "numpy", "huggingface_hub") if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr
