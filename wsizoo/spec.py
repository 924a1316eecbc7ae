"""Registry entries as checked structures: what a model or an encoder is, in data.

Nothing is computed: interpolations (`${...}`) are refused.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

from wsizoo.errors import SpecError
from wsizoo.hookspecs import Kind
from wsizoo.names import check_distribution
from wsizoo.overrides import in_full, lay_over
from wsizoo.structured import MISSING, structured

PARTS: tuple[Kind, ...] = ("selector", "aggregator", "head", "model")


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
    `format`: of a file in `repo` that other people's code wrote, e.g. `"mil-lab"`.
    """

    repo: str | None = None
    revision: str | None = None
    file: str = "model.safetensors"
    sha256: str | None = None
    package: str | None = None
    format: str | None = None


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
        return list((self.head or {}).get("classes") or ())


class Described(Protocol):
    """What every kind of entry states."""

    summary: str
    licence: str
    source: str
    plugin: str | None


Spec = TypeVar("Spec", bound=Described)


def model_spec(name: str, record: Any, overrides: Sequence[str] = ()) -> ModelSpec:
    """Check one model entry, with command-line overrides laid over it.

    Args:
        record: the entry as read from YAML or JSON.
        overrides: `"head.classes=[normal,tumour]"`, `"aggregator=mean"` (replaces the part),
            `"aggregator.dropout=0.1"` (changes one argument), `"head=null"`.

    Raises:
        SpecError: an unknown key (the near one named), a wrong type, a missing field.
    """
    whose = f"model '{name}'"
    content = {key: in_full(key, value) for key, value in _mapping(whose, record).items()}
    for text in overrides:
        lay_over(whose, content, text)
    spec = checked(ModelSpec, whose, content)
    _check_parts(whose, spec)
    if spec.weights:
        if spec.weights.repo and spec.weights.package:
            raise SpecError(f"{whose}: weights lie in a repo or in a package, not in both")
        check_pinned(f"{whose}: weights", spec.weights)
    return spec


def model_record(spec: Described) -> dict[str, Any]:
    """The entry as plain data for config.json, without what is null or empty."""
    entry: Any = spec
    return {key: value for key, value in asdict(entry).items() if value not in (None, [], {})}


def _mapping(whose: str, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise SpecError(f"{whose}: expected a mapping of fields, got {record!r}")
    return copy.deepcopy(record)


def checked(schema: type[Spec], whose: str, record: Any) -> Spec:
    """A record as this dataclass, its fields checked, omegaconf's errors turned into SpecError."""
    content = _mapping(whose, record)
    if "${" in str(content):
        raise SpecError(f"{whose} holds '${{': registry entries are data, nothing is computed")
    for key in (*PARTS, "encoder", "weights"):
        if not isinstance(content.get(key), dict | None):
            raise SpecError(f"{whose}: {key} is {content[key]!r}, expected {{name: ..., ...}}")
    spec = structured(schema, whose, content)
    check_distribution(whose, spec.plugin)
    for required in ("summary", "licence", "source"):
        if not getattr(spec, required).strip():
            raise SpecError(f"{whose} states no {required}")
    return spec


def _check_parts(whose: str, spec: ModelSpec) -> None:
    if (spec.aggregator is None) == (spec.model is None):
        raise SpecError(f"{whose} needs either an aggregator or a model (a whole model)")
    if spec.model is not None and (spec.selector is not None or spec.head is not None):
        raise SpecError(f"{whose} is a whole model and takes neither a selector nor a head")
    for part in PARTS:
        value = getattr(spec, part)
        if value is not None and not isinstance(value.get("name"), str):
            raise SpecError(f"{whose}: {part} {value} has no name, expected {part}: {{name: ...}}")
    classes = (spec.head or {}).get("classes")
    if not isinstance(classes, list | None):
        raise SpecError(
            f"{whose}: head.classes is {classes!r}, expected names: head.classes=[normal,tumour]"
        )
    for name in classes or ():
        if not isinstance(name, str):
            raise SpecError(f"{whose}: head.classes holds {name!r}, expected text: quote it")
    if len(set(spec.classes)) != len(spec.classes):
        raise SpecError(f"{whose}: head.classes {classes} names one class twice")


def check_pinned(whose: str, spec: Any) -> None:
    """Raise SpecError unless `revision` and `sha256`, where stated, are whole ones."""
    if spec.revision and not re.fullmatch(r"[0-9a-f]{40}", spec.revision):
        raise SpecError(
            f"{whose}: revision '{spec.revision}' is not a commit, expected 40 hex digits "
            "(branches move)"
        )
    if spec.sha256 and not re.fullmatch(r"[0-9a-f]{64}", spec.sha256):
        raise SpecError(f"{whose}: sha256 '{spec.sha256}' is not 64 hex digits")
