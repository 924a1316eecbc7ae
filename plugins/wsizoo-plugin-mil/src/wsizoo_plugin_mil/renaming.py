"""What the weight formats of this plugin share: a table of names, and pieces of stacked tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from wsizoo import SlideModel, WeightLayout
from wsizoo.errors import SpecError


class Renaming(WeightLayout):
    """A layout that differs from ours in names.

    A name is that of a layer and `.weight` or another ending, or that of a bare parameter.
    """

    whose: str  # the published code, in errors
    inside: ClassVar[str | None] = None  # where in its checkpoints the tensors are

    def names(self, model: SlideModel) -> Mapping[str, str]:
        """Our names of layers and bare parameters, and theirs."""
        raise NotImplementedError

    def stacks(self, model: SlideModel) -> Mapping[str, int]:
        """Our layers that are several of theirs, one below the other, and the rows of each.

        Theirs have their number after the name, `classifiers.0.weight`, or where it has `{}`.
        """
        return {}

    def made_up(self, model: SlideModel) -> Mapping[str, Tensor]:
        """Tensors that the published code holds and never reads, as they may be written."""
        return {}

    def write(self, model: SlideModel) -> dict[str, Tensor]:
        found = dict(self.made_up(model))
        for ours, tensor in model.inference_state().items():
            theirs = self._published(ours, model)
            parts = [tensor] if len(theirs) == 1 else tensor.chunk(len(theirs))
            found.update(zip(theirs, parts, strict=True))
        return found

    def read(self, tensors: Mapping[str, Tensor], model: SlideModel) -> dict[str, Tensor]:
        return {
            ours: torch.cat([tensors[name] for name in theirs])
            if theirs[1:]
            else tensors[theirs[0]]
            for ours in model.inference_state()
            if (theirs := self._published(ours, model))
        }

    def container(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        return {self.inside: tensors} if self.inside else tensors

    def unused(self, model: SlideModel) -> list[str]:
        return list(self.made_up(model))

    def _published(self, ours: str, model: SlideModel) -> list[str]:
        """Their names of one of our tensors: several for a stacked one."""
        names = self.names(model)
        layer, _, ending = ours.rpartition(".")
        if ours in names:
            return [names[ours]]
        if layer not in names:
            raise SpecError(
                f"{self.whose} has no place for {ours}; '{model.name}' is of another configuration "
                "than any that it publishes"
            )
        rows = self.stacks(model).get(layer)
        if rows is None:
            return [f"{names[layer]}.{ending}"]
        count = len(model.inference_state()[ours]) // rows
        place = names[layer] if "{}" in names[layer] else f"{names[layer]}.{{}}"
        return [f"{place.format(i)}.{ending}" for i in range(count)]


def width(tensors: Mapping[str, Tensor], name: str, axis: int) -> int | None:
    """How long this axis of a published matrix is; None where there is no such matrix."""
    tensor = tensors.get(name)
    return None if tensor is None or tensor.ndim < 2 else int(tensor.shape[axis])


def told(**values: object) -> list[str]:
    """Overrides of what is known; `__` stands for a dot."""
    return [
        f"{key.replace('__', '.')}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in values.items()
        if value is not None
    ]


def packed_projection(ours: str, theirs: str) -> dict[str, str]:
    """Queries, keys and values as torch's attention names them."""
    return {f"{ours}.qkv.{n}": f"{theirs}.in_proj_{n}" for n in ("weight", "bias")}
