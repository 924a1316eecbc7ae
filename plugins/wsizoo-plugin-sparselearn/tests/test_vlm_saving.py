"""What is saved of a SlideVLM, and which language models it is loaded onto."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from wsizoo_plugin_sparselearn.vlm import language_model, parts, tiny
from wsizoo_plugin_sparselearn.vlm.language_model import Base, LanguageModel, facts_of, library
from wsizoo_plugin_sparselearn.vlm.slide_vlm import SlideVLM

import wsizoo
from wsizoo.errors import (
    DataError,
    DigestError,
    NotFoundError,
    NoWeightsError,
    PluginError,
    SpecError,
    StrictnessError,
)
from wsizoo.files import sha256_of
from wsizoo.plugins import installed
from wsizoo.registry import Entry, Registry
from wsizoo.testing import check_plugin
from wsizoo.testing.hub import HubDouble
from wsizoo.weights import read_tensors

QUESTION, OPTIONS = "which pattern is seen ?", ["ring", "sheet", "cord", "gland"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base"))


def registry(lm: Mapping[str, Any], **more: Any) -> Registry:
    record = {
        "summary": "a toy",
        "licence": "MIT",
        "source": "a test",
        "encoder": {"name": "made-up", "dim": 8, "mpp": 0.5},
        "model": {
            "name": "slidevlm",
            "lm": {"dtype": "float32", **lm},
            "selector": {"name": "sparselearn", "k": 4},
            "lora": {"r": 2, "targets": ["q_proj", "v_proj"]},
            "question": QUESTION,
            "options": OPTIONS,
            **more,
        },
    }
    return Registry(installed(), models={"toy": Entry("toy", record, "a test")})


def trained(known: Registry, *overrides: str) -> wsizoo.SlideModel:
    model = wsizoo.build("toy", *overrides, seed=1, registry=known)
    with torch.no_grad():
        for name, tensor in model.inference_state().items():
            if "lora_B" in name:
                tensor.normal_(generator=torch.Generator().manual_seed(3))
    model.trained = True
    return model


def test_what_is_saved_is_loaded_as_it_was(base: Path, tmp_path: Path) -> None:
    known = registry({"folder": str(base)})
    model, slide = trained(known), tiny.bag(9)
    wsizoo.save(model, tmp_path / "saved")
    again = wsizoo.load(tmp_path / "saved", registry=known)
    assert torch.equal(again(slide).logits, model(slide).logits)
    assert torch.equal(again(slide).embedding, model(slide).embedding)
    assert again.classes == OPTIONS
    assert set(wsizoo.verify(tmp_path / "saved", registry=known).outputs) >= {"logits", "embedding"}
    plain = wsizoo.build("toy", "model.lora=null", seed=1, registry=known)
    assert not torch.equal(plain(slide).logits, model(slide).logits)  # LoRA does change it


@pytest.mark.parametrize("selector", [None, {"name": "norm"}, {"name": "sparselearn"}])
def test_a_load_reads_the_language_model_once(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selector: Any
) -> None:
    known = registry({"folder": str(base)}, selector=selector)
    wsizoo.save(trained(known), tmp_path / "saved")
    read, times = LanguageModel.read, []
    monkeypatch.setattr(LanguageModel, "read", lambda lm: times.append(lm) or read(lm))
    wsizoo.load(tmp_path / "saved", registry=known)
    assert len(times) == 1


def test_the_file_holds_selector_projector_and_lora_and_no_base_weight(
    base: Path, tmp_path: Path
) -> None:
    model = trained(registry({"folder": str(base)}))
    wsizoo.save(model, tmp_path / "saved")
    tensors, metadata = read_tensors(tmp_path / "saved" / "model.safetensors")
    assert {name.split(".")[1] for name in tensors} == {"selector", "projector", "lora"}
    assert sum("lora" in name for name in tensors) == 8
    # A base weight under another name would still hold its numbers.
    weights, _ = read_tensors(base / "model.safetensors")
    sizes = {tuple(t.shape) for t in weights.values()} - {(32,)}
    assert not [n for n, t in tensors.items() if tuple(t.shape) in sizes and "projector" not in n]
    told = json.loads(metadata["wsizoo"])["spec"]["model"]
    assert told["lm"] == {
        "dtype": "float32",
        "folder": str(base),
        "width": 32,
        "vocabulary": len(tiny.WORDS),
        "config_sha256": sha256_of(base / "config.json"),
        "tokenizer_sha256": sha256_of(base / "tokenizer.json"),
        "weights_sha256": facts_of(base, weights=True)["weights_sha256"],
    }
    assert told["lora"] == {"r": 2, "alpha": 16.0, "dropout": 0.05, "targets": ["q_proj", "v_proj"]}
    assert told["selector"] == {"name": "sparselearn", "k": 4}
    assert "User: " in told["template"]


def test_the_state_of_a_training_holds_no_base_weight(base: Path) -> None:
    model = trained(registry({"folder": str(base)}))
    state = model.state_dict()
    parts_of_it = {".".join(name.split(".")[:2]) for name in state}
    assert parts_of_it == {"whole.selector", "whole.projector", "whole.lm"}
    assert all("lora_" in name for name in state if name.startswith("whole.lm"))
    other = wsizoo.build("toy", seed=2, registry=registry({"folder": str(base)}))
    other.load_state_dict(state)
    assert torch.equal(other(tiny.bag(9)).logits, model(tiny.bag(9)).logits)
    del state["whole.projector.scale"]
    with pytest.raises(RuntimeError, match=r'Missing key.* "whole.projector.scale"'):
        other.load_state_dict(state)


@pytest.mark.parametrize("change", ["config", "tokenizer", "weights"])
def test_another_base_is_refused_with_both_hashes(base: Path, tmp_path: Path, change: str) -> None:
    wsizoo.save(trained(registry({"folder": str(base)})), tmp_path / "saved")
    other = tmp_path / "other"
    shutil.copytree(base, other)
    if change == "weights":
        tiny.folder(other, seed=1)
    else:
        path = other / f"{change}.json"
        path.write_text(path.read_text() + "\n")
    theirs, mine = (facts_of(f, weights=True)[f"{change}_sha256"] for f in (other, base))
    config = tmp_path / "saved" / "config.json"
    told = json.loads(config.read_text())
    told["spec"]["model"]["lm"]["folder"] = str(other)
    config.write_text(json.dumps(told))
    with pytest.raises(DigestError, match=f"its {change}_sha256 is {theirs}, expected {mine}"):
        wsizoo.load(tmp_path / "saved", registry=registry({}))
    found = f"its {change}_sha256 is {theirs}, expected {mine}"
    told["spec"]["model"]["lm"]["folder"] = str(base)
    config.write_text(json.dumps(told))
    with pytest.raises(SpecError, match=found):
        wsizoo.load(tmp_path / "saved", f"model.lm.folder={other}", registry=registry({}))


def test_another_width_and_vocabulary_are_told_with_both_values(base: Path, tmp_path: Path) -> None:
    wide = tiny.folder(tmp_path / "wide", width=64)
    stated = Base(folder=str(wide), dtype="float32", width=32, vocabulary=5)
    with pytest.raises(DigestError, match=r"its width is 64, expected 32; its vocabulary is 37, "):
        LanguageModel.read(stated)


def test_a_model_may_be_loaded_with_the_folder_of_its_base_elsewhere(
    base: Path, tmp_path: Path
) -> None:
    known = registry({"folder": str(base)})
    model = trained(known)
    wsizoo.save(model, tmp_path / "saved")
    shutil.copytree(base, tmp_path / "moved")
    again = wsizoo.load(tmp_path / "saved", f"model.lm.folder={tmp_path / 'moved'}", registry=known)
    assert torch.equal(again(tiny.bag()).logits, model(tiny.bag()).logits)


def test_weights_of_another_width_do_not_fit(base: Path, tmp_path: Path) -> None:
    wsizoo.save(trained(registry({"folder": str(base)})), tmp_path / "saved")
    config = tmp_path / "saved" / "config.json"
    told = json.loads(config.read_text())
    wide = tiny.folder(tmp_path / "wide", width=64)
    told["spec"]["model"]["lm"] = {"folder": str(wide), "dtype": "float32"}
    config.write_text(json.dumps(told))
    with pytest.raises(StrictnessError, match=r"misshapen: whole.lora"):
        wsizoo.load(tmp_path / "saved", registry=registry({}))


def test_what_was_made_by_hand_is_not_saved() -> None:
    with pytest.raises(DataError, match="holds a language model that was made by hand"):
        SlideVLM(8, tiny.language_model()).published_params()


def test_a_language_model_that_learns_itself_is_not_saved_silently() -> None:
    model = SlideVLM(8, tiny.language_model())
    model.lm.requires_grad_(True)
    with pytest.raises(DataError, match="tensors of the language model itself learn, first"):
        model.inference_state()
    assert any(name.startswith("lm.") for name in model.state_dict())


def test_a_folder_that_lacks_a_file_is_refused(base: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "model.safetensors"):
        broken = tmp_path / name.split(".")[0]
        shutil.copytree(base, broken)
        (broken / name).unlink()
        with pytest.raises(NotFoundError, match=f"holds no language model: {name} is not there"):
            LanguageModel.read(Base(folder=str(broken)))


def test_a_language_model_that_lacks_a_tensor_is_refused(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    weights = load_file(broken / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lacks 1 tensors, first model.norm.weight"):
        LanguageModel.read(Base(folder=str(broken)))


@pytest.mark.parametrize(
    ("record", "match"),
    [
        ({}, "needs a language model: model.lm.folder=DIR, or"),
        ({"repo": "org/lm"}, "revision 'None' of org/lm is not a commit"),
        ({"repo": "org/lm", "revision": "main"}, "revision 'main' of org/lm is not a commit"),
        ({"folder": "x", "dtype": "int8"}, "lm.dtype is 'int8', expected float32, bfloat16"),
        ({"folder": "x", "reversion": "a"}, "unknown field 'reversion'. Did you mean"),
    ],
)
def test_a_base_that_is_not_well_stated(record: dict[str, Any], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        parts.made_base(record)


def published(hub: HubDouble, base: Path) -> dict[str, Any]:
    files = {path.name: path.read_bytes() for path in base.iterdir() if path.is_file()}
    return {"repo": "org/lm", "revision": hub.add_repo("org/lm", files)}


def test_nothing_is_downloaded_unasked_and_then_only_once(
    hub: HubDouble, base: Path, tmp_path: Path
) -> None:
    lm = published(hub, base)
    known = registry(lm)
    with pytest.raises(NotFoundError, match=r"org/lm at .* is not in the Hub's cache .* unasked"):
        wsizoo.build("toy", registry=known)
    assert not hub.log
    model = wsizoo.build("toy", "model.lm.download=true", seed=1, registry=known)
    asked = len(hub.log)
    assert asked
    again = wsizoo.build("toy", seed=1, registry=known)
    assert len(hub.log) == asked
    assert torch.equal(again(tiny.bag()).logits, model(tiny.bag()).logits)
    model.trained = True
    wsizoo.save(model, tmp_path / "saved")
    told = json.loads((tmp_path / "saved" / "config.json").read_text())["spec"]["model"]["lm"]
    assert {key: told[key] for key in lm} == lm
    assert not {"folder", "download"} & set(told)
    assert wsizoo.load(tmp_path / "saved", registry=known).trained


def test_a_repository_without_a_language_model_is_refused(hub: HubDouble) -> None:
    pin = hub.add_repo("org/lm", {"config.json": b"{}"})
    with pytest.raises(NotFoundError, match=r"org/lm holds no language model .* no tokenizer.json"):
        LanguageModel.read(Base(repo="org/lm", revision=pin, download=True))


def test_models_without_released_weights_say_so() -> None:
    for name in ("slidevlm-qwen2.5-7b-conch", "slidevlm-qwen2.5-7b-gigapath"):
        with pytest.raises(NoWeightsError, match=f"No weights have been released for '{name}'"):
            wsizoo.load(name)
        spec = wsizoo.registry.default().model_spec(name)
        assert spec.model["selector"] == {"name": "sparselearn", "k": 32}
        Base(**spec.model["lm"])


def test_the_folder_of_another_language_model_is_not_taken_for_the_entry_s(tmp_path: Path) -> None:
    tiny.folder(tmp_path / "lm")
    told = r"another language model than this slidevlm's: its width is 32, expected 3584; .*Qwen2.5"
    with pytest.raises(DigestError, match=told):
        wsizoo.build("slidevlm-qwen2.5-7b-conch", f"model.lm.folder={tmp_path / 'lm'}")


def test_entries_are_built_with_a_tiny_language_model() -> None:
    report = check_plugin("wsizoo_plugin_sparselearn.hooks", components=False)
    assert report.passed, report.failures


def test_a_library_that_is_not_there_or_broken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError, match=r"needs nonesuch, not installed: pip install 'wsizoo-"):
        library("nonesuch")

    class Broken:
        def __getattr__(self, name: str) -> Any:
            cause = RuntimeError("operator torchvision::nms does not exist")
            raise ModuleNotFoundError("Could not import module 'LlamaConfig'") from cause

    monkeypatch.setattr(language_model.importlib, "import_module", lambda name: Broken())
    match = r"imported \(.*torchvision::nms does not exist.*\). A torchvision that was built for"
    with pytest.raises(PluginError, match=match):
        library("transformers")
