"""Tensors on disk: safetensors only, nothing unpickled, and loaded strictly."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from wsizoo.errors import StrictnessError, WeightsError
from wsizoo.files import check_safetensors


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        WeightsError: another format (never unpickled), or a damaged file.
    """
    from safetensors import SafetensorError, safe_open

    check_safetensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file (each tensor on its own: shared storage is copied).

    With at most one key of metadata the bytes depend on nothing else: safetensors writes several in
    an order that changes from run to run.
    """
    from safetensors.torch import save_file

    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    seen: set[int] = set()
    for name, tensor in own.items():
        if tensor.numel() and tensor.untyped_storage().data_ptr() in seen:
            own[name] = tensor.clone()
        seen.add(own[name].untyped_storage().data_ptr())
    path.touch()
    mode = path.stat().st_mode  # as any new file here; safetensors makes it the owner's alone
    save_file(own, path, metadata=dict(metadata) or {"format": "pt"})  # {} gives a broken file
    path.chmod(mode)


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of tensors by name, wherever they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        data = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(data.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_strict(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], whose: str) -> None:
    """Raise StrictnessError where names, shapes or kinds of number are not the same."""
    refuse_misfits(whose, *misfits(expected, found))


def misfits(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> tuple[set[str], set[str], list[str]]:
    """Names that are missing, those that are unexpected, and what is misshapen, with shapes."""
    wrong = [n for n in set(expected) & set(found) if not _fits(expected[n], found[n])]
    misshapen = [f"{n} {_describe(found[n])}, expected {_describe(expected[n])}" for n in wrong]
    return set(expected) - set(found), set(found) - set(expected), misshapen


def refuse_misfits(whose: str, *names: Collection[str], hint: str = "") -> None:
    """Raise StrictnessError if any tensors are missing, unexpected or misshapen, in this order."""
    told = zip(("missing", "unexpected", "misshapen"), map(sorted, names), strict=True)
    parts = [f"; {len(n)} {kind}: {', '.join([*n[:3], '...'][: len(n)])}" for kind, n in told if n]
    if parts:
        raise StrictnessError(f"The weights of {whose} do not fit the model{hint}{''.join(parts)}")


def load_strict(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], whose: str) -> None:
    """Copy tensors into a module's own (`expected` is its `inference_state()`), strictly."""
    check_strict(expected, found, whose)
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(found[name])


def _fits(expected: Tensor, found: Tensor) -> bool:
    """Same shape, and both floats (of any width) or both of one dtype: nothing is truncated."""
    floats = expected.is_floating_point() and found.is_floating_point()
    return expected.shape == found.shape and (floats or expected.dtype == found.dtype)


def _describe(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{tuple(tensor.shape)}{kind}"
