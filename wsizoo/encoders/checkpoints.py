"""Published weights of encoders: found in a folder, the names of their tensors made to fit."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from wsizoo.checkpoints import check_kind, read_content, tensors_of
from wsizoo.encoder_spec import EncoderSpec, KeysSpec
from wsizoo.errors import NotFoundError
from wsizoo.pins import USUAL_FILES


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
    check_kind(path)
    return path


def read_checkpoint(path: Path, keys: KeysSpec | None = None) -> dict[str, Tensor]:
    """Tensors by the names that the network has for them; no code of the file runs.

    Raises:
        WeightsError: a damaged file, or a pickle that holds anything but tensors and plain data.
    """
    keys = keys or KeysSpec()
    content = read_content(path, [keys.inside] if keys.inside else [])
    found = {_stripped(str(name), keys.strip): value for name, value in content.items()}
    kept = {name: value for name, value in found.items() if not name.startswith(tuple(keys.drop))}
    return tensors_of(path, kept)


def _stripped(name: str, prefixes: list[str]) -> str:
    for prefix in prefixes:
        name = name.removeprefix(prefix)
    return name
