"""Registry entries as checked structures: what a model or an encoder is, in data.

The only module that imports omegaconf. Nothing is computed: interpolations (`${...}`) are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wsizoo.errors import SpecError
from wsizoo.plugins import suggest

PARTS = ("selector", "aggregator", "head", "model")
COMMERCIAL_LICENCES = frozenset(
    ("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0")
)


@dataclass
class EncoderUse:
    """The encoder a model reads, and what it fixes of it (None: not compared).

    `dim` is needed only for an encoder that is in no catalogue.
    """

    name: str = MISSING
    dim: int | None = None
    mpp: float | None = None
    patch_size: int | None = None
    pooling: str | None = None
    preprocessing: str | None = None


@dataclass
class WeightsSpec:
    """Where trained weights lie, pinned. Null: not known from a source one can name.

    Either `repo` (+ `revision`, 40 hex digits; `file`; `sha256`) on the Hub, or `package`
    (`"distribution_module:folder"`), a folder of `wsizoo.save` inside an installed package.
    """

    repo: str | None = None
    revision: str | None = None
    file: str = "model.safetensors"
    sha256: str | None = None
    package: str | None = None


@dataclass
class ReportedResult:
    """A published number, as its source states it."""

    dataset: str = MISSING
    metric: str = MISSING
    value: str = MISSING
    source: str = MISSING


@dataclass
class ModelSpec:
    """One model: the composition, its weights, its licence and its source.

    `selector`, `aggregator`, `head` and `model` are mappings with `name` and the constructor's
    keyword arguments. `model` (a whole model) excludes the other three.
    """

    summary: str = MISSING
    licence: str = MISSING
    source: str = MISSING
    plugin: str | None = None
    encoder: EncoderUse | None = None
    selector: dict[str, Any] | None = None
    aggregator: dict[str, Any] | None = None
    head: dict[str, Any] | None = None
    model: dict[str, Any] | None = None
    weights: WeightsSpec | None = None
    aliases: list[str] = field(default_factory=list)
    results: list[ReportedResult] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in (self.head or {}).get("classes", [])]


@dataclass
class EncoderSpec:
    """One encoder of the catalogue: its facts, and the component that builds it (if any).

    Args:
        component: name of the encoder component that computes it; null: only its files are read.
        dim: width D of a feature vector; null for `pixels`.
        mpp: microns per pixel of its input; patch_size: its input's edge in pixels at that scale.
        repo: Hub repository of its weights.
    """

    summary: str = MISSING
    licence: str = MISSING
    source: str = MISSING
    component: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    plugin: str | None = None
    dim: int | None = None
    mpp: float | None = None
    patch_size: int | None = None
    pooling: str | None = None
    preprocessing: str | None = None
    repo: str | None = None
    revision: str | None = None
    sha256: str | None = None
    gated: bool = False


Spec = TypeVar("Spec", ModelSpec, EncoderSpec)


def model_spec(name: str, record: Any, overrides: Sequence[str] = ()) -> ModelSpec:
    """Check one model entry, with command-line overrides laid over it.

    Args:
        record: the entry as read from YAML or JSON.
        overrides: `"head.classes=[normal,tumour]"`, `"aggregator=mean"` (replaces the part),
            `"aggregator.dropout=0.1"` (changes one argument).

    Raises:
        SpecError: an unknown key (the near one named), a wrong type, a missing field.
    """
    config = OmegaConf.create(_normalised(name, record))
    for part, value in _parsed(name, overrides):
        if part in (*PARTS, "encoder") and not isinstance(value, dict):
            config[part] = None if value is None else {"name": str(value)}
        else:
            config = _merge(name, config, {part: value})
    spec = _checked(ModelSpec, f"model '{name}'", config)
    _check_model(name, spec)
    return spec


def encoder_spec(name: str, record: Any) -> EncoderSpec:
    """Check one encoder of the catalogue. Raises SpecError."""
    return _checked(EncoderSpec, f"encoder '{name}'", OmegaConf.create(_plain(name, record)))


def model_record(spec: ModelSpec) -> dict[str, Any]:
    """The entry as plain data for config.json, without what is null or empty."""
    record = OmegaConf.to_container(OmegaConf.structured(spec))
    assert isinstance(record, dict)
    return {str(key): value for key, value in record.items() if value not in (None, [], {})}


def allows_commercial_use(licences: Iterable[str | None]) -> bool:
    """True when every licence is one that is known to allow it; unknown ones count as no."""
    return all(licence in COMMERCIAL_LICENCES for licence in licences)


def _normalised(name: str, record: Any) -> dict[str, Any]:
    """Parts given as a bare name become `{name: ...}`."""
    record = _plain(name, record)
    for part in (*PARTS, "encoder"):
        if isinstance(record.get(part), str):
            record[part] = {"name": record[part]}
    return record


def _plain(name: str, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise SpecError(f"'{name}': expected a mapping of fields, got {record!r}")
    if "${" in str(record):
        raise SpecError(f"'{name}' holds '${{': registry entries are data, nothing is computed")
    return dict(record)


def _parsed(name: str, overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """`"a.b=1"` -> `("a", {"b": 1})`, in order."""
    parsed = []
    for text in overrides:
        if not re.match(r"^[\w.]+=", text):
            raise SpecError(
                f"'{name}': cannot read the override '{text}', expected KEY=VALUE, for instance "
                "head.classes=[normal,tumour]"
            )
        _plain(name, {"override": text})
        try:
            tree = OmegaConf.to_container(OmegaConf.from_dotlist([text]))
        except Exception as error:
            raise SpecError(f"'{name}': cannot read the override '{text}': {error}") from error
        assert isinstance(tree, dict)
        parsed += [(str(key), value) for key, value in tree.items()]
    return parsed


def _merge(name: str, config: Any, change: dict[str, Any]) -> Any:
    for part in (*PARTS, "weights"):
        if part in change and config.get(part) is None:
            raise SpecError(
                f"'{name}' has no {part}, so {part}.{next(iter(change[part]))} changes nothing. "
                f"Give it one first: {part}=NAME"
            )
    try:
        return OmegaConf.merge(config, change)
    except OmegaConfBaseException as error:
        raise SpecError(f"'{name}': the override {change} does not fit: {error}") from error


def _checked(schema: type[Spec], whose: str, config: DictConfig) -> Spec:
    """Merge into the structured schema; turn omegaconf's errors into ours."""
    known = [f.name for f in fields(schema)]
    for key in config:
        if key not in known:
            raise SpecError(
                f"{whose}: unknown field {str(key)!r}. {suggest(str(key), known, 'Fields: ')}"
            )
    try:
        spec = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), config))
    except OmegaConfBaseException as error:
        where = f" (field '{error.full_key}')" if error.full_key else ""
        raise SpecError(f"{whose}{where}: {str(error).splitlines()[0]}") from error
    assert isinstance(spec, schema)
    return spec


def _check_model(name: str, spec: ModelSpec) -> None:
    if (spec.aggregator is None) == (spec.model is None):
        raise SpecError(f"model '{name}' needs either an aggregator or a model (a whole model)")
    for part in PARTS:
        value = getattr(spec, part)
        if value is not None and not isinstance(value.get("name"), str):
            raise SpecError(
                f"model '{name}': {part} {value} has no name, expected {part}: {{name: ...}}"
            )
    classes = spec.classes
    if len(set(classes)) != len(classes):
        raise SpecError(f"model '{name}': head.classes {classes} names one class twice")
    weights = spec.weights
    if weights and weights.revision and not re.fullmatch(r"[0-9a-f]{40}", weights.revision):
        raise SpecError(
            f"model '{name}': weights.revision '{weights.revision}' is not a commit, expected 40 "
            f"hex digits (branches move). Find it: wsizoo pin {name}"
        )
    if weights and weights.sha256 and not re.fullmatch(r"[0-9a-f]{64}", weights.sha256):
        raise SpecError(f"model '{name}': weights.sha256 '{weights.sha256}' is not 64 hex digits")
