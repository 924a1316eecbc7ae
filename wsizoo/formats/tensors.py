"""Bare arrays: .pt files without code, and .npy."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.files import replacing
from wsizoo.formats.contents import Contents, Format, Look, guarded


def load_tensor(path: Path) -> Tensor:
    """The tensor that a .pt file holds; nothing in it is run.

    Raises:
        DataError: pickled objects, damage, or something else than one tensor.
    """
    try:
        with (
            guarded(path),
            warnings.catch_warnings(),
        ):  # torch warns of others' pickles, and refuses
            warnings.simplefilter("ignore")
            mapped = zipfile.is_zipfile(path)
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except DataError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
        raise DataError(
            f"'{path}' is a pickle of Python objects, which can run code when it is loaded, so it "
            "is not. Where you trust it, save its array as a tensor (torch.save) or give the .h5"
        ) from error
    if not isinstance(found, Tensor):
        raise DataError(f"'{path}' holds a {type(found).__name__}, expected one tensor (N, D)")
    return found


def load_array(path: Path) -> NDArray[Any]:
    """The array of an .npy or .npz file (key `arr_0`), without pickles. Raises DataError."""
    with guarded(path), open(path, "rb") as file:
        found = np.load(file, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            return np.asarray(found["arr_0"])


def save_tensor(path: Path, tensor: Tensor) -> None:
    """Write one plain tensor, complete or not at all."""
    with replacing(path) as temporary:
        torch.save(tensor.detach().cpu().contiguous().clone(), temporary)


def save_array(path: Path, array: NDArray[Any], packed: bool = False) -> None:
    """Write .npy, or .npz with key `arr_0`, complete or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, array) if packed else np.save(file, array)


def tensor_contents(path: Path, **told: Any) -> Contents:
    """Contents of a .pt file, which stays on disk until it is needed."""
    tensor = load_tensor(path)
    if tensor.ndim == 3 and tensor.shape[0] == 1:
        tensor = tensor[0]
    dtype = str(tensor.dtype).removeprefix("torch.")
    dtype = "float32" if dtype == "bfloat16" else dtype

    def load() -> Tensor:
        return tensor.float() if tensor.dtype is torch.bfloat16 else tensor.clone()

    return Contents((path,), tuple(tensor.shape), dtype, load, **told)


def array_contents(path: Path, **told: Any) -> Contents:
    """Contents of an .npy file."""
    array = load_array(path)

    def load() -> Tensor:
        return torch.from_numpy(array)

    return Contents((path,), array.shape, str(array.dtype), load, **told)


def _never(look: Look) -> bool:
    """A bare array says nothing of itself; it is read where its format is named."""
    return False


PT = Format(
    "pt",
    "a .pt file of one tensor (N, D), no coordinates",
    _never,
    lambda path, _: tensor_contents(path),
)
NPY = Format(
    "npy", "an .npy file (N, D), no coordinates", _never, lambda path, _: array_contents(path)
)
