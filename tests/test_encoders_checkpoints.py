import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from wsizoo.encoder_spec import EncoderSpec, KeysSpec
from wsizoo.encoders.checkpoints import find_weights, read_checkpoint
from wsizoo.errors import NotFoundError, WeightsError

TENSORS = {"norm.weight": torch.arange(4.0), "head.bias": torch.ones(2)}
FACTS = EncoderSpec("s", "MIT", "x")


class Canary:
    """Touches a file when it is unpickled by a reader that runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_folder_laid_out_as_on_the_hub_gives_its_file(tmp_path: Path) -> None:
    with pytest.raises(
        NotFoundError, match=r"expected model\.safetensors or pytorch_model\.bin, f"
    ):
        find_weights("uni", FACTS, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NotFoundError, match=r"'uni': expected .*, found config\.json"):
        find_weights("uni", FACTS, tmp_path)
    for file in ("pytorch_model.bin", "model.safetensors"):  # the latter is preferred
        (tmp_path / file).write_bytes(b"")
        assert find_weights("uni", FACTS, tmp_path) == tmp_path / file
        assert find_weights("uni", FACTS, str(tmp_path / file)) == tmp_path / file
    named = EncoderSpec("s", "MIT", "x", file="Checkpoints/small.pth")
    assert find_weights("hipt", named, tmp_path) == tmp_path / "model.safetensors"
    (tmp_path / "small.pth").write_bytes(b"")
    assert find_weights("hipt", named, tmp_path) == tmp_path / "small.pth"


def test_a_place_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"No file or folder with weights of encoder 'uni' at"):
        find_weights("uni", FACTS, tmp_path / "nowhere")
    (tmp_path / "weights.onnx").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"onnx' is no file of weights by its name, expected"):
        find_weights("uni", FACTS, tmp_path / "weights.onnx")


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "x.pth", "x.pt"])
def test_tensors_are_read_and_renamed(file: str, tmp_path: Path) -> None:
    path = tmp_path / file
    held = {f"module.backbone.{name}": tensor for name, tensor in TENSORS.items()}
    save_file(held, path) if path.suffix == ".safetensors" else torch.save(held, path)
    assert read_checkpoint(path).keys() == held.keys()
    found = read_checkpoint(path, KeysSpec(None, ["module.", "backbone."], ["head."]))
    assert list(found) == ["norm.weight"]
    assert torch.equal(found["norm.weight"], TENSORS["norm.weight"])


def test_tensors_inside_a_training_checkpoint_are_found(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"teacher": TENSORS, "epoch": 3, "student": {}}, path)
    assert read_checkpoint(path, KeysSpec("teacher")).keys() == TENSORS.keys()
    with pytest.raises(WeightsError, match=r"holds 'epoch' where tensors are expected"):
        read_checkpoint(path)
    torch.save(TENSORS, path)  # the mapping alone, as somebody may have saved it
    assert read_checkpoint(path, KeysSpec("teacher")).keys() == TENSORS.keys()


@pytest.mark.parametrize("where", ["beside", "instead", "inside"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not(where: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "pytorch_model.bin"
    contents: dict[str, Any] = {
        "beside": {**TENSORS, "args": Canary(canary)},
        "instead": Canary(canary),
        "inside": {"teacher": {"x": [Canary(canary)]}},
    }
    torch.save(contents[where], path)
    told = r"pytorch_model\.bin holds more than tensors, and reading it could run code, so nothing"
    with pytest.raises(WeightsError, match=told) as caught:
        read_checkpoint(path, KeysSpec("teacher"))
    assert "safetensors.torch.save_file" in str(caught.value)
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists()  # it would have


def test_a_bare_pickle_is_refused_too(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "x.pth"
    path.write_bytes(pickle.dumps({"x": Canary(canary)}, protocol=2))
    with pytest.raises(WeightsError, match=r"x\.pth holds more than tensors"):
        read_checkpoint(path)
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and then nothing", b"\x80\x02", b"x" * 999])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin (cannot be read as a file|holds)"):
        read_checkpoint(path)
    torch.save(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin cannot be read as a file of torch"):
        read_checkpoint(path)


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"x\.pt holds a list, expected tensors by name"):
        read_checkpoint(tmp_path / "x.pt")
    torch.save({"teacher": 3}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"holds a int, expected tensors by name"):
        read_checkpoint(tmp_path / "x.pt", KeysSpec("teacher"))


def test_an_old_torch_reads_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(TENSORS, tmp_path / "x.pt")
    save_file(TENSORS, tmp_path / "x.safetensors")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(
        WeightsError, match=r"x\.pt is a pickle, which torch 2\.5\.1.*CVE-2025-32434"
    ):
        read_checkpoint(tmp_path / "x.pt")
    assert read_checkpoint(tmp_path / "x.safetensors").keys() == TENSORS.keys()
