"""Trained models by folder, Hub address or name: found, checked, and nothing else touched."""

import dataclasses
import hashlib
import json
import os
import pickle
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as to_safetensors

import wsizoo
from wsizoo.errors import (
    DataError,
    DigestError,
    NotFoundError,
    NotPinnedError,
    NoWeightsError,
    RepoNotFoundError,
    SpecError,
    WeightsError,
)
from wsizoo.plugins import discover
from wsizoo.registry import Entry, Registry
from wsizoo.stored import find_stored, read_config, read_stored
from wsizoo.testing.hub import HubDouble

REPO = "lab/toy"
NAME = "toy-mean"
CLASSES = "head.classes=[a,b]"
ENTRY = """
models:
  toy-mean:
    summary: a toy
    licence: MIT
    source: a test
    encoder: {name: made-up, dim: 8, mpp: 0.5}
    aggregator: {name: mean, dim: 4}
    head: {name: classification, classes: [a, b]}
    aliases: [old-toy]
"""


def registry_with(folder: Path, **weights: str) -> Registry:
    """The core's registry and that of a made-up plugin with the model `toy-mean`."""
    folder.mkdir(exist_ok=True)
    (folder / "registry.yaml").write_text(
        ENTRY + (f"    weights: {json.dumps(weights)}\n" if weights else "")
    )
    hooks = types.ModuleType("toy_hooks")
    hooks.__dict__["wsizoo_api"] = 1
    hooks.__dict__["wsizoo_registry"] = wsizoo.hookimpl(lambda: folder, specname="wsizoo_registry")
    dist = types.SimpleNamespace(name="toy-plugin", version="1")
    point = types.SimpleNamespace(name="toy", value="toy_hooks", dist=dist, load=lambda: hooks)
    plugins = discover([point])
    registry = Registry.of(plugins)
    assert all(plugin.works for plugin in plugins.all), plugins.all
    return registry


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return registry_with(tmp_path_factory.mktemp("plugin"))


@pytest.fixture(scope="module")
def content(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a saved model."""
    model = wsizoo.build(NAME, registry=registry)
    model.trained = True
    folder = wsizoo.save(model, tmp_path_factory.mktemp("saved") / "model")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(content: dict[str, bytes], tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder


def edited(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    config = json.loads(data)
    change(config)
    return json.dumps(config).encode()


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "config.json"
    path.write_bytes(edited(path.read_bytes(), change))


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def files_asked_for(hub: HubDouble) -> set[str]:
    return {path.rpartition("/")[2] for path in hub.paths() if "/resolve/" in path}


# A folder


def test_a_saved_folder_is_read_whole(folder: Path, registry: Registry) -> None:
    stored = read_stored(folder)
    assert stored.name == NAME
    spec = wsizoo.build(NAME, registry=registry).spec
    assert stored.spec_with() == dataclasses.replace(spec, aliases=[])
    assert set(stored.tensors) == {
        "aggregator.embed.0.weight",
        "aggregator.embed.0.bias",
        "head.linear.weight",
        "head.linear.bias",
    }
    assert stored.fingerprint == wsizoo.Fingerprint(encoder="made-up", mpp=0.5)
    assert stored.golden == folder / "golden.safetensors"
    assert stored.spec_with(["head.classes=[x,y]"]).classes == ["x", "y"]


def test_no_model_in_a_folder_is_said_with_the_hubs_spelling(tmp_path: Path) -> None:
    for name in ("lab/toy", "./nothing", tmp_path):
        with pytest.raises(NotFoundError, match=r"No model at .*config\.json.*hf:owner/name@COM"):
            wsizoo.load(name)


def test_a_bare_name_is_the_zoos_a_folder_has_a_slash(
    folder: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    folder = folder.rename(folder.parent / NAME)
    with pytest.raises(NoWeightsError, match=f"released for '{NAME}'"):
        find_stored(NAME, registry)
    assert find_stored(f"./{NAME}", registry).name == NAME
    assert find_stored(Path(NAME), registry).name == NAME
    folder.rename(folder.parent / "mine")
    assert find_stored("mine", registry).name == NAME


def test_the_folder_of_a_run_means_its_model_and_of_several_one_is_to_be_named(
    folder: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = folder.parent / "runs"
    for name in ("a", "b"):
        (runs / name).mkdir(parents=True)
        (runs / name / "config.yaml").write_text("model: toy")
    folder.rename(runs / "a" / "model")
    monkeypatch.chdir(runs)
    for run in ("a", "./a", Path("a"), runs / "a" / "model"):
        assert find_stored(run, registry).name == NAME
    with pytest.raises(DataError, match="run 'b' is not finished, so it has no model yet"):
        find_stored("b", registry)
    with pytest.raises(DataError, match=r"runs' is no model and no run of one; it holds 1 \(a\)"):
        find_stored(runs, registry)


@pytest.mark.parametrize("file", ["model.safetensors", "golden.safetensors"])
def test_altered_and_missing_files_are_refused(folder: Path, file: str) -> None:
    path = folder / file
    path.write_bytes(flip(path.read_bytes()))
    with pytest.raises(DigestError, match=rf"{file} has sha256 \w+, expected \w+\. Nothing of it"):
        wsizoo.load(folder)
    path.unlink()
    with pytest.raises(WeightsError, match=rf"{file} is missing, though config\.json names it"):
        wsizoo.load(folder)


def test_a_digest_recorded_elsewhere_must_agree(folder: Path) -> None:
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert read_stored(folder, digest).name == NAME
    with pytest.raises(DigestError, match=rf"names weights with sha256 {digest}, expected fff"):
        read_stored(folder, "f" * 64)


# config.json


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", r"is not valid JSON: .*Save or download it again"),
        ("\xff", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", r"was not written by wsizoo .*models of other tools are not read"),
        ('{"library_name": "timm"}', "was not written by wsizoo"),
        ('{"library_name": "wsizoo"}', r"has format None, this wsizoo reads 1; save or"),
        ('{"library_name": "wsizoo", "format": "1"}', r"has format 1, .*; save or download"),
        (
            '{"library_name": "wsizoo", "format": 2}',
            r"has format 2, this wsizoo reads 1: pip install --upgrade wsizoo",
        ),
        (
            '{"library_name": "wsizoo", "format": 1, "weights": {}}',
            "lacks name, spec, trained, or a file with its sha256",
        ),
    ],
)
def test_a_config_that_is_damaged_or_not_ours_is_named(
    tmp_path: Path, text: str, told: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(WeightsError, match=told):
        read_config(path)


@pytest.mark.parametrize("field", ["name", "spec", "weights", "golden", "training", "trained"])
def test_a_field_of_another_shape_is_named(folder: Path, field: str) -> None:
    edit(folder, lambda config: config.update({field: 3}))
    with pytest.raises(WeightsError, match=r"config\.json lacks name, spec, trained, or a file"):
        wsizoo.load(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../canary.safetensors",
        "/etc/canary.safetensors",
        "..\\canary.safetensors",
        "sub/canary.safetensors",
        "C:canary.safetensors",
        "canary\n.safetensors",
        "",
    ],
)
@pytest.mark.parametrize("file", ["weights", "golden"])
def test_a_file_outside_the_folder_is_refused(folder: Path, file: str, name: str) -> None:
    (folder.parent / "canary.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    edit(folder, lambda config: config[file].update(file=name))
    with pytest.raises(WeightsError, match="expected a file name without a folder"):
        wsizoo.load(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "..", "setup.py"])
def test_a_format_that_can_hold_code_is_refused(folder: Path, name: str) -> None:
    edit(folder, lambda config: config["weights"].update(file=name))
    with pytest.raises(WeightsError, match="is not safetensors, the only format"):
        wsizoo.load(folder)


def test_a_digest_that_is_none_is_named(folder: Path) -> None:
    edit(folder, lambda config: config["weights"].update(sha256=None))
    with pytest.raises(WeightsError, match=r"sha256 of model\.safetensors is 'None', not 64 hex"):
        wsizoo.load(folder)


def test_a_fingerprint_that_cannot_be_read_is_named(folder: Path) -> None:
    edit(folder, lambda config: config.update(fingerprint={"encoder": "uni", "aura": 7}))
    with pytest.raises(WeightsError, match=r"config\.json: .*does not know: \['aura'\].*upgrade"):
        wsizoo.load(folder)


def test_an_entry_that_computes_is_refused(folder: Path) -> None:
    edit(folder, lambda config: config["spec"].update(summary="${oc.env:HOME}"))
    with pytest.raises(SpecError, match=r"holds '\$\{': registry entries are data"):
        wsizoo.load(folder)


def test_an_entry_without_plugin_names_the_plugin(folder: Path, registry: Registry) -> None:
    def change(config: dict[str, Any]) -> None:
        config["spec"] |= {"aggregator": {"name": "far-away"}, "plugin": "wsizoo-plugin-far"}

    edit(folder, change)
    with pytest.raises(
        NotFoundError,
        match=r"The publisher of 'toy-mean' names the plugin wsizoo-plugin-far, which the registry "
        r"of wsizoo does not list\. Look at whose it is, then: pip install wsizoo-plugin-far$",
    ):
        wsizoo.load(folder, registry=registry)


def test_a_plugin_that_the_core_lists_is_simply_named(folder: Path, registry: Registry) -> None:
    plugin = "wsizoo-plugin-listed"
    listed = Entry("x", {"plugin": plugin}, "wsizoo")
    known = dataclasses.replace(registry, models={**registry.models, "x": listed})

    def change(config: dict[str, Any]) -> None:
        config["spec"] |= {"aggregator": {"name": "far-away"}, "plugin": plugin}

    edit(folder, change)
    with pytest.raises(NotFoundError, match=rf"is installed\. Install it: pip install {plugin}$"):
        wsizoo.load(folder, registry=known)


@pytest.mark.parametrize("plugin", ["--index-url http://evil.example x", "a\nb", "a;b"])
def test_a_plugin_that_is_no_distribution_is_refused(folder: Path, plugin: Any) -> None:
    edit(folder, lambda config: config["spec"].update(plugin=plugin))
    with pytest.raises(SpecError, match=r"plugin is .*, expected the name of a distribution"):
        wsizoo.load(folder)


def test_an_untrained_model_is_loaded_as_what_it_is(
    folder: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    edit(folder, lambda config: config.update(trained=False))
    assert not wsizoo.load(folder, registry=registry).trained
    assert f"'{NAME}' was saved untrained: its weights are random" in caplog.text


# The Hub


def test_an_address_without_commit_names_todays(hub: HubDouble, content: dict[str, bytes]) -> None:
    commit = hub.add_repo(REPO, content)
    for address in (f"hf:{REPO}", f"hf:{REPO}@main", f"hf:{REPO}@{commit.upper()}"):
        with pytest.raises(NotPinnedError, match=rf"names no commit.* hf:{REPO}@{commit}$"):
            wsizoo.load(address)
    assert files_asked_for(hub) == set()


def test_a_pinned_address_loads_what_was_published(
    hub: HubDouble, content: dict[str, bytes], registry: Registry
) -> None:
    commit = hub.add_repo(REPO, content)
    hub.commit(REPO, {"model.safetensors": b"moved on"})
    model = wsizoo.load(f"hf:{REPO}@{commit}", registry=registry)
    now, then = (m.inference_state() for m in (model, wsizoo.build(NAME, registry=registry)))
    assert now.keys() == then.keys()
    assert all(torch.equal(now[key], then[key]) for key in then)
    hub.log.clear()
    wsizoo.load(f"hf:{REPO}@{commit}", registry=registry)
    assert hub.log == []


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_code_beside_the_weights_is_neither_fetched_nor_run(
    hub: HubDouble, content: dict[str, bytes], registry: Registry, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    code = f"import pathlib; pathlib.Path({str(canary)!r}).mkdir()".encode()
    evil = {
        "pytorch_model.bin": pickle.dumps(Canary(canary)),
        "model.py": code,
        "__init__.py": code,
        "conftest.py": code,
    }
    config = edited(
        content["config.json"],
        lambda c: c.update(auto_map={"AutoModel": "model.Evil"}, trust_remote_code=True),
    )
    commit = hub.add_repo(REPO, {**content, **evil, "config.json": config})
    wsizoo.load(f"hf:{REPO}@{commit}", registry=registry)
    assert files_asked_for(hub) == {"config.json", "model.safetensors", "golden.safetensors"}
    assert all("/resolve/" in path for path in hub.paths())
    assert not canary.exists()


@pytest.mark.parametrize("name", ["../../canary.safetensors", "pytorch_model.bin"])
def test_a_malicious_config_fetches_nothing_more(
    hub: HubDouble, content: dict[str, bytes], name: str
) -> None:
    config = edited(content["config.json"], lambda c: c["weights"].update(file=name))
    commit = hub.add_repo(REPO, {**content, "config.json": config, "pytorch_model.bin": b"0"})
    with pytest.raises(WeightsError, match=r"without a folder|is not safetensors"):
        wsizoo.load(f"hf:{REPO}@{commit}")
    assert files_asked_for(hub) == {"config.json"}


def test_weights_altered_on_the_way_are_refused(hub: HubDouble, content: dict[str, bytes]) -> None:
    commit = hub.add_repo(REPO, content)
    hub.fault("GET", "model.safetensors", times=None, mutate=flip)
    with pytest.raises(DigestError, match=r"lab/toy/model\.safetensors has sha256"):
        wsizoo.load(f"hf:{REPO}@{commit}")


def test_a_repository_of_another_tool_is_named(hub: HubDouble) -> None:
    commit = hub.add_repo(REPO, {"model.safetensors": b"0"})
    with pytest.raises(RepoNotFoundError, match=r"has no file 'config\.json'"):
        wsizoo.load(f"hf:{REPO}@{commit}")
    commit = hub.commit(REPO, {"config.json": b'{"model_type": "vit"}'})
    with pytest.raises(WeightsError, match="was not written by wsizoo"):
        wsizoo.load(f"hf:{REPO}@{commit}")


# A registry entry with weights


def weights_file(told: dict[str, Any] | str | None = None) -> bytes:
    tensors = {
        "aggregator.embed.0.weight": torch.ones(4, 8),
        "aggregator.embed.0.bias": torch.zeros(4),
        "head.linear.weight": torch.ones(2, 4),
        "head.linear.bias": torch.zeros(2),
    }
    text = told if isinstance(told, str) else json.dumps(told)
    return to_safetensors(tensors, metadata=None if told is None else {"wsizoo": text})


def pinned_registry(hub: HubDouble, folder: Path, data: bytes) -> Registry:
    commit = hub.add_repo(REPO, {"model.safetensors": data})
    digest = hashlib.sha256(data).hexdigest()
    return registry_with(folder, repo=REPO, revision=commit, sha256=digest)


def test_an_entry_of_a_plugin_loads_by_name_with_the_files_fingerprint(
    hub: HubDouble, tmp_path: Path
) -> None:
    stated = {"encoder": "made-up", "mpp": 0.5, "patch_size": 224, "weights": "e" * 64}
    data = weights_file({"fingerprint": stated})
    model = wsizoo.load(NAME, registry=pinned_registry(hub, tmp_path / "plugin", data))
    assert model.requires.to_json() == stated
    assert torch.equal(model.inference_state()["aggregator.embed.0.weight"], torch.ones(4, 8))
    with pytest.raises(wsizoo.WsizooError, match="patch_size 224"):
        model(wsizoo.Bag(torch.ones(1, 8), encoder=wsizoo.Fingerprint("made-up", patch_size=256)))
    assert files_asked_for(hub) == {"model.safetensors"}


def test_without_metadata_the_features_are_those_that_the_entry_states(
    hub: HubDouble, tmp_path: Path
) -> None:
    registry = pinned_registry(hub, tmp_path / "plugin", weights_file())
    model = wsizoo.load(NAME, registry=registry)
    assert model.requires.to_json() == {"encoder": "made-up", "mpp": 0.5}


def test_weights_for_other_features_than_the_entry_states_are_refused(
    hub: HubDouble, tmp_path: Path
) -> None:
    data = weights_file({"fingerprint": {"encoder": "made-up", "mpp": 1.0}})
    registry = pinned_registry(hub, tmp_path / "plugin", data)
    with pytest.raises(WeightsError, match=r"trained on features with mpp 1\.0, the entry .* 0\.5"):
        wsizoo.load(NAME, registry=registry)


@pytest.mark.parametrize("told", ["{", "3", '{"fingerprint": 3}', '{"fingerprint": {"aura": 1}}'])
def test_damaged_metadata_is_named(hub: HubDouble, tmp_path: Path, told: str) -> None:
    registry = pinned_registry(hub, tmp_path / "plugin", weights_file(told))
    with pytest.raises(WeightsError, match=r"'toy-mean'.*(damaged metadata|fingerprint)"):
        wsizoo.load(NAME, registry=registry)


def test_weights_come_in_a_package_too(
    content: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "site" / "toy_weights" / "models" / "toy"
    models.mkdir(parents=True)
    (tmp_path / "site" / "toy_weights" / "__init__.py").write_text("raise SystemExit('imported')")
    for name, data in content.items():
        (models / name).write_bytes(data)
    monkeypatch.syspath_prepend(tmp_path / "site")
    registry = registry_with(tmp_path / "plugin", package="toy_weights:models/toy")
    assert wsizoo.load(NAME, registry=registry).trained
    digest = hashlib.sha256(content["model.safetensors"]).hexdigest()
    registry = registry_with(tmp_path / "a", package="toy_weights:models/toy", sha256=digest)
    assert wsizoo.load(NAME, registry=registry).trained
    registry = registry_with(tmp_path / "b", package="toy_weights:models/toy", sha256="f" * 64)
    with pytest.raises(DigestError, match=f"names weights with sha256 {digest}"):
        wsizoo.load(NAME, registry=registry)


@pytest.mark.parametrize(
    ("package", "told"),
    [
        ("no_such_package:toy", r"'toy-mean' lie in the package 'no_such_package', which is not"),
        ("no_such.package:toy", r"lie in the package 'no_such.package', which is not installed"),
        ("wsizoo.bag:toy", r"lie in the package 'wsizoo.bag', which is not installed"),
        ("wsizoo:models/none", r"'wsizoo' holds no folder 'models/none' with weights of"),
    ],
)
def test_a_package_that_is_not_there_is_named(tmp_path: Path, package: str, told: str) -> None:
    registry = registry_with(tmp_path / "plugin", package=package)
    with pytest.raises(WeightsError, match=told):
        wsizoo.load(NAME, registry=registry)


def test_a_model_that_does_not_exist_is_named(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match=r"No model named 'toy-maen'.*'toy-mean'"):
        wsizoo.load("toy-maen", registry=registry)
