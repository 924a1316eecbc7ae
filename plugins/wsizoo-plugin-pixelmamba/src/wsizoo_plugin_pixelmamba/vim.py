"""Vim's names for our tensors, and published Vim weights as a start for the layers they fit.

Source: https://github.com/hustvl/Vim at dd0358a. That Vim can seed Pixel-Mamba is ours, not the
paper's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from wsizoo import SlideModel, WeightLayout
from wsizoo.errors import SpecError, WeightsError
from wsizoo_plugin_pixelmamba.model import PixelMamba
from wsizoo_plugin_pixelmamba.network import Network

NAMES = {"aggregator.network.": "", "head.linear.": "head."}  # ours -> Vim's
NEEDED = {"share_conv": False, "norm": "rms", "d_state": 16, "d_conv": 4, "expand": 2}


class VimOfficial(WeightLayout):
    """A whole Pixel-Mamba under the names that Vim's code gives, as `layers.0.mixer.A_b_log`."""

    def write(self, model: SlideModel) -> dict[str, Tensor]:
        return {_theirs(name): tensor for name, tensor in model.inference_state().items()}

    def read(self, tensors: Mapping[str, Tensor], model: SlideModel) -> dict[str, Tensor]:
        return {name: tensors[_theirs(name)] for name in model.inference_state()}


def _theirs(name: str) -> str:
    for ours, theirs in NAMES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


@torch.no_grad()
def seed_from_vim(model: SlideModel, tensors: Mapping[str, Tensor]) -> list[int]:
    """Copy the layers of a published Vim into the layers of the same number and width.

    Vim-tiny has width 192, small 384, base 768, all with 24 layers; layers narrower than that have
    no donor. Vim halves the sum of both directions: unless `divide_out` is set, its `out_proj` is
    halved instead, which is the same. The donor of the last width also gives `norm_f`, and the head
    where it has as many classes.

    Args:
        model: of `pixel-mamba`. tensors: of the file, by Vim's names (in a checkpoint of the
            published ones they lie under "model").

    Returns:
        Numbers of the layers that were filled, from 0.

    Raises:
        SpecError: a model that is none of Vim's blocks. WeightsError: no Vim, or of no width of
        this model.
    """
    network = _network(model)
    if "norm_f.weight" not in tensors or "layers.0.mixer.A_b_log" not in tensors:
        raise WeightsError(
            "these are no weights of Vim: no 'norm_f.weight' or 'layers.0.mixer.A_b_log'. A "
            "published checkpoint holds them under 'model'"
        )
    width, settings = len(tensors["norm_f.weight"]), network.settings
    found = []
    for i, own in enumerate(settings.widths):
        name = f"layers.{i}."
        given = {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}
        if own == width and given:
            if not settings.divide_out:
                given["mixer.out_proj.weight"] = given["mixer.out_proj.weight"] / 2
            network.layers[i].load_state_dict(given)
            found.append(i)
    if not found:
        raise WeightsError(
            f"a Vim of width {width} has no layer in common with '{model.name}', whose widths are "
            f"{sorted(set(settings.widths))}: 192 is vim-tiny's, 384 small's, 768 base's"
        )
    if width == settings.out_dim:
        _fill_end(model, network, tensors)
    return found


def _fill_end(model: SlideModel, network: Network, tensors: Mapping[str, Tensor]) -> None:
    """The final norm, and the head where it has as many classes."""
    if network.norm_f is not None:
        network.norm_f.weight.copy_(tensors["norm_f.weight"])
    linear, head = model.head and model.head.linear, tensors.get("head.weight")
    if linear is not None and head is not None and head.shape == linear.weight.shape:
        linear.weight.copy_(head)
        linear.bias.copy_(tensors["head.bias"])


def _network(model: SlideModel) -> Network:
    part = model.aggregator
    if not isinstance(part, PixelMamba):
        raise SpecError(f"'{model.name}' is no pixel-mamba, so Vim's layers do not fit it")
    for name, value in NEEDED.items():
        if getattr(part.settings, name) != value:
            raise SpecError(
                f"'{model.name}' has {name}={getattr(part.settings, name)}, Vim's blocks have "
                f"{value}: build it with aggregator.{name}={str(value).lower()}"
            )
    return part.network
