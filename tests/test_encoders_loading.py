"""load_encoder: from a folder, from the Hub, from a plugin, or an error that says what to do."""

import hashlib
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

import wsizoo
from wsizoo import hub as hub_module
from wsizoo.encoders.loading import build_encoder, load_encoder, why_not
from wsizoo.encoders.networks import NetworkEncoder
from wsizoo.errors import (
    DigestError,
    GatedError,
    NotFoundError,
    NotPinnedError,
    NoWeightsError,
    OfflineError,
    PluginError,
    SpecError,
    WeightsError,
)
from wsizoo.pins import pin, read_pins, write_pin
from wsizoo.plugins import discover
from wsizoo.registry import Entry, Registry
from wsizoo.testing import check_component
from wsizoo.testing.hub import HubDouble

REPO = "lab/tiny"
FACTS: dict[str, Any] = {
    "summary": "a tiny ViT",
    "licence": "MIT",
    "source": "https://example.org/tiny",
    "component": "timm",
    "params": {"architecture": "vit_tiny_patch16_224", "arguments": {"depth": 1}},
    "dim": 192,
    "mpp": 0.5,
    "patch_size": 256,
    "pooling": "cls",
    "image": {"size": 224, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}


class Ready(wsizoo.Encoder):
    """An encoder without weights, as plugins have had them."""

    name, dim, mpp, patch_size, revision = "ready", 3, 0.5, 224, "v1"

    def __init__(self, power: int = 1) -> None:
        super().__init__()
        self.power = power

    def forward(self, patches: Tensor) -> Tensor:
        return patches.float().mean((2, 3)) ** self.power


class Net(NetworkEncoder):
    """An architecture that timm does not have."""

    def make(self) -> nn.Module:
        return nn.Conv2d(3, 4, 16, 16)


class Plain:
    """Not an encoder."""


def registry_with(**entries: dict[str, Any]) -> Registry:
    """The core's parts, those above as if from a plugin, and these entries alone."""
    plugins = discover([], allow="")
    for name in ("Ready", "Net", "Plain"):
        found = wsizoo.Component("encoder", name.lower(), f"{__name__}:{name}", "s" * 12, "wsizoo")
        plugins.all[0].components = (*plugins.all[0].components, found)
    made = {name: Entry(name, {**FACTS, **fields}, "a test") for name, fields in entries.items()}
    return Registry(plugins, encoders=made)


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config" / "pins.json"
    monkeypatch.setenv("WSIZOO_PINS", str(path))
    return path


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    made = build_encoder("tiny", seed=5, registry=registry_with(tiny={}))
    return dict(made.network.state_dict())


def as_pickle(tensors: dict[str, Tensor]) -> bytes:
    buffer = BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


PATCHES = torch.randint(0, 256, (3, 3, 256, 256), dtype=torch.uint8)


# From a folder


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_laid_out_as_on_the_hub_is_loaded(
    file: str, tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    registry = registry_with(tiny={})
    data = save(tensors) if file.endswith("safetensors") else as_pickle(tensors)
    (tmp_path / file).write_bytes(data)
    (tmp_path / "config.json").write_text("{}")
    encoder = load_encoder("tiny", tmp_path, registry)
    random = build_encoder("tiny", seed=5, registry=registry)
    with torch.inference_mode():
        assert torch.equal(encoder(PATCHES), random(PATCHES))
    assert not encoder.training
    made = encoder.fingerprint()
    assert (made.encoder, made.mpp, made.patch_size, made.pooling) == ("tiny", 0.5, 256, "cls")
    assert made.weights == hashlib.sha256(data).hexdigest()
    assert made.revision is None
    assert made.preprocessing and made.preprocessing.startswith("uint8 RGB; shorter edge to 224 px")
    assert torch.equal(encoder(PATCHES), load_encoder("tiny", tmp_path / file, registry)(PATCHES))


def test_a_folder_with_the_pinned_file_has_its_commit(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    data = save(tensors)
    (tmp_path / "model.safetensors").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    stated = {"repo": REPO, "revision": "a" * 40, "file": "model.safetensors"}
    same = registry_with(tiny={**stated, "sha256": digest})
    assert load_encoder("tiny", tmp_path, same).revision == "a" * 40
    other = registry_with(tiny={**stated, "sha256": "0" * 64})
    assert load_encoder("tiny", tmp_path, other).revision is None
    write_pin("encoder:tiny", {**stated, "sha256": digest})
    assert load_encoder("tiny", tmp_path, registry_with(tiny={"repo": REPO})).revision == "a" * 40


def test_weights_for_what_reads_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"'handcrafted-he' reads no weights, so '.*of no use"):
        load_encoder("handcrafted-he", tmp_path)


# From the Hub


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_an_encoder_is_pinned_once_and_loaded_from_the_hub(
    file: str, hub: HubDouble, lock: Path, tensors: dict[str, Tensor]
) -> None:
    data = save(tensors) if file.endswith("safetensors") else as_pickle(tensors)
    commit = hub.add_repo(REPO, {file: data, "README.md": b"hello"})
    registry = registry_with(tiny={"repo": REPO})
    with pytest.raises(NotPinnedError, match=r"'tiny' is published at lab/tiny, but .*pin tiny"):
        load_encoder("tiny", registry=registry)
    assert hub.log == []
    found = pin("tiny", registry)
    assert found["file"] == file and found["revision"] == commit
    assert json.loads(lock.read_text()) == {"encoder:tiny": found}
    hub.commit(REPO, {file: b"moved on"})
    encoder = load_encoder("tiny", registry=registry)
    assert (encoder.revision, encoder.weights) == (commit, found["sha256"])
    assert torch.equal(encoder(PATCHES[:1]), build(registry)(PATCHES[:1]))


def build(registry: Registry) -> wsizoo.Encoder:
    return build_encoder("tiny", seed=5, registry=registry)


def test_a_revision_that_the_catalogue_states_is_the_one_that_is_pinned(
    hub: HubDouble, tensors: dict[str, Tensor]
) -> None:
    commit = hub.add_repo(REPO, {"pytorch_model.bin": as_pickle(tensors)})
    hub.commit(REPO, {"pytorch_model.bin": b"moved on"})
    stated = {"repo": REPO, "revision": commit, "file": "pytorch_model.bin"}
    registry = registry_with(tiny=stated)
    assert pin("tiny", registry)["revision"] == commit
    assert load_encoder("tiny", registry=registry).revision == commit
    with pytest.raises(NotPinnedError, match=r"your lock file pins other weights"):
        load_encoder("tiny", registry=registry_with(tiny={**stated, "revision": "b" * 40}))


def test_other_bytes_than_those_pinned_are_not_used(
    hub: HubDouble, tensors: dict[str, Tensor]
) -> None:
    commit = hub.add_repo(REPO, {"model.safetensors": save(tensors)})
    stated = {"repo": REPO, "revision": commit, "file": "model.safetensors", "sha256": "0" * 64}
    with pytest.raises(DigestError, match=rf"expected {'0' * 64}.*Nothing of it was used"):
        load_encoder("tiny", registry=registry_with(tiny=stated))


def test_a_pickle_from_the_hub_runs_no_code(hub: HubDouble, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (canary,)

    hub.add_repo(REPO, {"pytorch_model.bin": as_pickle({"x": Bomb()})})  # type: ignore[dict-item]
    registry = registry_with(tiny={"repo": REPO})
    pin("tiny", registry)
    with pytest.raises(WeightsError, match=r"holds more than tensors, and reading it could run"):
        load_encoder("tiny", registry=registry)
    assert not canary.exists()


def test_a_gated_repository_is_told_with_its_page(
    hub: HubDouble, monkeypatch: pytest.MonkeyPatch, tensors: dict[str, Tensor]
) -> None:
    hub.add_repo(REPO, {"model.safetensors": save(tensors)}, gated=True)
    registry = registry_with(tiny={"repo": REPO, "gated": True})
    with pytest.raises(GatedError, match=r"'lab/tiny' is gated and you are not logged in"):
        pin("tiny", registry)
    assert read_pins() == {}


def test_offline_is_told(
    hub: HubDouble, monkeypatch: pytest.MonkeyPatch, tensors: dict[str, Tensor]
) -> None:
    from huggingface_hub import constants

    commit = hub.add_repo(REPO, {"model.safetensors": save(tensors)})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    stated = {"repo": REPO, "revision": commit, "file": "model.safetensors", "sha256": "0" * 64}
    with pytest.raises(OfflineError, match=r"lab/tiny/model\.safetensors .*HF_HUB_OFFLINE is set"):
        load_encoder("tiny", registry=registry_with(tiny=stated))


def test_a_repository_without_weights_of_a_usual_name_is_told(hub: HubDouble) -> None:
    hub.add_repo(REPO, {"weights.onnx": b"x", "README.md": b"y"})
    told = r"lab/tiny holds neither model\.safetensors nor pytorch_model\.bin at .*README\.md"
    with pytest.raises(WeightsError, match=told):
        pin("tiny", registry_with(tiny={"repo": REPO}))


def test_weights_that_lie_on_no_hub_need_a_folder() -> None:
    told = r"'tiny' lie in no repository on the Hub\. Get them from https://example\.org/tiny, then"
    with pytest.raises(NoWeightsError, match=told):
        load_encoder("tiny", registry=registry_with(tiny={}))
    with pytest.raises(NoWeightsError, match=r"'tiny' names no repository on the Hub"):
        pin("tiny", registry_with(tiny={}))


def test_what_would_fail_is_known_before_anything_is_downloaded(
    hub: HubDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = {"repo": REPO, "revision": "a" * 40, "file": "x.bin", "sha256": "0" * 64}
    entries = {
        "tiny": stated,
        "loose": {"repo": REPO},
        "ours": {"component": "ready", "params": {}},
    }
    registry = registry_with(**entries, none={"component": None, "params": {}})
    assert why_not("tiny", registry) is None and why_not("ours", registry) is None
    assert "Run: wsizoo pin loose" in str(why_not("loose", registry))
    assert "does not run here" in str(why_not("none", registry))

    def missing(name: str) -> Any:
        raise NotFoundError(f'{name} is not installed. Install it: pip install "wsizoo[encoders]"')

    monkeypatch.setattr("wsizoo.encoders.networks.import_library", missing)
    assert "timm is not installed" in str(why_not("tiny", registry))
    with pytest.raises(NotFoundError, match=r"timm is not installed"):
        load_encoder("tiny", registry=registry)
    assert hub.log == []


# What does not run


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("conch", "a class of the package `conch`"),
        ("conch-v1.5", "a class in its repository's code"),
        ("hibou-b", "a class in its repository's code"),
        ("ctranspath", r"a fork of timm 0\.5\.4"),
        ("h0-mini", r"only in the config\.json"),
    ],
)
def test_a_refused_encoder_says_why_and_what_to_do(
    name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "hub_file", lambda *_: pytest.fail("asked the Hub"))
    told = rf"The network of encoder '{name}' does not run here: .*{why}.*another tool.*can be used"
    for call in (load_encoder, pin, build_encoder):
        with pytest.raises(NotFoundError, match=told):
            call(name)
    with pytest.raises(NotFoundError, match=told):
        load_encoder(name, tmp_path)


def test_features_of_a_refused_encoder_are_read() -> None:
    bag = wsizoo.Bag(torch.randn(4, 512), encoder="conch", slide_id="A1")
    model = wsizoo.build("abmil-uni", "encoder=conch", "head.classes=[a,b]")
    assert model(bag).logits.shape == (2,)


# From a plugin


def test_encoders_load_from_the_catalogue_or_the_plugin() -> None:
    registry = registry_with(
        squared={"component": "ready", "params": {"power": 2}},
        misnamed={"component": "plain", "params": {}},
        odd={"component": "ready", "params": {"powr": 2}},
        short={"params": {}},
        only_files={"component": None, "params": {}},
    )
    assert load_encoder("ready", registry=registry).dim == 3
    squared = load_encoder("squared", registry=registry)
    assert isinstance(squared, Ready) and squared.power == 2 and not squared.training
    with pytest.raises(NotFoundError, match=r"'only_files' does not run here: it is not part of"):
        load_encoder("only_files", registry=registry)
    with pytest.raises(NotFoundError, match=r"No encoder named 'nowhere'"):
        load_encoder("nowhere", registry=registry)
    with pytest.raises(PluginError, match=r"encoder 'misnamed' is a Plain, expected a wsizoo"):
        load_encoder("misnamed", registry=registry)
    with pytest.raises(SpecError, match=r"'odd' has no argument 'powr'\. Did you mean 'power'"):
        load_encoder("odd", registry=registry)
    with pytest.raises(SpecError, match=r"encoder 'short' needs architecture: its entry states"):
        load_encoder("short", registry=registry)
    with pytest.raises(NotFoundError, match=r"No encoder named 'timm'"):
        load_encoder("timm", registry=registry)


def test_a_plugins_own_network_is_loaded_like_any_other(tmp_path: Path) -> None:
    registry = registry_with(mine={"component": "net", "params": {}, "dim": 4, "pooling": "mean"})
    made = build_encoder("mine", registry=registry)
    save_file(made.network.state_dict(), tmp_path / "model.safetensors")
    loaded = load_encoder("mine", tmp_path, registry)
    assert torch.equal(loaded(PATCHES), made(PATCHES))
    assert loaded(PATCHES).shape == (3, 4)


def test_a_loaded_network_passes_the_conformance_checks(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    registry = registry_with(tiny={})

    class Loaded(wsizoo.Encoder):
        def __new__(cls) -> Any:
            return load_encoder("tiny", tmp_path, registry)

    failed = [f"{r.check}: {r.reason}" for r in check_component(Loaded, "encoder") if not r.passed]
    assert failed == []


def test_pixels_are_the_patches_themselves() -> None:
    encoder = load_encoder("pixels")
    assert encoder(PATCHES) is PATCHES and encoder.dim is None
    made = encoder.fingerprint()
    assert (made.encoder, made.mpp, made.patch_size) == ("pixels", 4.0, 224)
    asked = encoder.fingerprint(mpp=1.0, patch_size=512)
    assert (asked.mpp, asked.patch_size) == (1.0, 512)
    failed = [r.check for r in check_component(type(encoder), "encoder") if not r.passed]
    assert failed == []
