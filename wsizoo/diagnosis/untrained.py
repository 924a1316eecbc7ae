"""A model as it would be without training, to compare a trained one with."""

from __future__ import annotations

from pathlib import Path

from wsizoo.model import SlideModel
from wsizoo.registry import Registry, default
from wsizoo.stored import find_stored
from wsizoo.zoo import assemble, build


def build_untrained(
    name: str | Path, *overrides: str, seed: int = 0, registry: Registry | None = None
) -> SlideModel:
    """A model with random weights, in eval mode, that reads the features of the one it is named by.

    Args:
        name: a registry entry, without its head unless an override says one; or what `load` takes
            as trained: its configuration is built anew.
        overrides, seed: as of `build`.

    Raises: as `build`; of what is no registry entry, as `load`.
    """
    registry = registry or default()
    if isinstance(name, str) and (name in registry.models or name in registry.aliases):
        head = [] if any(text.startswith("head") for text in overrides) else ["head=null"]
        return build(name, *overrides, *head, seed=seed, registry=registry)
    stored = find_stored(name, registry)
    model = assemble(stored.entry, stored.spec_with(overrides), registry, seed)
    if not any(text.startswith("encoder") for text in overrides):
        model.requires = stored.fingerprint
    return model
