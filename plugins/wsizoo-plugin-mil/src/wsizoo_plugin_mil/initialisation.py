"""How the published codes begin their weights, where that is not torch's own way."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn
from torch.nn import init


def begin(module: nn.Module, how: str) -> None:
    """Draw the weights of all layers anew, as `how` says.

    Args:
        how: "torch": nothing is done. "xavier": of RRT, MHIM, and CLAM before April 2024: Xavier
            normal, biases 0. "xavier-weights": of ILRA: the same, and biases as torch draws them.
            "he": of MIL-Lab: He uniform, biases 0; 2-d convolutions Xavier uniform. "orthogonal":
            of DSMIL: orthogonal, biases 0, also of 1-d convolutions.
    """
    if how == "torch":
        return
    kinds, draw = WAYS[how]
    for layer in module.modules():
        if not isinstance(layer, kinds):
            continue
        draw(layer)
        if layer.bias is not None and how != "xavier-weights":
            init.zeros_(layer.bias)


def _xavier(layer: nn.Linear | nn.Conv1d | nn.Conv2d) -> None:
    init.xavier_normal_(layer.weight)


def _he(layer: nn.Linear | nn.Conv1d | nn.Conv2d) -> None:
    if isinstance(layer, nn.Linear):
        bound = math.sqrt(6 / layer.in_features)
        init.uniform_(layer.weight, -bound, bound)
    else:
        init.xavier_uniform_(layer.weight)


def _orthogonal(layer: nn.Linear | nn.Conv1d | nn.Conv2d) -> None:
    init.orthogonal_(layer.weight)


Draw = Callable[[nn.Linear | nn.Conv1d | nn.Conv2d], None]
WAYS: dict[str, tuple[tuple[type[nn.Linear | nn.Conv1d | nn.Conv2d], ...], Draw]] = {
    "xavier": ((nn.Linear, nn.Conv2d), _xavier),
    "xavier-weights": ((nn.Linear,), _xavier),
    "he": ((nn.Linear, nn.Conv2d), _he),
    "orthogonal": ((nn.Linear, nn.Conv1d), _orthogonal),
}
