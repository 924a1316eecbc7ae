"""TRIDENT: `features_<encoder>/<slide>.h5`, the format that other tools read most.

Source: `IO.coords_to_h5`, `WSI.extract_patch_features` and `read_coords` of TRIDENT. What it calls
20x is a bucket of magnifications, not 0.5 um/px; so um/px are only known where mpp is given.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsizoo.bag import Bag
from wsizoo.errors import DataError
from wsizoo.files import replacing
from wsizoo.fingerprint import Fingerprint
from wsizoo.formats.contents import INSTANCES, LABEL, Contents, Format, Look, Written, overlaps
from wsizoo.formats.encoders import fingerprint_of, name_in
from wsizoo.formats.hdf5 import coordinates, dataset, number, opened, plain, rows
from wsizoo.slides.facts import SlideFacts

MARKS = {"patch_size_level0", "target_magnification", "level0_magnification"}
FINGERPRINT = "wsizoo_fingerprint"  # root attribute (JSON) that TRIDENT does not look at
EMBEDDINGS = "slide_features_"  # begins the name of its folders of slide embeddings
CHUNK = 1024  # rows; TRIDENT's own (1, D) are ten times slower to read


def _recognises(look: Look) -> bool:
    named = "features" in look.shapes or "coords" in look.shapes
    marked = MARKS & look.coords_attributes or "encoder" in look.features_attributes
    return look.kind == "hdf5" and named and bool(marked) and "wsizoo" not in look.attributes


def _read(path: Path, table: str | None) -> Contents:
    """Contents; see `Format`. Raises DataError."""
    with opened(path) as file:
        if "features" not in file:
            raise DataError(
                f"'{path}' holds TRIDENT's coordinates and no features. Give the file of the same "
                "name in features_<encoder>/"
            )
        features, coords = dataset(file, "features", path), coordinates(file, "coords", path)
        told = plain(file["coords"].attrs) if "coords" in file else {}
        if features.ndim == 1 and features.shape != (0,):
            return _embedding(path, features)
        encoder = plain(features.attrs).get("encoder")
        made = _whole(file, _made(encoder, told, number(told, "patch_size", path), path), encoder)
        shape = vectors(features.shape, coords, path)
        size, edge = number(told, "patch_size", path), number(told, "patch_size_level0", path)
        overlap = float(told.get("overlap") or 0)
        edge = number(told, "footprint_level0_float", path) or edge
        step = edge * (1 - overlap / size) if edge and size else edge
        return Contents(
            (path,),
            shape,
            str(features.dtype),
            rows(path, "features", shape),
            coords,
            step=number(told, "spacing_level0_float", path) or step,
            footprint=edge,
            mpp=number(told, "mpp_level0", path),
            encoder=made,
            facts=_facts(path, told, overlap / size if size else 0.0),
            attributes=told if encoder is None else {**told, "encoder": encoder},
        )


def _embedding(path: Path, features: Any) -> Contents:
    """Contents of a file of `slide_features_<model>/`, which has the coordinates of patches too."""
    folder, shape = path.parent.name, (1, features.shape[0])
    model = folder.removeprefix(EMBEDDINGS) if folder.startswith(EMBEDDINGS) else None
    load = rows(path, "features", shape)
    told = {"model": model} if model else {}
    return Contents((path,), shape, str(features.dtype), load, attributes=told, embedding=True)


def vectors(shape: tuple[int, ...], coords: Any, path: Path) -> tuple[int, int]:
    """(N, D) of features: older files have (1, N, D), those of an empty slide (0,).

    Raises:
        DataError: one vector for the slide, or another number of axes.
    """
    if shape == (0,):
        return 0, 0
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) == 1:
        raise DataError(
            f"'{path}' holds the embedding of a slide ({shape[0]} numbers), expected features of "
            "its patches (N, D)"
        )
    if len(shape) != 2:
        raise DataError(f"'{path}': features are {shape}, expected (N, D), one row a patch")
    return shape[0], shape[1]


def _made(encoder: Any, told: dict[str, Any], size: float | None, path: Path) -> Fingerprint:
    magnification = number(told, "target_magnification", path)
    known: dict[str, Any] = {"patch_size": int(size) if size else None}
    known["mpp"] = number(told, "mpp_target", path) or (
        10 / magnification if magnification else None
    )
    if not isinstance(encoder, str) or encoder == "None":
        return Fingerprint(**known)
    return fingerprint_of("trident", encoder, **known)


def _whole(file: Any, made: Fingerprint, encoder: Any) -> Fingerprint:
    """With all that wsizoo knew when it wrote the file, where that is still of its encoder."""
    if FINGERPRINT not in file.attrs:
        return made
    kept = Fingerprint.from_json(json.loads(file.attrs[FINGERPRINT]))
    if encoder != name_in("trident", kept):
        return made
    known = {**made.stated(), **kept.stated(), "declared": kept.declared}
    return Fingerprint(**known)


def _facts(path: Path, told: dict[str, Any], overlap: float) -> SlideFacts:
    edges = (told.get(f"level0_{edge}") for edge in ("width", "height"))
    width, height = (int(edge) if isinstance(edge, int | float) else None for edge in edges)
    source = "file" if "mpp_level0" in told else None
    return SlideFacts(path.stem, width, height, mpp_source=source, overlap=overlap)


def _targets(folder: Path, slide: str) -> list[Path]:
    return [folder / f"{slide}.h5"]


def _write(bag: Bag, told: Written, folder: Path) -> Sequence[str]:
    """One file as TRIDENT's own, but in larger chunks. Raises DataError: its scale is unknown."""
    import h5py

    (path,) = _targets(folder, bag.slide_id)
    attributes = _attributes(bag, told, folder)
    features = bag.features.cpu().numpy()
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        chunks = (min(CHUNK, max(1, len(bag))), bag.dim)
        stored = file.create_dataset(
            "features", data=features, chunks=chunks, maxshape=(None, bag.dim)
        )
        made = bag.encoder or Fingerprint()
        theirs = told.attributes.get("encoder")
        theirs = theirs or (name_in("trident", made) if made.encoder else "None")
        if made.encoder is not None:
            file.attrs[FINGERPRINT] = json.dumps(made.to_json(), sort_keys=True)
        stored.attrs.update(name=bag.slide_id, savetodir=str(folder), encoder=theirs)
        if bag.coords is not None:
            coords = bag.coords.cpu().numpy()
            placed = file.create_dataset(
                "coords", data=coords, chunks=(chunks[0], 2), maxshape=(None, 2)
            )
            placed.attrs.update(attributes)
    return (LABEL, INSTANCES)


def _attributes(bag: Bag, told: Written, folder: Path) -> dict[str, Any]:
    """Those that `read_coords` needs, whole numbers, and the exact ones beside."""
    made, facts = bag.encoder or Fingerprint(), told.facts
    edge = bag.footprint
    size = told.attributes.get("patch_size") or made.patch_size
    patch_mpp = made.mpp or (bag.mpp * edge / size if bag.mpp and edge and size else None)
    target = 10 / patch_mpp if patch_mpp else None
    source = target * edge / float(size) if target and edge and size else None
    derived = {
        "patch_size": size,
        "patch_size_level0": edge,
        "level0_magnification": 10 / bag.mpp if bag.mpp else source,
        "target_magnification": target,
    }
    known = {name: told.attributes.get(name) or value for name, value in derived.items()}
    missing = [name for name, value in known.items() if value is None]
    if missing and bag.coords is not None:
        raise DataError(
            f"slide '{bag.slide_id}': TRIDENT's files state {', '.join(missing)}, which is not "
            f"known of it. {_advice(bag, size)}"
        )
    share = 1 - bag.spacing / edge if overlaps(bag) and bag.spacing and edge else facts.overlap
    known["overlap"] = told.attributes.get("overlap") or share * float(size or 0)
    whole = {name: round(float(value)) for name, value in known.items() if value is not None}
    if facts.width and facts.height:
        whole |= {"level0_width": facts.width, "level0_height": facts.height}
    exact = {
        "mpp_level0": bag.mpp,
        "mpp_target": made.mpp,
        "footprint_level0_float": bag.footprint,
        "spacing_level0_float": bag.spacing,
    }
    named = {"name": bag.slide_id, "savetodir": str(folder)}
    return {**whole, **named, **{name: value for name, value in exact.items() if value}}


def _advice(bag: Bag, size: Any) -> str:
    """What to type for what `_attributes` does not know."""
    scale = "" if bag.mpp else "State the slide's um per px: --mpp 0.25. "
    if size and bag.footprint:
        return scale.rstrip(". ")
    name = (bag.encoder or Fingerprint()).encoder or "ENCODER"
    footprint = "" if bag.footprint else ", footprint=512.0"
    return (
        f"{scale}The patches' size can be stated in Python: wsizoo.write_bag(bag.replace(encoder="
        f"wsizoo.Fingerprint('{name}', patch_size=256, mpp=0.5){footprint}), 'FILE.h5'); then "
        "convert that"
    )


FORMAT = Format(
    "trident",
    "TRIDENT: .h5 with features, and coords with patch_size_level0",
    _recognises,
    _read,
    _targets,
    _write,
)
