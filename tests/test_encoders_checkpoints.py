from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from wsizoo.encoder_spec import EncoderSpec, KeysSpec
from wsizoo.encoders.checkpoints import find_weights, read_checkpoint
from wsizoo.errors import NotFoundError, WeightsError

TENSORS = {"norm.weight": torch.arange(4.0), "head.bias": torch.ones(2)}
FACTS = EncoderSpec("s", "MIT", "x")


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
