"""Vim's names for our tensors, and published Vim weights as a start for the layers they fit.

    python -m wsizoo_plugin_pixelmamba.vim VIM.pth OUT MODEL [KEY=VALUE ...]

OUT is a folder of `wsizoo.save`, which `init:` of a run takes. `vim=VIM.pth` does the same to a
pre-training.

Source: https://github.com/hustvl/Vim at dd0358a. That Vim can seed Pixel-Mamba is ours, not the
paper's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import wsizoo
from wsizoo import SlideModel, WeightLayout
from wsizoo.checkpoints import check_kind, read_content
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
def seed_from_vim(model: SlideModel, tensors: Mapping[str, Any]) -> list[int]:
    """Copy the layers of a published Vim into the layers of the same number and width.

    Vim-tiny has width 192, small 384, base 768, all with 24 layers; layers narrower than that have
    no donor. Vim halves the sum of both directions: unless `divide_out` is set, its `out_proj` is
    halved instead, which is the same. The donor of the last width also gives `norm_f`, and the head
    where it has as many classes. All is checked before any tensor is changed.

    Args:
        model: of `pixel-mamba`. tensors: of the file, by Vim's names (in a checkpoint of the
            published ones they lie under "model").

    Returns:
        Numbers of the layers that were filled, from 0.

    Raises:
        SpecError: a model that is none of Vim's blocks. WeightsError: no Vim, one of no width of
        this model, or a damaged one.
    """
    network = _network(model)
    width = _width(tensors)
    found = [
        i for i, own in enumerate(network.settings.widths) if own == width and _has(tensors, i)
    ]
    if not found:
        raise WeightsError(
            f"a Vim of width {width} has no layer in common with '{model.name}', whose widths are "
            f"{sorted(set(network.settings.widths))}: 192 is vim-tiny's, 384 small's, 768 base's"
        )
    donors = {}
    for i in found:
        for name, own in network.layers[i].named_parameters():
            donors[f"layers.{i}.{name}"] = own
    if width == network.settings.out_dim:
        donors |= _end(model, network, tensors)
    _check(donors, tensors)
    for name, own in donors.items():
        halved = name.endswith("out_proj.weight") and not network.settings.divide_out
        own.copy_(tensors[name] / 2 if halved else tensors[name])
    return found


def _width(tensors: Mapping[str, Any]) -> int:
    named = [tensors.get(name) for name in ("norm_f.weight", "layers.0.mixer.A_b_log")]
    if not all(isinstance(tensor, Tensor) and tensor.ndim for tensor in named):
        raise WeightsError(
            "these are no weights of Vim: no 'norm_f.weight' or 'layers.0.mixer.A_b_log'. A "
            "published checkpoint holds them under 'model'"
        )
    return len(tensors["norm_f.weight"])


def _has(tensors: Mapping[str, Any], layer: int) -> bool:
    return any(name.startswith(f"layers.{layer}.") for name in tensors)


def _end(model: SlideModel, network: Network, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Own tensors after the last layer, by Vim's names: the norm, and the head if it fits."""
    found = {} if network.norm_f is None else {"norm_f.weight": network.norm_f.weight}
    linear, head = model.head and model.head.linear, tensors.get("head.weight")
    if linear is not None and head is not None and head.shape == linear.weight.shape:
        found |= {"head.weight": linear.weight, "head.bias": linear.bias}
    return found


def _check(donors: Mapping[str, Tensor], tensors: Mapping[str, Any]) -> None:
    """Raise WeightsError unless every donor is there, whole and finite."""
    for name, own in donors.items():
        given = tensors.get(name)
        if not isinstance(given, Tensor) or given.shape != own.shape:
            what = "is missing" if given is None else f"is {tuple(getattr(given, 'shape', ()))}"
            raise WeightsError(
                f"the weights of Vim are damaged: '{name}' {what}, expected {tuple(own.shape)}. "
                "Nothing was copied"
            )
        if not given.isfinite().all():
            raise WeightsError(
                f"the weights of Vim are damaged: '{name}' holds NaN or infinite values. Nothing "
                "was copied"
            )


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


def seed_from_file(model: SlideModel, path: Path | str) -> list[int]:
    """`seed_from_vim` with a published checkpoint. Raises NotFoundError: no file; and as it."""
    check_kind(Path(path))
    return seed_from_vim(model, read_content(Path(path), inside=("model",)))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "python -m wsizoo_plugin_pixelmamba.vim",
        description="Start a Pixel-Mamba from the layers of a published Vim.",
        epilog="Example: python -m wsizoo_plugin_pixelmamba.vim vim_tiny.pth seeded "
        "pixel-mamba-6m head.classes=[normal,tumour]",
    )
    parser.add_argument("vim", help="checkpoint of Vim")
    parser.add_argument("out", help="folder of the new model")
    parser.add_argument("model", help="name of a Pixel-Mamba")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as of wsizoo.build")
    given = parser.parse_args()
    try:
        model = wsizoo.build(given.model, *given.overrides)
        filled = seed_from_file(model, given.vim)
        model.facts = {"begun from": f"layers {[i + 1 for i in filled]} of {Path(given.vim).name}"}
        wsizoo.save(model, given.out)
    except wsizoo.WsizooError as error:
        sys.exit(str(error))
    sys.stdout.write(f"{given.out}: layers {', '.join(str(i + 1) for i in filled)} are Vim's\n")


if __name__ == "__main__":
    main()
