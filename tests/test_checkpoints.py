"""Files of weights of other people's code: read as data, and no code of theirs runs."""

import argparse
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from wsizoo.checkpoints import check_kind, read_content, tensors_of
from wsizoo.errors import NotFoundError, WeightsError

TENSORS = {"norm.weight": torch.arange(4.0), "head.bias": torch.ones(2)}


class Canary:
    """Touches a file when it is unpickled by a reader that runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "x.pth", "x.ckpt"])
def test_tensors_are_read_by_name(file: str, tmp_path: Path) -> None:
    path = tmp_path / file
    save_file(TENSORS, path) if path.suffix == ".safetensors" else torch.save(TENSORS, path)
    check_kind(path)
    found = tensors_of(path, read_content(path))
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


def test_a_file_that_is_not_there_or_of_another_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"No file of weights at '.*nowhere\.pt'"):
        check_kind(tmp_path / "nowhere.pt")
    (tmp_path / "x.onnx").write_bytes(b"")
    with pytest.raises(
        WeightsError, match=r"onnx' is no file of weights by its name, expected one"
    ):
        check_kind(tmp_path / "x.onnx")
    (tmp_path / "export.pkl").write_bytes(b"")
    told = r"export.pkl' is a pickle of whole objects, as fastai's .*learner.model.state_dict\(\)"
    with pytest.raises(WeightsError, match=told):
        check_kind(tmp_path / "export.pkl")


def test_tensors_inside_a_training_checkpoint_are_found(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"teacher": TENSORS, "epoch": 3, "student": {}}, path)
    assert read_content(path, ["model", "teacher", "student"]).keys() == TENSORS.keys()
    with pytest.raises(WeightsError, match=r"holds 'epoch' where tensors are expected"):
        tensors_of(path, read_content(path))
    torch.save(TENSORS, path)  # the mapping alone, as somebody may have saved it
    assert read_content(path, ["teacher"]).keys() == TENSORS.keys()


def test_state_dicts_of_several_parts_are_joined_by_a_dot(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"one": TENSORS, "two": {"w": torch.ones(2)}}, path)
    found = tensors_of(path, read_content(path))
    assert set(found) == {*(f"one.{name}" for name in TENSORS), "two.w"}
    with pytest.raises(WeightsError, match=r"holds 'two\.lr' where tensors are expected"):
        tensors_of(path, {"one": TENSORS, "two": {"lr": 0.1}})


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
        read_content(path, ["teacher"])
    assert "write its tensors alone, in an environment of its own" in str(caught.value)
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists()  # it would have


def test_what_a_refused_pickle_asks_for_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({**TENSORS, "args": argparse.Namespace(lr=0.1)}, path)
    with pytest.raises(WeightsError, match=r"It asks for argparse\.Namespace\. Where you trust"):
        read_content(path)
    path.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(WeightsError, match=r"It asks for (os|posix)\.system\. Where you trust"):
        read_content(path)


CHECKPOINTS: dict[str, Any] = {
    "beside a configuration": {"model": TENSORS, "epoch": 3, "config": argparse.Namespace(lr=1)},
    "of several parts": {"one": TENSORS, "two": OrderedDict(TENSORS), "best": Path("x")},
    "a module": torch.nn.Linear(2, 1),
    "bare": {**TENSORS, "config": argparse.Namespace(lr=1)},
}


@pytest.mark.parametrize("what", CHECKPOINTS)
@pytest.mark.parametrize("name", ["a b.pth", "it's.ckpt"])
def test_what_a_refusal_says_to_type_writes_a_file_that_is_read(
    what: str, name: str, tmp_path: Path
) -> None:
    path, content = tmp_path / name, CHECKPOINTS[what]
    if what == "bare":
        path.write_bytes(pickle.dumps(content, protocol=4))
    else:
        torch.save(content, path)
    with pytest.raises(WeightsError, match="and give that file:\npython -c ") as caught:
        read_content(path)
    command = str(caught.value).partition("file:\n")[2].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True)
    written = path.with_name(f"{path.stem}-tensors.pt")
    found = tensors_of(written, read_content(written, ["model"]))
    if what == "a module":
        assert set(found) == {"weight", "bias"}
    elif what == "of several parts":
        assert set(found) == {f"{part}.{name}" for part in ("one", "two") for name in TENSORS}
    else:
        assert found.keys() == TENSORS.keys()


def test_a_bare_pickle_is_refused_in_our_words_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(pickle.dumps({"x": torch.ones(2)}, protocol=4))
    with pytest.raises(
        WeightsError, match=r"It is a pickle that torch\.save did not write"
    ) as told:
        read_content(path)
    assert "likely succeed" not in str(told.value)


def test_a_file_that_is_none_of_torch_says_how_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for content, told in (
        (b"hello there", "torch.save: it begins with b'hello there'$"),
        (b"<!doctype html><html><head>", "torch.save: it begins with b'<!doctype html><html><he'$"),
        (b"", "torch.save: it is empty$"),
    ):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=told):
            read_content(path)
    with pytest.raises(WeightsError, match=r"nowhere\.pt cannot be read: .*No such file"):
        read_content(tmp_path / "nowhere.pt")


def test_a_bare_pickle_is_refused_too(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "x.pth"
    path.write_bytes(pickle.dumps({"x": Canary(canary)}, protocol=2))
    with pytest.raises(WeightsError, match=r"x\.pth holds more than tensors"):
        read_content(path)
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and then nothing", b"\x80\x02", b"x" * 999])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin (cannot be read as a file|holds)"):
        read_content(path)
    torch.save(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin cannot be read as a file of torch"):
        read_content(path)


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"x\.pt holds a list, expected tensors by name"):
        read_content(tmp_path / "x.pt")
    torch.save({"teacher": 3}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"holds a int, expected tensors by name"):
        read_content(tmp_path / "x.pt", ["teacher"])


def test_an_old_torch_reads_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(TENSORS, tmp_path / "x.pt")
    save_file(TENSORS, tmp_path / "x.safetensors")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(
        WeightsError, match=r"x\.pt is a pickle, which torch 2\.5\.1.*CVE-2025-32434"
    ):
        read_content(tmp_path / "x.pt")
    assert read_content(tmp_path / "x.safetensors").keys() == TENSORS.keys()
