"""Weights that other people's code published, as models of ours; and models as such weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from wsizoo.card import NOT_STATED
from wsizoo.checkpoints import PICKLED, check_kind, read_content, tensors_of
from wsizoo.errors import DataError, WeightsError
from wsizoo.files import replacing, replacing_folder, sha256_of
from wsizoo.model import SlideModel
from wsizoo.publish import Verified, check_free, save, verify
from wsizoo.registry import Registry, default
from wsizoo.weight_formats import fill, find_layout, published
from wsizoo.weights import write_tensors
from wsizoo.zoo import build

INSIDE = ("state_dict", "model_state_dict", "model")  # of a training checkpoint, first match


def read_weights(
    path: Path | str, format: str, name: str, *overrides: str, registry: Registry | None = None
) -> SlideModel:
    """A model of ours, in eval mode, with weights that other people's code published.

    Args:
        path: .safetensors; or a pickle (.pt, .pth, .bin, .ckpt) of tensors alone, by their names,
            or beside plain data under `state_dict`, `model_state_dict` or `model`.
        format: of a plugin's weight formats, e.g. `"span-official"`.
        name, overrides: as `build`; they describe the model whose weights these are. A file of
            tensors states no licence, and that of an entry without weights is not theirs: it is
            "unknown" unless you say `"licence=GPL-3.0"`.

    Raises:
        WeightsError: a damaged file, a pickle that could run code (it does not), or tensors with
            NaN or infinite values.
        StrictnessError: tensors that do not fit, all of them, and what they tell of the model.
        NotFoundError: no such file, format or model. SpecError: the format is of other models.
    """
    registry, path = registry or default(), Path(path)
    check_kind(path)
    model = build(name, *overrides, registry=registry)
    layout = find_layout(format, model, registry.plugins)
    content = {str(key): value for key, value in read_content(path, INSIDE).items()}
    tensors = tensors_of(path, content)
    _check_finite(path, tensors)
    fill(model, tensors, layout, f"'{path.name}'")
    model.trained = True
    if model.spec.weights is None and not any(one.startswith("licence=") for one in overrides):
        model.spec = dataclasses.replace(model.spec, licence=NOT_STATED)
    model.facts = {"read from": path.name, "its sha256": sha256_of(path), "its format": format}
    return model


def write_weights(
    model: SlideModel,
    path: Path | str,
    format: str,
    *,
    overwrite: bool = False,
    registry: Registry | None = None,
) -> Path:
    """Write a model's tensors as other people's code names them: the inverse of `read_weights`.

    Args:
        path: ends in .pt, .pth, .bin or .ckpt for a pickle, which holds them as that code does
            (`model` of a checkpoint, say); or in .safetensors, for the tensors alone.
        overwrite: replace a file that is there.

    Raises:
        DataError: the file exists, or has another ending.
        NotFoundError: no such format. SpecError: it is of other models.
    """
    path = Path(path)
    layout = find_layout(format, model, (registry or default()).plugins)
    tensors = published(model, layout)
    if path.suffix != ".safetensors" and path.suffix not in PICKLED:
        raise DataError(f"'{path}' must end in .safetensors, {', '.join(sorted(PICKLED))}")
    if path.exists() and not overwrite:
        raise DataError(f"'{path}' exists: overwrite=True, --overwrite replaces it")
    with replacing(path) as temporary:
        if path.suffix in PICKLED:
            own = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
            torch.save(layout.container(own), temporary)
        else:
            write_tensors(temporary, tensors, {})
    return path


def convert_weights(
    path: Path | str,
    format: str,
    name: str,
    *overrides: str,
    out: Path | str,
    overwrite: bool = False,
    registry: Registry | None = None,
) -> Verified:
    """`read_weights`, saved as a folder whose golden bag was replayed before it is there.

    Args:
        out: the folder, as `save` makes it. Others as of `read_weights`.

    Raises: as `read_weights`, `save` and `verify`.
    """
    out = Path(out)
    check_free(out, overwrite)
    model = read_weights(path, format, name, *overrides, registry=registry)
    with replacing_folder(out) as temporary:
        save(model, temporary)
        return verify(temporary, registry)


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise WeightsError where a number is none, also in a tensor that only training reads."""
    odd = sorted(name for name, tensor in tensors.items() if not bool(tensor.isfinite().all()))
    if odd:
        more = f" and {len(odd) - 1} more" if odd[1:] else ""
        raise WeightsError(
            f"'{path}' holds NaN or infinite values in {odd[0]}{more}: its training failed, or it "
            "was damaged. Ask its author for another"
        )
