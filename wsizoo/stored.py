"""Trained models, found by name: the folder they lie in, on disk and on the Hub.

Such a folder holds model.safetensors and config.json, which is data only: the registry entry, the
encoder fingerprint, and the digest of every file beside it.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from wsizoo import hub
from wsizoo.errors import (
    DataError,
    DigestError,
    NotFoundError,
    NotPinnedError,
    WeightsError,
)
from wsizoo.files import check_safetensors, sha256_of
from wsizoo.fingerprint import Fingerprint
from wsizoo.pins import pinned
from wsizoo.registry import Entry, Registry
from wsizoo.spec import ModelSpec, model_record, model_spec
from wsizoo.weights import read_tensors

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
GOLDEN = "golden.safetensors"
CARD = "README.md"
FORMAT = 1
UNUSED = "unused."  # prefix of tensors that a model carries along and never reads
HUB_PREFIX = "hf:"
RUN_CONFIG, RUN_MODEL = "config.yaml", "model"  # of a run of `wsizoo train`
PUBLISHER = "its publisher"  # owner of an entry that no registry holds

log = logging.getLogger(__name__)


@dataclass
class StoredModel:
    """What was read from such a folder (or from a bare weights file of a registry entry).

    Args:
        record: the registry entry as plain data. tensors: by `part.name`.
        fingerprint: what the model's features must be. golden: path of the golden bag, or None.
        training: what the publisher states about training and results.
        trained: False: saved with random weights. owner: who vouches for the record.
        unused: what the weights held besides when they were read from another format.
        format: whose names the tensors have, where not ours, see `weight_formats.translated`.
    """

    name: str
    record: dict[str, Any]
    tensors: dict[str, Tensor]
    fingerprint: Fingerprint
    golden: Path | None = None
    training: dict[str, Any] = field(default_factory=dict)
    trained: bool = True
    owner: str = PUBLISHER
    unused: dict[str, Tensor] = field(default_factory=dict)
    format: str | None = None

    @property
    def entry(self) -> Entry:
        return Entry(self.name, self.record, self.owner)

    def spec_with(self, overrides: Sequence[str] = ()) -> ModelSpec:
        return model_spec(self.name, self.record, overrides)

    @classmethod
    def of(
        cls, entry: Entry, spec: ModelSpec, tensors: dict[str, Tensor], metadata: dict[str, str]
    ) -> StoredModel:
        """From a single weights file: the entry comes from the registry.

        Raises:
            WeightsError: metadata of wsizoo's that is damaged.
        """
        try:
            told = json.loads(metadata.get("wsizoo", "{}"))
        except ValueError as error:
            raise WeightsError(
                f"the weights of '{entry.name}' hold damaged metadata 'wsizoo': {error}"
            ) from error
        stated = told.get("fingerprint", {}) if isinstance(told, dict) else told
        fingerprint = read_fingerprint(stated, f"'{entry.name}'")
        written = spec.weights.format if spec.weights else None
        record = model_record(spec)
        return cls(entry.name, record, tensors, fingerprint, owner=entry.owner, format=written)

    @classmethod
    def from_config(
        cls, path: Path, fetch: Callable[[str, str], Path], sha256: str | None = None
    ) -> StoredModel:
        """From a config.json; `fetch(file, sha256)` gives the path of a file beside it, checked.

        Args:
            sha256: digest of the weights that somebody else recorded: config.json must agree.

        Raises:
            WeightsError: not written by wsizoo, by a newer one, or malformed. DigestError.
        """
        config = read_config(path)
        weights, golden = config["weights"], config.get("golden")
        if sha256 and weights["sha256"] != sha256:
            raise DigestError(
                f"{path} names weights with sha256 {weights['sha256']}, expected {sha256}. Nothing "
                "of it was used; install or download it again"
            )
        if not config["trained"]:
            log.warning("'%s' was saved untrained: its weights are random", config["name"])
        tensors = read_tensors(fetch(weights["file"], weights["sha256"]))[0]
        unused = {name: t for name, t in tensors.items() if name.startswith(UNUSED)}
        return cls(
            name=config["name"],
            record=config["spec"],
            tensors={name: tensor for name, tensor in tensors.items() if name not in unused},
            unused={name.removeprefix(UNUSED): tensor for name, tensor in unused.items()},
            fingerprint=read_fingerprint(config.get("fingerprint", {}), str(path)),
            golden=fetch(golden["file"], golden["sha256"]) if golden else None,
            training=config.get("training", {}),
            trained=config["trained"],
        )


def find_stored(name: str | Path, registry: Registry) -> StoredModel:
    """Trained weights by name, Hub address or folder, checked and read. Raises as `load`.

    Text with a slash, and any `Path`, is a folder; a bare name is a model of the zoo, and only if
    there is none a folder. A folder is that of a saved model or of a run, see `model_folder`.
    """
    if isinstance(name, Path) or (
        not name.startswith(HUB_PREFIX) and ("/" in name or "\\" in name)
    ):
        return read_stored(model_folder(Path(name)))
    if name.startswith(HUB_PREFIX):
        return _from_hub(name)
    known = name in registry.models or name in registry.aliases
    if not known and Path(name).is_dir():
        return read_stored(model_folder(Path(name)))
    entry = registry.model(name)
    spec = registry.model_spec(entry.name)
    weights = pinned(entry.name, spec)
    if weights.package:
        return read_stored(_package_folder(entry.name, weights.package), weights.sha256)
    assert weights.repo and weights.revision
    path = hub.hub_file(weights.repo, weights.revision, weights.file, weights.sha256)
    tensors, metadata = read_tensors(path)
    return StoredModel.of(entry, spec, tensors, metadata)


def model_folder(folder: Path) -> Path:
    """The folder of the saved model: of a run of `wsizoo train` its `model`, else itself.

    Raises:
        DataError: a run that is not finished, or a folder that holds models and is none.
    """
    if (folder / CONFIG).is_file():
        return folder
    begun = (folder / RUN_CONFIG).is_file()
    if begun and (folder / RUN_MODEL / CONFIG).is_file():
        return folder / RUN_MODEL
    saved = [path.parent for path in folder.glob(f"*/{CONFIG}")]
    runs = [path.parent.parent for path in folder.glob(f"*/{RUN_MODEL}/{CONFIG}")]
    if several := sorted(path.name for path in [*saved, *runs]):
        more = ", ..." if len(several) > 3 else ""
        raise DataError(
            f"'{folder}' is no model and no run of one; it holds {len(several)} "
            f"({', '.join(several[:3])}{more}): name one, {folder / several[0]}"
        )
    if begun:
        raise DataError(
            f"the run '{folder}' is not finished, so it has no model yet. The command that began "
            f"it goes on with it: wsizoo train {folder / RUN_CONFIG} -o {folder}"
        )
    return folder


def read_stored(folder: Path, sha256: str | None = None) -> StoredModel:
    """Read a folder that `wsizoo.save` wrote.

    Args:
        sha256: digest of the weights that somebody else recorded, checked besides config.json's.

    Raises:
        NotFoundError: no such folder. WeightsError, DigestError: see `StoredModel.from_config`.
    """
    if not (folder / CONFIG).is_file():
        raise NotFoundError(
            f"No model at '{folder}': expected a folder with {CONFIG}, as wsizoo.save writes it, "
            "or a run of wsizoo train. From the Hub: hf:owner/name@COMMIT"
        )
    return StoredModel.from_config(
        folder / CONFIG, lambda file, expected: check_digest(folder / file, expected), sha256
    )


def _from_hub(address: str) -> StoredModel:
    """`hf:owner/name@COMMIT`: config.json states the digest of the weights beside it."""
    repo, _, revision = address.removeprefix(HUB_PREFIX).partition("@")
    if not hub.COMMIT.fullmatch(revision):
        now = hub.hub_head(repo)
        raise NotPinnedError(
            f"'{address}' names no commit, and branches move. main is at this one now; pin it: "
            f"hf:{repo}@{now}"
        )
    config = hub.hub_file(repo, revision, CONFIG)
    return StoredModel.from_config(
        config, lambda file, sha256: hub.hub_file(repo, revision, file, sha256)
    )


def _package_folder(name: str, package: str) -> Path:
    """`"module:folder"`: a folder inside an installed package. Raises WeightsError."""
    module, _, folder = package.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            f"the weights of '{name}' lie in the package '{module}', which is not installed"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / folder
    if not path.is_dir():
        raise WeightsError(
            f"the package '{module}' holds no folder '{folder}' with weights of '{name}'. Install "
            "it again"
        )
    return path


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


def read_fingerprint(record: Any, whose: str) -> Fingerprint:
    """The fingerprint that stored weights state. Raises WeightsError: damaged, or a newer one."""
    try:
        return Fingerprint.from_json(record)
    except DataError as error:
        raise WeightsError(f"{whose}: {error}") from error


def read_config(path: Path) -> dict[str, Any]:
    """config.json, its shape checked. Raises WeightsError."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise WeightsError(
            f"{path} is not valid JSON: {error}. Save or download it again"
        ) from error
    if not isinstance(config, dict) or config.get("library_name") != "wsizoo":
        raise WeightsError(
            f"{path} was not written by wsizoo (no library_name: wsizoo); models of other tools "
            "are not read"
        )
    found = config.get("format")
    if found != FORMAT:
        newer = isinstance(found, int) and found > FORMAT
        raise WeightsError(
            f"{path} has format {found}, this wsizoo reads {FORMAT}"
            + (": pip install --upgrade wsizoo" if newer else "; save or download it again")
        )
    _check_fields(path, config)
    return config


def stored_files(config: Mapping[str, Any]) -> list[str]:
    """Names of all files of a stored model, from its config.json."""
    golden = config.get("golden")
    return [CONFIG, CARD, config["weights"]["file"], *([golden["file"]] if golden else [])]


def _check_fields(path: Path, config: dict[str, Any]) -> None:
    files = [config.get("weights"), *([config["golden"]] if config.get("golden") else [])]
    well_formed = (
        isinstance(config.get("name"), str)
        and isinstance(config.get("spec"), dict)
        and isinstance(config.get("training", {}), dict)
        and isinstance(config.get("trained"), bool)
        and all(isinstance(f, dict) and {"file", "sha256"} <= set(f) for f in files)
    )
    if not well_formed:
        raise WeightsError(
            f"{path} lacks name, spec, trained, or a file with its sha256. Save or download it "
            "again"
        )
    for file in files:
        assert isinstance(file, dict)  # well formed
        if not re.fullmatch(r"[\w.-]+", str(file["file"])):
            raise WeightsError(
                f"{path} names '{file['file']}', expected a file name without a folder"
            )
        check_safetensors(file["file"])
        if not re.fullmatch(r"[0-9a-f]{64}", str(file["sha256"])):
            raise WeightsError(
                f"{path}: the sha256 of {file['file']} is '{file['sha256']}', not 64 hex digits"
            )
