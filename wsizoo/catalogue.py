"""What is in the zoo: names by pattern, and everything that is known of one.

Imports no torch, but for what is known of a part.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib.util
import inspect
from typing import TYPE_CHECKING, Any

from wsizoo.errors import NotFoundError
from wsizoo.hookspecs import Component
from wsizoo.registry import Entry, Registry, default
from wsizoo.targets import options_of

if TYPE_CHECKING:
    from wsizoo.spec import ModelSpec

LIBRARIES = ("timm", "transformers")  # components of the core that need them, called like them
COMMERCIAL_LICENCES = frozenset(
    ("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0")
)


def list_models(
    pattern: str = "*",
    *,
    aggregator: str | None = None,
    encoder: str | None = None,
    weights: bool | None = None,
    commercial: bool | None = None,
    registry: Registry | None = None,
) -> list[str]:
    """Names of models, sorted; nothing heavy is imported.

    Args:
        pattern: with wildcards, e.g. `"span*"`.
        aggregator: only models with this aggregator (or whole model).
        encoder: only models that read this encoder's features.
        weights: True: only with released weights; False: only without.
        commercial: True: only where model and encoder allow commercial use; False: only others.
    """
    registry = registry or default()
    return sorted(
        name
        for name, entry in registry.models.items()
        if fnmatch.fnmatchcase(name, pattern)
        and aggregator in (None, entry.part("aggregator") or entry.part("model"))
        and encoder in (None, entry.part("encoder"))
        and weights in (None, registry.has_weights(entry))
        and commercial in (None, allows_commercial_use(entry, registry))
    )


def show(name: str, registry: Registry | None = None) -> dict[str, Any]:
    """Everything that is known of a model, as plain data.

    Beside the entry's own fields: `name`, `installed` (all its parts are here), `weights_state`
    (released, not pinned, or none released), `commercial`, and the encoder's catalogue entry.

    An encoder of the catalogue, where no model is called so: its fields, `runs_here`, `why_not`,
    `weights_state` and `commercial`. Another part, such as an aggregator: `kind`, `from`,
    `summary`, `source`, `options` with their defaults, `description` (its docstring) and `models`.

    Raises:
        NotFoundError, SpecError.
    """
    from wsizoo.spec import PARTS, model_record

    registry = registry or default()
    if registry.is_encoder(name):
        return _show_encoder(name, registry)
    try:
        entry = registry.model(name)
    except NotFoundError as error:
        if part := next((p for p in registry.plugins.components() if p.name == name), None):
            return _show_part(part, registry)
        near = difflib.get_close_matches(name, registry.encoders, n=1)
        raise NotFoundError(f"{error}. Or the encoder '{near[0]}'?" if near else error) from error
    spec = registry.model_spec(entry.name)
    offered = {(c.kind, c.name) for c in registry.plugins.components()}
    used = {(part, getattr(spec, part)["name"]) for part in PARTS if getattr(spec, part)}
    encoder = registry.encoders.get(entry.part("encoder") or "")
    record, weights = model_record(spec), spec.weights
    own = {key: value for key, value in (record["encoder"] or {}).items() if value is not None}
    complete = weights and (weights.package or (weights.revision and weights.sha256))
    state = (
        "released" if complete else "not pinned" if registry.has_weights(entry) else "none released"
    )
    return {
        "name": entry.name,
        **record,
        "build": build_call(entry.name, spec),
        "installed": used <= offered,
        "weights_state": state,
        "commercial": allows_commercial_use(entry, registry),
        "encoder_facts": {k: own.get(k, v) for k, v in encoder.record.items()} if encoder else None,
    }


def _show_encoder(name: str, registry: Registry) -> dict[str, Any]:
    from wsizoo.spec import model_record

    entry = registry.encoders[name]
    spec = registry.encoder_spec(name)
    why_not = why_not_here(entry, registry)
    state = "pinned" if spec.revision and spec.sha256 else "not pinned" if spec.repo else "no repo"
    return {
        "name": name,
        "kind": "encoder",
        **model_record(spec),
        "runs_here": why_not is None,
        "why_not": why_not,
        "weights_state": state if entry.record.get("component") in LIBRARIES else None,
        "commercial": entry.record.get("licence") in COMMERCIAL_LICENCES,
    }


def _show_part(part: Component, registry: Registry) -> dict[str, Any]:
    made = registry.plugins.load(part.kind, part.name)
    described = (*_told(made), *_told(getattr(made, "options_type", object)))
    return {
        "name": part.name,
        "kind": part.kind,
        "from": registry.plugins.owner(part).distribution,
        "summary": part.summary,
        "source": part.source,
        "models": [n for n, e in sorted(registry.models.items()) if e.part(part.kind) == part.name],
        "options": options_of(made),
        "description": "\n\n".join(described),
    }


def _told(made: type) -> list[str]:
    """Docstrings of a class and of the bases that it is explained by: up to plain ones."""
    own = [each for each in inspect.getmro(made) if each.__module__.partition(".")[0] != "torch"]
    told = [each for each in own if each.__module__ not in ("wsizoo.interfaces", "builtins", "abc")]
    return [inspect.cleandoc(each.__doc__) for each in told if each.__doc__]


def why_not_here(entry: Entry, registry: Registry) -> str | None:
    """Why an encoder's network does not run on this machine, or None; weights are not looked at."""
    component = entry.record.get("component")
    if component is None:
        return str(entry.record.get("refused") or "only features of it are read")
    if component not in {each.name for each in registry.plugins.components("encoder")}:
        return f"pip install {entry.record.get('plugin') or 'the plugin that holds ' + component}"
    if component in LIBRARIES and importlib.util.find_spec(component) is None:
        return 'pip install "wsizoo[encoders]"'
    return None


def build_call(name: str, spec: ModelSpec) -> str:
    """What to type for this model with random weights."""
    head = spec.head or {}
    per_class = head.get("name") in ("classification", "segmentation")
    classes = ", 'head.classes=[normal,tumour]'" if per_class and not spec.classes else ""
    return f"wsizoo.build('{name}'{classes})"


def allows_commercial_use(entry: Entry, registry: Registry) -> bool:
    """True when the licences of model and encoder are known to allow it; unknown ones are a no."""
    encoder = registry.encoders.get(entry.part("encoder") or "")
    return all(
        e.record.get("licence") in COMMERCIAL_LICENCES for e in (entry, encoder) if e is not None
    )
