"""The attention of a trained ABMIL as a scorer."""

from __future__ import annotations

from collections.abc import Iterable

import torch

import wsizoo
from wsizoo import Bag
from wsizoo.errors import SpecError
from wsizoo_plugin_sparselearn.scorers import Scorer


def copy_attention(name: str, scorer: Scorer, slides: Iterable[Bag]) -> None:
    """Fill a `Gated` scorer with the embedding and attention of a trained model's ABMIL.

    Args:
        name: a model, its folder or a run. slides: of the training, whose features must be those
            that the model requires.

    Raises:
        SpecError: its aggregator is no ABMIL, or one of other widths (what to type is said).
        FingerprintError: it was trained on features of another encoder.
    """
    model = wsizoo.load(name)
    for bag in slides:
        model.check_bag(bag)
        break
    found = {} if model.aggregator is None else model.aggregator.state_dict()
    if not {"embed.0.weight", "value.weight", "score.weight"} <= set(found):
        part = model.spec.aggregator or model.spec.model or {}
        raise SpecError(
            f"selector.abmil is '{name}', whose aggregator is {part.get('name')}, expected an abmil"
        )
    if "standard.mean" in found:
        raise SpecError(
            f"selector.abmil is '{name}', which standardises features, expected an abmil trained "
            "with aggregator.standardise=false"
        )
    own = scorer.state_dict()
    if {key: t.shape for key, t in own.items()} != {key: t.shape for key, t in found.items()}:
        raise SpecError(f"selector.abmil is '{name}', of other widths. {_told(found)}")
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(found[key])


def _told(found: dict[str, torch.Tensor]) -> str:
    layers = [key for key in found if key.startswith("embed.") and key.endswith("weight")]
    widths = ",".join(str(len(found[key])) for key in layers)
    hidden = len(found["value.weight"])
    plain = "" if "gate.weight" in found else "; it has no gate, expected aggregator.gated=true"
    return f"Type: selector.embedding=[{widths}] selector.hidden={hidden}{plain}"
