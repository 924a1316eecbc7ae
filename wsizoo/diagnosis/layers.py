"""The attention that a model computes on a slide, layer by layer, whatever model it is."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsizoo.bag import Bag
from wsizoo.errors import DataError
from wsizoo.model import SlideModel
from wsizoo.ops import attention_weights, grid_attention, listening, use_backend

Floats = NDArray[np.float64]
Cells = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Layer:
    """One attention of a model on one slide; tokens are in raster order of their cells.

    Args:
        name: of the module that computes it, as `model.get_submodule` takes it; a second one of
            the same module ends in ", 2".
        weights: (H, n, n) float64 [head, query, key].
        cells: (n, 2) int64, (x, y). allowed: (H, n, n), pairs that may attend, whatever the scores.
        unit: edge of a cell in patches: 2 where 2 x 2 patches are one token.
    """

    name: str
    weights: Floats
    cells: Cells
    allowed: Flags
    unit: int


def attention_layers(model: SlideModel, bag: Bag) -> list[Layer]:
    """Run a model on a slide and listen to `wsizoo.ops.grid_attention`; [] where it calls none.

    Raises:
        DataError: attention that is not finite. What the model raises on this bag.

    Cost: the reference's, H n^2 a layer.
    """
    with torch.inference_mode(), use_backend("reference"), _naming(model) as named:
        with listening(grid_attention) as calls:
            named.calls = calls
            model(bag)
        named.claim()
    return [_layer(name, call, bag) for name, call in zip(named.names(), calls, strict=True)]


class _Names:
    """Which module each call comes from: the innermost one under way."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.under_way = [""]
        self.found: list[str] = []

    def claim(self) -> None:
        """Calls since the last claim were made by the module under way."""
        self.found += [self.under_way[-1]] * (len(self.calls) - len(self.found))

    def names(self) -> list[str]:
        seen: Counter[str] = Counter()
        told = []
        for name in self.found:
            seen[name] += 1
            told.append(name if seen[name] == 1 else f"{name}, {seen[name]}")
        return told


@contextlib.contextmanager
def _naming(model: nn.Module) -> Iterator[_Names]:
    names, hooks = _Names(), []

    def enter(name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            names.claim()
            names.under_way.append(name)

        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        names.claim()
        names.under_way.pop()

    for name, module in model.named_modules():
        hooks += [module.register_forward_pre_hook(enter(name))]
        hooks += [module.register_forward_hook(leave)]
    try:
        yield names
    finally:
        for handle in hooks:
            handle.remove()


def _layer(name: str, call: dict[str, Any], bag: Bag) -> Layer:
    neighbourhood = call["neighbourhood"]
    q, k = call["q"].double(), call["k"].double()
    cells = neighbourhood.cells.cpu().numpy()
    order = np.lexsort((cells[:, 0], cells[:, 1]))
    at = np.ix_(np.arange(q.shape[1]), order, order)
    weights = _array(attention_weights(q, k, neighbourhood, call["bias"]))[at]
    if not np.isfinite(weights).all():
        raise DataError(f"slide '{bag.slide_id}': the attention of '{name}' is not finite")
    equal = torch.zeros_like(q)  # scores that leave it to neighbourhood and bias
    allowed = _array(attention_weights(equal, equal, neighbourhood, call["bias"]))[at] > 0
    return Layer(name, weights, cells[order], allowed, _unit(cells, bag))


def _unit(cells: Cells, bag: Bag) -> int:
    """Edge of a cell in patches: the power of 2 nearest to the ratio of what both grids span."""
    if len(cells) == 0 or bag.coords is None or bag.spacing is None:
        return 1
    patches = int(np.ptp(bag.grid().cpu().numpy(), axis=0).max()) + 1
    spanned = int(np.ptp(cells, axis=0).max()) + 1
    return int(2 ** max(0, round(np.log2(patches / spanned))))


def _array(tensor: Tensor) -> Floats:
    found: Floats = tensor.detach().cpu().numpy()
    return found
