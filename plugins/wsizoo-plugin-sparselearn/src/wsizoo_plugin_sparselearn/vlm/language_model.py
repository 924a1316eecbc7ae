"""The language model that a slide is shown to: which one it is, where it lies, how it is read."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from wsizoo import hub
from wsizoo.encoders.libraries import mend_torchvision
from wsizoo.errors import DataError, DigestError, NotFoundError, PluginError, SpecError
from wsizoo.files import sha256_of
from wsizoo.names import describe
from wsizoo.seeding import READ
from wsizoo.weights import weights_digest

INSTALL = "pip install 'wsizoo-plugin-sparselearn[vlm]'"
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
SUFFIXES = (".json", ".safetensors", ".jinja", ".txt")  # of a repository's files that are read
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FACTS = ("width", "vocabulary", "config_sha256", "tokenizer_sha256", "weights_sha256")


@dataclass
class Base:
    """Which causal language model: the `lm` of an entry.

    Args:
        repo, revision: on the Hub, and its commit (40 hex digits).
        folder: where its files lie on this machine, as `save_pretrained` writes them: config.json,
            tokenizer.json, safetensors. Read in place of the Hub's cache. A model that is saved
            names it only if it has no `repo`.
        download: fetch what the Hub's cache lacks (15 GB of a model of 7 B). Nothing is fetched
            without it, and it is never saved.
        dtype: of its weights and of what it computes: bfloat16, float16 or float32.
        width, vocabulary, config_sha256, tokenizer_sha256, weights_sha256: what it must be: hidden
            width, number of token embeddings, digests of config.json, of tokenizer.json and of its
            tensors by name (however they are dealt out to files). `wsizoo.save` states them all;
            what is stated is checked before a weight is read.
    """

    repo: str | None = None
    revision: str | None = None
    folder: str | None = None
    download: bool = False
    dtype: str = "bfloat16"
    width: int | None = None
    vocabulary: int | None = None
    config_sha256: str | None = None
    tokenizer_sha256: str | None = None
    weights_sha256: str | None = None

    def __post_init__(self) -> None:
        """Raises SpecError: neither repository nor folder, a branch, an unknown dtype."""
        if not (self.repo or self.folder):
            raise SpecError(
                "slidevlm needs a language model: model.lm.folder=DIR, or model.lm.repo=owner/name "
                "and model.lm.revision=COMMIT"
            )
        if self.repo and not hub.COMMIT.fullmatch(self.revision or ""):
            raise SpecError(
                f"slidevlm: revision '{self.revision}' of {self.repo} is not a commit, expected 40 "
                "hex digits (branches move)"
            )
        if self.dtype not in DTYPES:
            raise SpecError(f"slidevlm: lm.dtype is '{self.dtype}', expected {', '.join(DTYPES)}")

    def published(self, found: Base) -> dict[str, Any]:
        """What is recorded of it, as data; `found`: the same with all facts."""
        told = dataclasses.asdict(found)
        del told["download"]
        if self.repo:
            del told["folder"]
        return {name: value for name, value in told.items() if value is not None}


@dataclass
class LanguageModel:
    """A causal language model of transformers and its tokenizer, in this process.

    Args:
        model: any `AutoModelForCausalLM`. tokenizer: a fast one.
        base: which one it is; None: made by hand, and nothing made with it can be saved.
        folder: where it was read.
    """

    model: Any
    tokenizer: Any
    base: Base | None = None
    folder: Path | None = None
    _told: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, base: Base) -> LanguageModel:
        """The one that `base` names, frozen, in eval mode, greedy.

        Raises:
            NotFoundError: its files are not on this machine, or transformers is not.
            DigestError: it is another than `base` states; with both values of all that differs.
        """
        transformers = library("transformers")
        folder = _folder(base)
        check_same(base, facts_of(folder, weights=base.weights_sha256 is not None), folder)
        how = {"local_files_only": True, "trust_remote_code": False}
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **how)
        model, read = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=DTYPES[base.dtype],
            use_safetensors=True,
            output_loading_info=True,
            **how,
        )
        if missing := sorted(read["missing_keys"]):
            raise DataError(
                f"the language model in '{folder}' lacks {len(missing)} tensors, first "
                f"{missing[0]}; they would be random. Download it again"
            )
        # Published defaults sample, or penalise what was said: they change option by option.
        model.generation_config = transformers.GenerationConfig()
        setattr(model, READ, True)
        return cls(model.requires_grad_(False).eval(), tokenizer, base, folder)

    def record(self) -> dict[str, Any]:
        """Which one it is, with all facts, for an entry.

        Raises:
            DataError: it was made by hand.

        Cost: its weights are read once and hashed, some 15 s for 7 B.
        """
        if self.base is None or self.folder is None:
            raise DataError(
                "this SlideVLM holds a language model that was made by hand, and its weights are "
                "never saved with it. Save it as a folder first: save_pretrained of model and "
                "tokenizer, then model.lm.folder=DIR"
            )
        if not self._told:
            self._told = facts_of(self.folder, weights=True)
        return self.base.published(dataclasses.replace(self.base, **self._told))


def library(name: str) -> Any:
    """Import transformers or peft.

    Raises:
        NotFoundError: it is not installed. PluginError: it is, and cannot be imported.
    """
    mend_torchvision()
    try:
        module = importlib.import_module(name)
        _ = getattr(module, "AutoModelForCausalLM", None)  # transformers imports on first use
        return module
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise NotFoundError(f"slidevlm needs {name}, not installed: {INSTALL}") from error
        raise PluginError(
            f"{name} is installed but cannot be imported ({_cause(error)}). A torchvision that "
            "was built for another torch does that: pip uninstall torchvision. Or install anew: "
            f"{INSTALL.replace('install', 'install --upgrade')}"
        ) from error


def _cause(error: BaseException) -> str:
    """The first of a chain of errors: transformers tells only of its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return describe(error)


def facts_of(folder: Path, weights: bool) -> dict[str, Any]:
    """What the language model in a folder is: `FACTS` by name; its weights' digest if asked for."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    names = {"width": ("hidden_size", "n_embd", "d_model"), "vocabulary": ("vocab_size",)}
    told: dict[str, Any] = {
        fact: next((config[key] for key in keys if key in config), None)
        for fact, keys in names.items()
    }
    told["config_sha256"] = sha256_of(folder / CONFIG)
    told["tokenizer_sha256"] = sha256_of(folder / TOKENIZER)
    if weights:
        told["weights_sha256"] = _digest(weight_files(folder))
    return told


def check_same(base: Base, found: dict[str, Any], folder: Path) -> None:
    """Raise DigestError unless what was found in a folder is what `base` states."""
    wrong = [
        f"its {name} is {found.get(name)}, expected {want}"
        for name in FACTS
        if (want := getattr(base, name)) is not None and found.get(name) != want
    ]
    if wrong:
        at = f"{base.repo} at {base.revision}" if base.repo else "the one it was trained with"
        raise DigestError(
            f"'{folder}' holds another language model than this slidevlm's: "
            f"{'; '.join(wrong)}. Nothing of it was used. Give the folder of {at}: "
            "model.lm.folder=DIR"
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a language model, those that are not there too."""
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return [folder / name for name in sorted(set(index["weight_map"].values()))]
    return [folder / WEIGHTS]


def _digest(files: list[Path]) -> str:
    """sha256 of all tensors by name, one in memory at a time."""
    from safetensors import safe_open

    lines = []
    for path in files:
        with safe_open(path, framework="pt") as file:
            lines += [f"{n} {weights_digest({n: file.get_tensor(n)})}" for n in file.keys()]  # noqa: SIM118
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _lacks(folder: Path) -> str:
    """Name of the first file that a language model needs and this folder lacks, or ""."""
    needed = [folder / CONFIG, folder / TOKENIZER]
    if not all(path.is_file() for path in needed):
        return next(path.name for path in needed if not path.is_file())
    return next((path.name for path in weight_files(folder) if not path.is_file()), "")


def _folder(base: Base) -> Path:
    """Where the files of a language model lie. Raises NotFoundError: nowhere here."""
    if base.folder:
        folder = Path(base.folder).expanduser()
        if lacking := _lacks(folder):
            raise NotFoundError(
                f"'{folder}' holds no language model: {lacking} is not there. Expected what "
                "save_pretrained of a model and its tokenizer writes"
            )
        return folder
    assert base.repo and base.revision
    cached = hub.hub_cached(base.repo, base.revision, CONFIG)
    if cached and not _lacks(cached.parent):
        return cached.parent
    if not base.download:
        raise NotFoundError(
            f"the language model {base.repo} at {base.revision[:12]} is not in the Hub's cache on "
            "this machine, and nothing is downloaded unasked. To fetch it: model.lm.download=true; "
            "if you have it: model.lm.folder=DIR"
        )
    names = [n for n in hub.hub_files(base.repo, base.revision) if n.endswith(SUFFIXES)]
    found = [hub.hub_file(base.repo, base.revision, name) for name in names if "/" not in name]
    folder = found[0].parent if found else Path(base.repo)
    if lacking := _lacks(folder):
        raise NotFoundError(
            f"the repository {base.repo} holds no language model that can be read: no {lacking} at "
            f"{base.revision[:12]}"
        )
    return folder
