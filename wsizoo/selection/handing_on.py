"""What a selector hands on meets the other parts of a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from wsizoo.errors import PluginError
from wsizoo.interfaces import Aggregated, Aggregator, Selected


def check_selected(selected: Selected, n: int, whose: str) -> None:
    """Raise PluginError unless a selector hands on as many patches of n as it names, and weighs."""
    named = n if selected.index is None else len(selected.index)
    if named != len(selected.bag):
        raise PluginError(
            f"the selector of '{whose}' names {named} patches and hands on {len(selected.bag)}: "
            "index=None means all"
        )
    weights = selected.weights
    if weights is not None and weights.shape != (named,):
        raise PluginError(
            f"the selector of '{whose}' hands on {named} patches and weights {tuple(weights.shape)}"
            f", expected ({named},)"
        )


def aggregate(selected: Selected, aggregator: Aggregator) -> Aggregated:
    """What the aggregator makes of the patches, each counting by its weight where there are any."""
    bag, weights = selected.bag, selected.weights
    if weights is None:
        found: Aggregated = aggregator(bag)
    elif aggregator.takes_weights:
        found = aggregator(bag, weights)
    else:
        found = aggregator(bag.replace(features=bag.features * weights.to(bag.features)[:, None]))
    return found


@contextmanager
def resting(parts: Iterable[nn.Module | None]) -> Iterator[None]:
    """Inside, these parts are in eval mode and learn nothing; gradients pass through them."""
    modules = [module for part in parts if part is not None for module in part.modules()]
    modes = [module.training for module in modules]
    learning = [p for module in modules for p in module.parameters(False) if p.requires_grad]
    for module in modules:
        module.training = False
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for parameter in learning:
            parameter.requires_grad_(True)
