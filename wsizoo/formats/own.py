"""wsizoo's own files, through `wsizoo.slides.store`."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.formats.contents import IN_FRAME, LEVEL0, Contents, Format, Look, Written
from wsizoo.formats.hdf5 import opened
from wsizoo.slides.store import EMBEDDING, read_bag, read_header, write_bag


def _recognises(look: Look) -> bool:
    return look.kind == "hdf5" and bool({"wsizoo", EMBEDDING} & look.attributes)


def _read(path: Path, table: str | None) -> Contents:
    """Contents; see `Format`. Features are checked against their digest when they are read."""
    header = read_header(path)
    with opened(path) as file:
        coords = file["coords"][()] if "coords" in file else None
        shape, dtype = file["features"].shape, str(file["features"].dtype)

    source = header.facts.mpp_source or ""
    frame = source.removeprefix(IN_FRAME) if source.startswith(IN_FRAME) else LEVEL0

    def load() -> Tensor:
        return read_bag(path).features

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


def _write(bag: Bag, told: Written, folder: Path) -> None:
    write_bag(bag, _targets(folder, bag.slide_id)[0], facts=told.facts)


FORMAT = Format("wsizoo", "wsizoo: .h5 of extract", _recognises, _read, _targets, _write)
