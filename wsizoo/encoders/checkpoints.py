"""Published files of weights: found in a folder, read without running code, names made to fit."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsizoo.encoder_spec import EncoderSpec, KeysSpec
from wsizoo.errors import NotFoundError, WeightsError
from wsizoo.pins import USUAL_FILES
from wsizoo.weights import read_tensors

PICKLED = frozenset({".bin", ".pt", ".pth"})
SAFE_TORCH = (2, 6)


def find_weights(name: str, facts: EncoderSpec, given: Path | str) -> Path:
    """The file of weights that a user names: itself, or in a folder laid out as on the Hub.

    Raises:
        NotFoundError: there is none. WeightsError: of a kind that is not read.
    """
    path = Path(given)
    if path.is_dir():
        wanted = list(
            dict.fromkeys([*([Path(facts.file).name] if facts.file else []), *USUAL_FILES])
        )
        path = next((path / file for file in wanted if (path / file).is_file()), path)
        if path.is_dir():
            held = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
            raise NotFoundError(
                f"'{given}' holds no weights of encoder '{name}': expected {' or '.join(wanted)}, "
                f"found {held}"
            )
    if not path.is_file():
        raise NotFoundError(f"No file or folder with weights of encoder '{name}' at '{given}'")
    if path.suffix != ".safetensors" and path.suffix not in PICKLED:
        raise WeightsError(
            f"'{path}' is no file of weights by its name, expected one ending in .safetensors, "
            f"{', '.join(sorted(PICKLED))}"
        )
    return path


def read_checkpoint(path: Path, keys: KeysSpec | None = None) -> dict[str, Tensor]:
    """Tensors by the names that the network has for them; no code of the file runs.

    Raises:
        WeightsError: a damaged file, or a pickle that holds anything but tensors and plain data.
    """
    keys = keys or KeysSpec()
    if path.suffix in PICKLED:
        content = _unpickled(path, keys.inside)
    else:
        content = read_tensors(path)[0]
    found = {_stripped(str(name), keys.strip): value for name, value in content.items()}
    found = {name: value for name, value in found.items() if not name.startswith(tuple(keys.drop))}
    odd = sorted(name for name, value in found.items() if not isinstance(value, Tensor))
    if odd:
        raise WeightsError(
            f"{path} holds '{odd[0]}' where tensors are expected by their names; it was not saved "
            "as a state_dict"
        )
    return found


def _unpickled(path: Path, inside: str | None) -> Mapping[str, Any]:
    """A pickle as data, by torch's restricted reader: whatever could run code is refused.

    Source: before 2.6 that reader could be made to run code, CVE-2025-32434.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < SAFE_TORCH:
        raise WeightsError(
            f"{path} is a pickle, which torch {torch.__version__} cannot read without risk "
            '(CVE-2025-32434). pip install --upgrade "torch>=2.6", or get model.safetensors'
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors, and reading it could run code, so nothing of it was "
            "used. Where you trust its author: read it in an environment of its own with "
            "torch.load(..., weights_only=False), write the tensors with "
            "safetensors.torch.save_file as model.safetensors, and give that folder. torch says: "
            + str(error).strip().splitlines()[0]
        ) from error
    except Exception as error:  # damage shows in any way
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{path} cannot be read as a file of torch.save: {first}") from error
    if isinstance(content, Mapping) and inside in content:
        content = content[inside]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, expected tensors by name")
    return content


def _stripped(name: str, prefixes: list[str]) -> str:
    for prefix in prefixes:
        name = name.removeprefix(prefix)
    return name
