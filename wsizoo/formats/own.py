"""wsizoo's own files: features through `wsizoo.slides.store`, and embeddings of slides."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.files import replacing
from wsizoo.fingerprint import Fingerprint
from wsizoo.formats.contents import (
    FRAMES,
    IN_FRAME,
    INSTANCES,
    LABEL,
    LEVEL0,
    UNREADABLE,
    Contents,
    Format,
    Look,
    Written,
)
from wsizoo.formats.hdf5 import dataset, opened, rows
from wsizoo.slides import store

NAME = "wsizoo"


def _recognises(look: Look) -> bool:
    return look.kind == "hdf5" and NAME in look.attributes


def _read(path: Path, table: str | None) -> Contents:
    """Contents; see `Format`. Features are checked against their digest when they are read."""
    header = store.read_header(path)
    with opened(path) as file:
        coords = file["coords"][()] if "coords" in file else None
        shape, dtype = file["features"].shape, str(file["features"].dtype)

    source = header.facts.mpp_source or ""
    frame = source.removeprefix(IN_FRAME) if source.startswith(IN_FRAME) else LEVEL0

    def load() -> Tensor:
        return store.read_bag(path).features

    return Contents(
        (path,),
        shape,
        dtype,
        load,
        coords,
        frame=frame,
        unit=None if frame == LEVEL0 else header.mpp,
        step=header.spacing,
        footprint=header.footprint,
        mpp=header.mpp,
        encoder=header.fingerprint,
        facts=header.facts,
    )


def _targets(folder: Path, slide: str) -> list[Path]:
    return [folder / f"{slide}.h5"]


def _write(bag: Bag, told: Written, folder: Path) -> Sequence[str]:
    """One file; of a file of wsizoo's own everything goes along, byte for byte if it can."""
    (path,) = _targets(folder, bag.slide_id)
    if told.source is None:
        store.write_bag(bag, path, facts=told.facts)
        return (LABEL, INSTANCES)
    source = told.source.path
    header, same = store.check_content(source), _same_places(bag, told.source)
    if same and _stated(bag, told.facts) == _stated(header, header.facts):
        with replacing(path) as temporary:
            shutil.copyfile(source, temporary)
        return (LABEL, INSTANCES)
    asked = store.read_asked(source)
    with store.writing(
        path,
        bag,
        facts=told.facts,
        thumbnail=store.read_thumbnail(source),
        asked=asked if same else None,
        made=store.read_made(source),
    ) as write:
        write(bag.features)
    return (LABEL, INSTANCES, *(() if same or asked is None else (UNREADABLE,)))


def _same_places(bag: Bag, source: Contents) -> bool:
    """Whether the bag's patches are those of the file, where they were."""
    if bag.coords is None or source.coords is None:
        return bag.coords is None and source.coords is None
    return torch.equal(bag.coords.cpu(), torch.from_numpy(source.coords))


def _stated(whose: Any, facts: Any) -> tuple[Any, ...]:
    """What the header of a file states of a bag, or of itself."""
    made = whose.encoder or Fingerprint() if isinstance(whose, Bag) else whose.fingerprint
    return facts, made, whose.spacing, whose.footprint, whose.mpp


FORMAT = Format(
    NAME,
    "wsizoo: .h5 of extract",
    _recognises,
    _read,
    _targets,
    _write,
    frames=FRAMES,
    pixels=True,
)


def _is_embedding(look: Look) -> bool:
    return look.kind == "hdf5" and store.EMBEDDING in look.attributes


def _read_embedding(path: Path, table: str | None) -> Contents:
    """Contents of a file of `wsizoo embed`; its encoder is that of the model."""
    with opened(path) as file:
        told = json.loads(file.attrs[store.EMBEDDING])
        features = dataset(file, "features", path)
        shape = (1, *features.shape)
        return Contents(
            (path,),
            shape,
            str(features.dtype),
            rows(path, "features", shape),
            encoder=Fingerprint.from_json(told.get("requires", {})),
            attributes={name: told[name] for name in ("model", "forced") if name in told},
            embedding=True,
        )


EMBEDDED = Format(
    "wsizoo-embedding", "wsizoo: .h5 of embed, one vector a slide", _is_embedding, _read_embedding
)
