"""Tensors on disk: safetensors only, nothing unpickled, and loaded strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from wsizoo.errors import StrictnessError, WeightsError


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        WeightsError: another format (never unpickled), or a damaged file.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        raise WeightsError(f"{path} is not safetensors; wsizoo loads nothing that can hold code")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file (each tensor on its own: shared storage is copied)."""
    from safetensors.torch import save_file

    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    seen: set[int] = set()
    for name, tensor in own.items():
        if tensor.numel() and tensor.untyped_storage().data_ptr() in seen:
            own[name] = tensor.clone()
        seen.add(own[name].untyped_storage().data_ptr())
    save_file(own, path, metadata={"format": "pt", **metadata})


def check_strict(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], whose: str) -> None:
    """Raise unless both hold the same names with the same shapes.

    Raises:
        StrictnessError: listing what is missing, unexpected and misshapen.
    """
    missing = sorted(set(expected) - set(found))
    unexpected = sorted(set(found) - set(expected))
    misshapen = [
        f"{name} {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in sorted(set(expected) & set(found))
        if expected[name].shape != found[name].shape
    ]
    parts = [
        f"{label}: {', '.join(items)}"
        for label, items in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("misshapen", misshapen),
        )
        if items
    ]
    if parts:
        raise StrictnessError(f"The weights of {whose} do not fit the model; {'; '.join(parts)}")


def load_strict(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], whose: str) -> None:
    """Copy tensors into a module's own (`expected` is its `inference_state()`), strictly."""
    check_strict(expected, found, whose)
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(found[name])
