"""save, verify, push: a trained model as a folder that others can trust."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.card import model_card
from wsizoo.errors import DataError, WeightsError
from wsizoo.files import replacing_folder, sha256_of, write_json
from wsizoo.hub import hub_upload
from wsizoo.model import SlideModel
from wsizoo.registry import Registry, default
from wsizoo.spec import model_record
from wsizoo.stored import CARD, CONFIG, FORMAT, GOLDEN, WEIGHTS
from wsizoo.weights import read_tensors, write_tensors
from wsizoo.zoo import find_stored, load

GOLDEN_PATCHES = 32
RTOL, ATOL = 1e-4, 1e-5  # float32 on another machine and thread count
REPLAYED = ("logits", "instance_logits", "hazards", "risk", "value", "embedding", "scores")


def save(
    model: SlideModel,
    folder: Path | str,
    *,
    golden: Bag | None = None,
    training: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model as config.json, model.safetensors, README.md and a small golden bag.

    Args:
        folder: made in one step; nothing is left of an interrupted save.
        golden: bag whose outputs are recorded for `verify`; default 32 seeded random patches.
        training: data, metrics, limits; goes into the model card as it is (JSON values).
        overwrite: replace a model that is there already.

    Raises:
        DataError: the folder holds something (else).
    """
    folder = Path(folder)
    _check_free(folder, overwrite)
    golden = golden if golden is not None else golden_bag(model)
    record = model_record(model.spec)
    record.pop("weights", None)
    record.pop("aliases", None)
    fingerprint = model.requires.to_json()
    with replacing_folder(folder) as temporary:
        told = json.dumps({"name": model.name, "spec": record, "fingerprint": fingerprint})
        write_tensors(temporary / WEIGHTS, model.inference_state(), {"wsizoo": told})
        write_tensors(temporary / GOLDEN, _golden_tensors(model, golden), _golden_metadata(golden))
        config = {
            "library_name": "wsizoo",
            "format": FORMAT,
            "name": model.name,
            "spec": record,
            "fingerprint": fingerprint,
            "weights": {"file": WEIGHTS, "sha256": sha256_of(temporary / WEIGHTS)},
            "golden": {"file": GOLDEN, "sha256": sha256_of(temporary / GOLDEN)},
            "training": dict(training or {}),
        }
        (temporary / CARD).write_text(model_card(config), encoding="utf-8")
        write_json(temporary / CONFIG, config)
    return folder


def golden_bag(model: SlideModel, n: int = GOLDEN_PATCHES) -> Bag:
    """Seeded random patches on a grid with holes, of the kind the model reads."""
    generator = torch.Generator().manual_seed(0)
    if model.reads == "pixels":
        n = 2
        size = model.requires.patch_size or 224
        features = torch.randint(0, 256, (n, 3, size, size), generator=generator).to(torch.uint8)
    else:
        features = torch.randn(n, model.in_dim, generator=generator)
    cells = torch.randperm(2 * n, generator=generator)[:n].sort().values  # (n,)
    coords = torch.stack([cells % 8, cells // 8], 1) * 224  # (n, 2)
    return Bag(features, coords, spacing=224.0, slide_id="golden")


@dataclass(frozen=True)
class Verified:
    """What `verify` found of one model: the deviation of each replayed output from the record."""

    name: str
    outputs: dict[str, float]


def verify(name: str | Path, registry: Registry | None = None) -> Verified:
    """Check digests, load strictly, and replay the golden bag.

    Raises:
        WeightsError: no golden bag, or an output that differs from the recorded one; and as `load`.
    """
    registry = registry or default()
    stored = find_stored(str(name), registry)
    if stored.golden is None:
        raise WeightsError(
            f"'{name}' carries no golden bag to replay: save it again with wsizoo.save"
        )
    recorded, metadata = read_tensors(stored.golden)
    bag = _read_golden(recorded, metadata)
    model = load(name, registry=registry)
    now = _outputs(model, bag)
    outputs = {}
    for key, then in recorded.items():
        if not key.startswith("out."):
            continue
        value = now.get(key)
        if value is None or value.shape != then.shape:
            raise WeightsError(f"'{name}': the model no longer gives {key[4:]} {tuple(then.shape)}")
        if not torch.allclose(value, then, RTOL, ATOL):
            off = float((value - then).abs().max())
            raise WeightsError(
                f"'{name}': {key[4:]} of the golden bag is off by {off:.3g} from the recorded one; "
                "this code does not compute what the weights were published with"
            )
        outputs[key[4:]] = float((value - then).abs().max())
    return Verified(stored.name, outputs)


def push(
    source: SlideModel | Path | str, repo: str, *, private: bool = True, message: str = "Add model"
) -> str:
    """Publish a model (or a folder of `save`) on the Hub; returns the pinned address.

    Raises:
        GatedError, RepoNotFoundError, OfflineError, WeightsError: as the Hub answers.
    """
    if isinstance(source, SlideModel):
        with tempfile.TemporaryDirectory() as scratch:
            return push(
                save(source, Path(scratch) / "model"), repo, private=private, message=message
            )
    verify(str(Path(source).absolute()))
    return f"hf:{repo}@{hub_upload(Path(source), repo, private, message)}"


def _check_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / CONFIG).is_file():
        raise DataError(f"'{folder}' exists and is no saved model; choose another folder")
    if not overwrite:
        raise DataError(f"'{folder}' holds a model already: save(..., overwrite=True) replaces it")


def _golden_tensors(model: SlideModel, bag: Bag) -> dict[str, Tensor]:
    tensors = {"in.features": bag.features}
    if bag.coords is not None:
        tensors["in.coords"] = bag.coords
    return {**tensors, **_outputs(model, bag)}


def _golden_metadata(bag: Bag) -> dict[str, str]:
    return {"spacing": json.dumps(bag.spacing), "footprint": json.dumps(bag.footprint)}


def _read_golden(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Bag:
    return Bag(
        tensors["in.features"],
        tensors.get("in.coords"),
        spacing=json.loads(metadata.get("spacing", "null")),
        footprint=json.loads(metadata.get("footprint", "null")),
        slide_id="golden",
    )


def _outputs(model: SlideModel, bag: Bag) -> dict[str, Tensor]:
    """Outputs of eval mode by `out.name`."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        output = model(bag)
    model.train(was_training)
    values = {name: getattr(output, name) for name in REPLAYED}
    return {f"out.{name}": value.cpu() for name, value in values.items() if value is not None}
