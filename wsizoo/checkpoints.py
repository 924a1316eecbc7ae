"""Files of weights that other people's code wrote, read as data: no code of theirs runs."""

from __future__ import annotations

import json
import pickle
import re
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsizoo.errors import NotFoundError, WeightsError
from wsizoo.weights import read_tensors

PICKLED = frozenset({".bin", ".ckpt", ".pt", ".pth"})
OBJECTS = frozenset({".pkl", ".pickle"})
SAFE_TORCH = (2, 6)
OF_TORCH = (b"PK", b"\x80\x02\x8a\nl\xfc\x9cF\xf9")  # how torch.save begins: a zip; before 1.6
TENSORS_ALONE = """import pickle, torch
is_tensor = torch.is_tensor
def own(x): return x.state_dict() if hasattr(x, "state_dict") else x
def fits(x): return is_tensor(x) or isinstance(x, dict) and all(map(is_tensor, x.values()))
held = own({load})
torch.save({{k: own(v) for k, v in held.items() if fits(own(v))}}, {out})"""


def check_kind(path: Path) -> None:
    """Raise NotFoundError unless there is such a file, WeightsError unless its kind is read."""
    if not path.is_file():
        raise NotFoundError(f"No file of weights at '{path}'")
    if path.suffix in OBJECTS:
        raise WeightsError(
            f"'{path}' is a pickle of whole objects, as fastai's export.pkl is of a Learner; it is "
            "not read, as that would run code. Where you trust its author: load it in an "
            "environment of its own, save its tensors alone with "
            "torch.save(learner.model.state_dict(), 'model.pth'), and give that"
        )
    if path.suffix != ".safetensors" and path.suffix not in PICKLED:
        raise WeightsError(
            f"'{path}' is no file of weights by its name, expected one ending in .safetensors, "
            f"{', '.join(sorted(PICKLED))}"
        )


def read_content(path: Path, inside: Sequence[str] = ()) -> Mapping[str, Any]:
    """What a file holds by name: tensors, and beside them, in a pickle, plain data.

    Args:
        inside: names under which a training checkpoint may hold its tensors; the first of them
            that is there is taken, else the whole file.

    Raises:
        WeightsError: a damaged file, or a pickle that holds anything but tensors and plain data.
    """
    if path.suffix not in PICKLED:
        return read_tensors(path)[0]
    content = read_pickle(path)
    if isinstance(content, Mapping):
        within = next((name for name in inside if name in content), None)
        content = content if within is None else content[within]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, expected tensors by name")
    return content


def tensors_of(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The content, if it is tensors alone; those of several parts, a mapping each, as `part.name`.

    Raises:
        WeightsError: there is something else, which it names.
    """
    for part in [name for name, value in content.items() if isinstance(value, Mapping)]:
        own = {f"{part}.{name}": value for name, value in content[part].items()}
        content = {**{name: v for name, v in content.items() if name != part}, **own}
    odd = sorted(name for name, value in content.items() if not isinstance(value, Tensor))
    if odd:
        raise WeightsError(
            f"{path} holds '{odd[0]}' where tensors are expected by their names; it was not saved "
            "as a state_dict"
        )
    return dict(content)


def read_pickle(path: Path) -> Any:
    """A pickle as data, by torch's restricted reader: whatever could run code is refused.

    Raises:
        WeightsError: it could, or is damaged, or this torch cannot read pickles without risk.

    Source: before 2.6 that reader could be made to run code, CVE-2025-32434.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < SAFE_TORCH:
        raise WeightsError(
            f"{path} is a pickle, which torch {torch.__version__} cannot read without risk "
            '(CVE-2025-32434). pip install --upgrade "torch>=2.6", or get model.safetensors'
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that it refuses in the next moment
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None and not _begins(path, (*OF_TORCH, b"\x80")):
            raise _no_file_of_torch(path) from error
        what = f"asks for {refused[1]}" if refused else "is a pickle that torch.save did not write"
        raise WeightsError(
            f"{path} holds more than tensors, and reading it could run code, so nothing of it was "
            f"used. It {what}. Where you trust its author: write its tensors alone, in an "
            "environment of its own that has the code it asks for, and give that file:\n"
            f"{tensors_alone(path)}"
        ) from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # damage shows in any way
        if not _begins(path, OF_TORCH):
            raise _no_file_of_torch(path) from error
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{path} cannot be read as a file of torch.save: {first}") from error


def tensors_alone(path: Path) -> str:
    """What to type for a file with the tensors of a pickle and nothing else; it runs its code."""
    file, out = (
        json.dumps(str(each)) for each in (path, path.with_name(f"{path.stem}-tensors.pt"))
    )
    read, bare = 'torch.load({}, "cpu", weights_only=False)', 'pickle.load(open({}, "rb"))'
    load = (read if _begins(path, OF_TORCH) else bare).format(file)
    return f"python -c {shlex.quote(TENSORS_ALONE.format(load=load, out=out))}"


def _begins(path: Path, heads: tuple[bytes, ...]) -> bool:
    with path.open("rb") as file:
        return file.read(16).startswith(heads)


def _no_file_of_torch(path: Path) -> WeightsError:
    with path.open("rb") as file:
        head = file.read(24)
    found = f"it begins with {head!r}" if head else "it is empty"
    return WeightsError(f"{path} cannot be read as a file of torch.save: {found}")
