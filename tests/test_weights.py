"""Tensors on disk: safetensors, nothing unpickled, loaded strictly."""

import os
import pickle
import stat
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wsizoo.errors import StrictnessError, WeightsError
from wsizoo.weights import check_strict, load_strict, read_tensors, write_tensors


class Canary:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4),
        torch.randn(3, 4).t(),
        torch.arange(10.0)[2:5],
        torch.tensor(7),
        torch.zeros(0, 3),
        torch.randn(5).half(),
        torch.randn(5).bfloat16(),
        torch.tensor([True, False]),
        torch.nn.Parameter(torch.randn(2)),
    ],
    ids=lambda t: f"{t.dtype}-{tuple(t.shape)}",
)
def test_tensors_come_back_bit_for_bit(tmp_path: Path, tensor: Tensor) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": tensor}, {"told": "yes"})
    found, metadata = read_tensors(path)
    assert found["x"].dtype == tensor.dtype
    assert torch.equal(found["x"], tensor.detach())
    assert metadata == {"told": "yes"}


def test_a_part_without_tensors_is_a_file_too(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {}, {})
    assert read_tensors(tmp_path / "a.safetensors") == ({}, {"format": "pt"})


def test_shared_storage_is_written_twice_and_the_original_left_alone(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tied = {"a": base, "b": base, "row": base[1], "none": torch.zeros(0)}
    write_tensors(tmp_path / "a.safetensors", tied, {})
    found, _ = read_tensors(tmp_path / "a.safetensors")
    assert all(torch.equal(found[name], tied[name]) for name in tied)
    assert tied["a"] is tied["b"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no mode bits")
def test_weights_are_as_readable_as_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(1)}, {})
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.pth", "model.pkl"])
def test_another_format_is_refused_and_not_unpickled(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    with pytest.raises(WeightsError, match=rf"{name} is not safetensors, the only format"):
        read_tensors(tmp_path / name)
    assert not (tmp_path / "canary").exists()


def test_a_pickle_under_a_false_name_is_refused_and_not_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        read_tensors(path)
    assert not (tmp_path / "canary").exists()


def test_a_truncated_or_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        read_tensors(path)
    write_tensors(path, {"x": torch.randn(100)}, {})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        read_tensors(path)


def test_what_does_not_fit_is_told_by_kind() -> None:
    expected = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(4), "z": torch.zeros(1)}
    found = {"a": torch.zeros(2), "b": torch.zeros(5), "d": torch.zeros(1), "e": torch.zeros(1)}
    with pytest.raises(
        StrictnessError,
        match=r"weights of 'toy' do not fit the model; 2 missing: c, z; 2 unexpected: d, e; "
        r"1 misshapen: b \(5,\), expected \(3,\)$",
    ):
        check_strict(expected, found, "'toy'")


def test_of_many_that_do_not_fit_three_are_named_and_the_others_counted() -> None:
    many = {f"w{i:03}": torch.zeros(2) for i in range(100)}
    told = r"w000, w001, w002, \.\.\."
    with pytest.raises(StrictnessError, match=rf"do not fit the model; 100 missing: {told}$"):
        check_strict(many, {}, "'toy'")
    with pytest.raises(StrictnessError, match=rf"do not fit the model; 100 unexpected: {told}$"):
        check_strict({}, many, "'toy'")
    one = r"w00{} \(2,\), expected \(3,\)"
    told = ", ".join(one.format(i) for i in range(3))
    with pytest.raises(StrictnessError, match=rf"model; 100 misshapen: {told}, \.\.\.$"):
        check_strict({name: torch.zeros(3) for name in many}, many, "'toy'")


def test_numbers_of_another_kind_are_refused_instead_of_rounded() -> None:
    counter = {"steps": torch.tensor(0)}
    with pytest.raises(StrictnessError, match=r"misshapen: steps \(\), expected \(\) int64"):
        load_strict(counter, {"steps": torch.tensor(0.7)}, "'toy'")
    with pytest.raises(StrictnessError, match=r"steps \(\) int32, expected \(\) int64"):
        load_strict(counter, {"steps": torch.tensor(1, dtype=torch.int32)}, "'toy'")


def test_half_precision_weights_load_into_a_float32_module() -> None:
    module = torch.nn.Linear(2, 1)
    half = {name: tensor.half() for name, tensor in module.state_dict().items()}
    load_strict(module.state_dict(), half, "'toy'")
    assert module.weight.dtype == torch.float32
    assert torch.equal(module.weight, half["weight"].float())


def test_nothing_is_copied_when_something_does_not_fit() -> None:
    module = torch.nn.Linear(2, 1)
    before = module.weight.detach().clone()
    with pytest.raises(StrictnessError):
        load_strict(module.state_dict(), {"weight": torch.ones(1, 2)}, "'toy'")
    assert torch.equal(module.weight, before)
