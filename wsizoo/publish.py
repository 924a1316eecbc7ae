"""save, verify, push: a trained model as a folder that others can trust."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from wsizoo.stored import (
    CARD,
    CONFIG,
    FORMAT,
    GOLDEN,
    UNUSED,
    WEIGHTS,
    find_stored,
    model_folder,
    read_config,
    stored_files,
)
from wsizoo.weights import read_tensors, write_tensors
from wsizoo.zoo import load_stored

log = logging.getLogger(__name__)

GOLDEN_PATCHES = 32
TOLERANCES = {  # rtol, atol on another machine and thread count, by the recorded dtype
    torch.float16: (1e-2, 1e-2),
    torch.bfloat16: (5e-2, 5e-2),
}
FLOAT32 = (1e-4, 1e-5)
SCALARS = ("spacing", "footprint", "mpp")
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

    `model.trained` is recorded: a loop of your own sets it, as `fit` does.

    Args:
        folder: made in one step; nothing is left of an interrupted save.
        golden: bag whose outputs are recorded for `verify`; default 32 seeded random patches.
        training: data, metrics, limits; goes into the model card as it is (JSON values). Default:
            what the model was loaded with.
        overwrite: replace a model that is there already.

    Raises:
        DataError: the folder holds something (else), `training` is not JSON, or the model gives
            NaN on the golden bag.
    """
    folder = Path(folder)
    check_free(folder, overwrite)
    facts = _as_json(model.facts if training is None else training)
    golden = golden if golden is not None else golden_bag(model)
    record = _record(model)
    fingerprint = model.requires.to_json()
    golden_tensors = _golden_tensors(model, golden)
    with replacing_folder(folder) as temporary:
        told = json.dumps({"name": model.name, "spec": record, "fingerprint": fingerprint})
        carried = {UNUSED + name: tensor for name, tensor in model.unused.items()}
        tensors = {**model.inference_state(), **carried}
        write_tensors(temporary / WEIGHTS, tensors, {"wsizoo": told})
        write_tensors(temporary / GOLDEN, golden_tensors, _golden_metadata(golden))
        config = {
            "library_name": "wsizoo",
            "format": FORMAT,
            "name": model.name,
            "spec": record,
            "fingerprint": fingerprint,
            "weights": {"file": WEIGHTS, "sha256": sha256_of(temporary / WEIGHTS)},
            "golden": {"file": GOLDEN, "sha256": sha256_of(temporary / GOLDEN)},
            "trained": model.trained,
            "training": facts,
            **_disclosed(model),
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
    stored = find_stored(name, registry)
    if stored.golden is None:
        raise WeightsError(
            f"'{name}' carries no golden bag to replay: publish it as wsizoo.save writes it"
        )
    recorded, metadata = read_tensors(stored.golden)
    then = {key: value for key, value in recorded.items() if key.startswith("out.")}
    if not then or "in.features" not in recorded:
        raise WeightsError(f"'{name}': {stored.golden} records no bag or no outputs: save it again")
    now = _outputs(load_stored(stored, registry), _read_golden(recorded, metadata))
    return Verified(
        stored.name, {key[4:]: _deviation(name, key[4:], then[key], now.get(key)) for key in then}
    )


def _deviation(name: str | Path, output: str, then: Tensor, now: Tensor | None) -> float:
    """Largest absolute difference of an output from the recorded one. Raises WeightsError."""
    if now is None or now.shape != then.shape:
        raise WeightsError(
            f"'{name}': the model no longer gives {output} {tuple(then.shape)} for the golden bag; "
            "this code does not compute what the weights were published with"
        )
    rtol, atol = TOLERANCES.get(then.dtype, FLOAT32)
    off = float((now.double() - then.double()).abs().max())
    if not torch.allclose(now.double(), then.double(), rtol, atol):
        raise WeightsError(
            f"'{name}': {output} of the golden bag is off by {off:.3g} from the recorded one; "
            "this code does not compute what the weights were published with. Compare the versions "
            "of wsizoo and the plugin with the publisher's: wsizoo plugins"
        )
    return off


@contextmanager
def as_published(
    source: SlideModel | Path | str,
    *,
    name: str | None = None,
    licence: str | None = None,
    untrained: bool = False,
    registry: Registry | None = None,
) -> Iterator[Path]:
    """What `push` publishes, verified, as a folder for as long as it is looked at.

    Args, Raises: as `push`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if isinstance(source, SlideModel):
            source = save(source, Path(scratch) / "saved")
        folder = model_folder(Path(source))
        stored = verify(folder, registry).name
        config = read_config(folder / CONFIG)
        if not (config["trained"] or untrained):
            raise DataError(
                f"'{stored}' was saved with trained=False, so it was not published. After a "
                "training loop of your own: model.trained = True, then save. To publish random "
                "weights: wsizoo.push(..., untrained=True), wsizoo push --untrained"
            )
        for held in config.get("discloses", ()):
            log.warning("the weights of '%s' hold %s: they are published with them", stored, held)
        prepared = Path(scratch) / "published"
        prepared.mkdir()
        for file in stored_files(config):
            shutil.copyfile(folder / file, prepared / file)
        if name or licence:
            if (folder / CARD).read_text(encoding="utf-8") != model_card(config):
                raise DataError(
                    f"'{folder / CARD}' was edited, and a name or licence would write it anew. "
                    "State them there, or save the model again"
                )
            spec = {**config["spec"], "licence": licence or config["spec"]["licence"]}
            config |= {"name": name or stored, "spec": spec}
            (prepared / CARD).write_text(model_card(config), encoding="utf-8")
            write_json(prepared / CONFIG, config)
        yield prepared


def push(
    source: SlideModel | Path | str,
    repo: str,
    *,
    name: str | None = None,
    licence: str | None = None,
    private: bool = True,
    message: str = "Add model",
    untrained: bool = False,
    registry: Registry | None = None,
) -> str:
    """Publish a model (or a folder of `save`, or a run of `wsizoo train`) on the Hub.

    The folder is verified first, and only the files that `save` wrote are published. What the
    weights hold of the training slides, as kNN's do, is logged as a warning. Returns the pinned
    address.

    Args:
        name, licence: of the model and its weights in config.json and on the card, in place of
            those that were saved. A run's model has no licence until somebody states one.
        untrained: publish random weights too.

    Raises:
        DataError: the model was never trained, or the run is not finished.
        GatedError, RepoNotFoundError, OfflineError, WeightsError: as the Hub answers; also when
        the repository is there and public, and `private` was asked for.
    """
    with as_published(
        source, name=name, licence=licence, untrained=untrained, registry=registry
    ) as folder:
        return f"hf:{repo}@{hub_upload(folder, repo, private, message)}"


def check_free(folder: Path, overwrite: bool) -> None:
    """Raise DataError unless nothing but a saved model would be replaced, and that on purpose."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        own = stored_files(read_config(folder / CONFIG))
    except WeightsError as error:
        raise DataError(
            f"'{folder}' exists and is no saved model; choose another folder"
        ) from error
    if not overwrite:
        raise DataError(f"'{folder}' holds a model already: save(..., overwrite=True) replaces it")
    others = sorted(path.name for path in folder.iterdir() if path.name not in own)
    if others:
        raise DataError(
            f"'{folder}' holds {', '.join(others)} beside a model, which would be lost; move them, "
            "or choose another folder"
        )


def _record(model: SlideModel) -> dict[str, Any]:
    """The entry as it is saved: what a whole model says its arguments came to be, laid over it."""
    record = model_record(model.spec)
    record.pop("weights", None)
    record.pop("aliases", None)
    settled = getattr(model.whole, "published_params", None)
    return record if settled is None else {**record, "model": {**record["model"], **settled()}}


def _disclosed(model: SlideModel) -> dict[str, list[str]]:
    """What its parts say that trained weights hold of the training slides, if they do."""
    parts = (model.selector, model.aggregator, model.head, model.whole)
    told = [str(held) for part in parts if (held := getattr(part, "discloses", None))]
    return {"discloses": told} if told and model.trained else {}


def _as_json(training: Mapping[str, Any]) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(json.dumps(dict(training), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"training={dict(training)!r} cannot be written as JSON: {error}. Give text, finite "
            "numbers, lists and mappings"
        ) from error
    return facts


def _golden_tensors(model: SlideModel, bag: Bag) -> dict[str, Tensor]:
    tensors = {"in.features": bag.features}
    if bag.coords is not None:
        tensors["in.coords"] = bag.coords
    outputs = _outputs(model, bag)
    bad = [name[4:] for name, value in outputs.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise DataError(
            f"'{model.name}' gives NaN or infinite {', '.join(bad)} for the golden bag, so it was "
            "not saved. Train it again, or give a bag it can read: save(..., golden=bag)"
        )
    return {**tensors, **outputs}


def _golden_metadata(bag: Bag) -> dict[str, str]:
    return {"bag": json.dumps({name: getattr(bag, name) for name in SCALARS})}


def _read_golden(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Bag:
    try:
        told = dict(json.loads(metadata.get("bag", "{}")))
    except (TypeError, ValueError) as error:
        raise WeightsError(f"the golden bag holds damaged metadata 'bag': {error}") from error
    scalars = {name: told.get(name) for name in SCALARS}
    return Bag(tensors["in.features"], tensors.get("in.coords"), slide_id="golden", **scalars)


def _outputs(model: SlideModel, bag: Bag) -> dict[str, Tensor]:
    """Outputs of eval mode by `out.name`; every module's mode is left as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    with torch.no_grad():
        output = model(bag)
    for module in training:
        module.training = True
    values = {name: getattr(output, name) for name in REPLAYED}
    return {f"out.{name}": value.cpu() for name, value in values.items() if value is not None}
