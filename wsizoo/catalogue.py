"""What is in the zoo: names by pattern, and everything that is known of one. Imports no torch."""

from __future__ import annotations

import fnmatch
from typing import Any

from wsizoo.registry import Entry, Registry, default


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
        commercial: True: only where model and encoder allow commercial use.
    """
    registry = registry or default()
    names = []
    for name, entry in registry.models.items():
        keep = (
            fnmatch.fnmatch(name, pattern)
            and aggregator in (None, entry.part("aggregator") or entry.part("model"))
            and encoder in (None, entry.part("encoder"))
            and weights in (None, registry.has_weights(entry))
            and commercial in (None, commercial is None or _commercial(registry, entry))
        )
        names += [name] if keep else []
    return sorted(names)


def show(name: str, registry: Registry | None = None) -> dict[str, Any]:
    """Everything that is known of a model, as plain data.

    Beside the entry's own fields: `name`, `installed` (its plugin works here), `weights_state`
    (released, not pinned, or none), `commercial`, and the encoder's catalogue entry.

    Raises:
        NotFoundError, SpecError.
    """
    from wsizoo.spec import model_record

    registry = registry or default()
    entry = registry.model(name)
    spec = registry.model_spec(entry.name)
    part, wanted = ("aggregator", spec.aggregator) if spec.aggregator else ("model", spec.model)
    offered = {(c.kind, c.name) for c in registry.plugins.components()}
    encoder = registry.encoders.get(entry.part("encoder") or "")
    weights = spec.weights
    complete = weights and (weights.package or (weights.revision and weights.sha256))
    state = (
        "released" if complete else "not pinned" if registry.has_weights(entry) else "none released"
    )
    return {
        "name": entry.name,
        **model_record(spec),
        "installed": (part, (wanted or {})["name"]) in offered,
        "weights_state": state,
        "commercial": _commercial(registry, entry),
        "encoder_facts": dict(encoder.record) if encoder else None,
    }


def _commercial(registry: Registry, entry: Entry) -> bool:
    from wsizoo.spec import allows_commercial_use

    encoder = registry.encoders.get(entry.part("encoder") or "")
    licences = [entry.record.get("licence")] + ([encoder.record.get("licence")] if encoder else [])
    return allows_commercial_use(licences)
