"""The folder a trained model lies in, on disk and on the Hub: config.json and model.safetensors.

config.json holds data only: the registry entry, the encoder fingerprint, and the digest of every
file beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from wsizoo.errors import DigestError, NotFoundError, WeightsError
from wsizoo.files import sha256_of
from wsizoo.fingerprint import Fingerprint
from wsizoo.spec import ModelSpec, model_record, model_spec
from wsizoo.weights import read_tensors

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
GOLDEN = "golden.safetensors"
CARD = "README.md"
FORMAT = 1


@dataclass
class StoredModel:
    """What was read from such a folder (or from a bare weights file of a registry entry).

    Args:
        record: the registry entry as plain data. tensors: by `part.name`.
        fingerprint: what the model's features must be. golden: path of the golden bag, or None.
        training: what the publisher states about training and results.
    """

    name: str
    record: dict[str, Any]
    tensors: dict[str, Tensor]
    fingerprint: Fingerprint
    golden: Path | None = None
    training: dict[str, Any] = field(default_factory=dict)

    def spec_with(self, overrides: Sequence[str] = ()) -> ModelSpec:
        return model_spec(self.name, self.record, overrides)

    @classmethod
    def of(
        cls, name: str, spec: ModelSpec, tensors: dict[str, Tensor], metadata: dict[str, str]
    ) -> StoredModel:
        """From a single weights file: the entry comes from the registry."""
        told = json.loads(metadata.get("wsizoo", "{}"))
        use = spec.encoder
        stated = {"encoder": use.name} if use else {}
        fingerprint = Fingerprint.from_json(told.get("fingerprint", stated))
        return cls(name, model_record(spec), tensors, fingerprint)

    @classmethod
    def from_config(cls, path: Path, fetch: Callable[[str, str], Path]) -> StoredModel:
        """From a config.json; `fetch(file, sha256)` gives the path of a file beside it, checked.

        Raises:
            WeightsError: not written by wsizoo, by a newer one, or malformed.
        """
        config = read_config(path)
        weights = fetch(config["weights"]["file"], config["weights"]["sha256"])
        golden = config.get("golden")
        return cls(
            name=config["name"],
            record=config["spec"],
            tensors=read_tensors(weights)[0],
            fingerprint=Fingerprint.from_json(config.get("fingerprint", {})),
            golden=fetch(golden["file"], golden["sha256"]) if golden else None,
            training=config.get("training", {}),
        )


def read_stored(folder: Path, sha256: str | None = None) -> StoredModel:
    """Read a folder that `wsizoo.save` wrote.

    Args:
        sha256: digest of the weights that somebody else recorded, checked besides config.json's.

    Raises:
        NotFoundError: no such folder. WeightsError, DigestError: see `StoredModel.from_config`.
    """
    if not (folder / CONFIG).is_file():
        raise NotFoundError(
            f"No model at '{folder}': expected a folder with {CONFIG}, as wsizoo.save writes it"
        )

    def fetch(file: str, expected: str) -> Path:
        return check_digest(folder / file, sha256 if sha256 and file == WEIGHTS else expected)

    return StoredModel.from_config(folder / CONFIG, fetch)


def check_digest(path: Path, expected: str) -> Path:
    """The path, if its bytes are the ones that were recorded. Raises WeightsError, DigestError."""
    if not path.is_file():
        raise WeightsError(
            f"{path} is missing, though {CONFIG} names it. Save or download it again"
        )
    actual = sha256_of(path)
    if actual != expected:
        raise DigestError(
            f"{path} has sha256 {actual}, expected {expected}. Nothing of it was used; save or "
            "download it again"
        )
    return path


def read_config(path: Path) -> dict[str, Any]:
    """config.json, its shape checked. Raises WeightsError."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise WeightsError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or config.get("library_name") != "wsizoo":
        raise WeightsError(f"{path} was not written by wsizoo (no library_name: wsizoo)")
    if config.get("format") != FORMAT:
        raise WeightsError(
            f"{path} has format {config.get('format')}, this wsizoo reads {FORMAT}: "
            "pip install --upgrade wsizoo"
        )
    files = [config.get("weights"), *([config["golden"]] if config.get("golden") else [])]
    well_formed = (
        isinstance(config.get("name"), str)
        and isinstance(config.get("spec"), dict)
        and all(isinstance(f, dict) and {"file", "sha256"} <= set(f) for f in files)
    )
    if not well_formed:
        raise WeightsError(f"{path} lacks name, spec, or a file with its sha256")
    for file in files:
        if Path(file["file"]).name != file["file"]:
            raise WeightsError(
                f"{path} names '{file['file']}', expected a plain file name beside it"
            )
    return config
