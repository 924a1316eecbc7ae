"""Commit and digest of published weights: the registry's, or the user's lock file's."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

import wsizoo
from wsizoo.errors import DigestError, NotPinnedError, NoWeightsError, WeightsError
from wsizoo.pins import pin, pinned, pins_file, read_pins, write_pin
from wsizoo.plugins import discover
from wsizoo.registry import Entry, Registry
from wsizoo.testing.hub import HubDouble

REPO = "lab/toy"
FILE = "model.safetensors"
TENSORS = {"head.linear.weight": torch.arange(16.0).view(2, 8), "head.linear.bias": torch.ones(2)}
DATA = save(TENSORS)
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config" / "pins.json"
    monkeypatch.setenv("WSIZOO_PINS", str(path))
    return path


def registry_with(**weights: Any) -> Registry:
    """One model `toy` without a body's tensors, whose weights are these."""
    record = {
        "summary": "a toy",
        "licence": "MIT",
        "source": "a test",
        "encoder": {"name": "made-up", "dim": 8},
        "aggregator": {"name": "mean", "dim": None},
        "head": {"name": "classification", "classes": ["a", "b"]},
        "weights": weights or None,
        "aliases": ["old-toy"],
    }
    entry = Entry("toy", record, "a test")
    return Registry(discover([]), {"toy": entry}, aliases={"old-toy": "toy"})


def test_pinning_records_commit_and_digest_and_then_load_works(hub: HubDouble, lock: Path) -> None:
    commit = hub.add_repo(REPO, {FILE: DATA})
    registry = registry_with(repo=REPO)
    with pytest.raises(NotPinnedError, match=r"'toy' is published at lab/toy, but no .*pin toy"):
        wsizoo.load("toy", registry=registry)
    assert hub.log == []
    found = wsizoo.pin("toy", registry)
    assert found == {"repo": REPO, "revision": commit, "file": FILE, "sha256": DIGEST}
    assert json.loads(lock.read_text()) == {"toy": found}
    hub.commit(REPO, {FILE: b"moved on"})
    model = wsizoo.load("toy", registry=registry)
    assert model.head is not None and model.head.linear is not None
    assert torch.equal(model.head.linear.weight, TENSORS["head.linear.weight"])
    assert model.trained
    assert not model.training


def test_an_alias_is_pinned_under_the_current_name(hub: HubDouble) -> None:
    hub.add_repo(REPO, {FILE: DATA})
    with pytest.warns(DeprecationWarning, match="'old-toy' is now called 'toy'"):
        pin("old-toy", registry_with(repo=REPO))
    assert list(read_pins()) == ["toy"]


def test_what_the_registry_states_is_kept(hub: HubDouble) -> None:
    commit = hub.add_repo(REPO, {FILE: DATA})
    hub.commit(REPO, {FILE: b"moved on"})
    assert pin("toy", registry_with(repo=REPO, revision=commit))["sha256"] == DIGEST
    with pytest.raises(DigestError, match=f"has sha256 {DIGEST}, expected {'0' * 64}"):
        pin("toy", registry_with(repo=REPO, revision=commit, sha256="0" * 64))


def test_damage_on_the_way_is_not_pinned(hub: HubDouble, lock: Path) -> None:
    hub.add_repo(REPO, {FILE: DATA})
    hub.fault("GET", FILE, times=None, mutate=lambda body: body[:-1] + bytes([body[-1] ^ 1]))
    with pytest.raises(DigestError, match="the Hub's own record"):
        pin("toy", registry_with(repo=REPO))
    assert not lock.exists()


def test_the_registrys_own_pin_needs_no_lock_file(hub: HubDouble) -> None:
    commit = hub.add_repo(REPO, {FILE: DATA})
    registry = registry_with(repo=REPO, revision=commit, sha256=DIGEST)
    assert wsizoo.load("toy", registry=registry).trained


@pytest.mark.parametrize(
    "now",
    [
        {"repo": "lab/other"},
        {"repo": REPO, "revision": "b" * 40},
        {"repo": REPO, "sha256": "b" * 64},
        {"repo": REPO, "file": "better.safetensors"},
    ],
)
def test_a_pin_of_other_weights_is_not_used(now: dict[str, str]) -> None:
    write_pin("toy", {"repo": REPO, "revision": "a" * 40, "file": FILE, "sha256": "a" * 64})
    with pytest.raises(
        NotPinnedError, match=r"your lock file pins other weights\. Run: wsizoo pin"
    ):
        pinned("toy", registry_with(**now).model_spec("toy"))


def test_no_released_weights_is_said_with_what_to_do(hub: HubDouble) -> None:
    registry = registry_with()
    with pytest.raises(NoWeightsError, match=r"released for 'toy'.*build\('toy'\).*list --weights"):
        wsizoo.load("toy", registry=registry)
    with pytest.raises(NoWeightsError, match=r"nothing to pin\. See: wsizoo show toy"):
        pin("toy", registry)
    with pytest.raises(NoWeightsError, match="nothing to pin"):
        pin("toy", registry_with(package="somewhere:models"))
    assert hub.log == []


def test_a_format_that_can_hold_code_is_refused_before_any_request(hub: HubDouble) -> None:
    registry = registry_with(repo=REPO, file="pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin is not safetensors"):
        pin("toy", registry)
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin is not safetensors"):
        wsizoo.load("toy", registry=registry)
    assert hub.log == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not a mapping of model names"),
        ('{"toy": "abc"}', "is not a mapping of model names to repo, revision, file, sha256"),
        ('{"toy": {"repo": "lab/toy", "commit": "a"}}', "Mend or delete it"),
    ],
)
def test_a_damaged_lock_file_is_named_and_kept(
    hub: HubDouble, lock: Path, text: str, told: str
) -> None:
    lock.parent.mkdir()
    lock.write_text(text)
    with pytest.raises(WeightsError, match=rf"pins\.json.*{told}"):
        wsizoo.load("toy", registry=registry_with(repo=REPO))
    with pytest.raises(WeightsError, match=told):
        pin("toy", registry_with(repo=REPO))
    assert lock.read_text() == text
    assert hub.log == []


def test_pins_are_added_to_those_that_are_there() -> None:
    one = {"repo": REPO, "revision": "a" * 40, "file": FILE, "sha256": "a" * 64}
    write_pin("one", one)
    write_pin("two", {**one, "file": "x.safetensors"})
    assert read_pins() == {"one": one, "two": {**one, "file": "x.safetensors"}}


def test_pins_that_are_written_at_the_same_time_are_all_kept() -> None:
    one = {"repo": REPO, "revision": "a" * 40, "file": FILE, "sha256": "a" * 64}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: write_pin(f"model-{i}", one), range(24)))
    assert set(read_pins()) == {f"model-{i}" for i in range(24)}


def test_the_lock_file_lies_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lock: Path
) -> None:
    assert pins_file() == lock
    monkeypatch.delenv("WSIZOO_PINS")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert pins_file() == tmp_path / "wsizoo" / "pins.json"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert pins_file() == Path.home() / ".config" / "wsizoo" / "pins.json"
