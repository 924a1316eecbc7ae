"""MIL_BASELINE: a csv of `slide_path,label` (or train_, val_, test_ pairs) that lists .pt files."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsizoo.bag import Bag
from wsizoo.errors import DataError
from wsizoo.files import write_csv
from wsizoo.formats.contents import (
    DETAILS,
    ENCODER,
    FRAMES,
    INSTANCES,
    PLACES,
    Contents,
    Format,
    Look,
    Written,
)
from wsizoo.formats.tensors import save_tensor, tensor_contents

TABLE = "dataset.csv"
SPLITS = ("", "train_", "val_", "test_")


def _recognises(look: Look) -> bool:
    return look.kind == "csv" and bool(_pairs(_header(look.path)))


def _header(path: Path) -> list[str]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        return next(csv.reader(file), [])


def _pairs(columns: list[str]) -> list[tuple[str, str]]:
    pairs = [(f"{split}slide_path", f"{split}label") for split in SPLITS]
    return [pair for pair in pairs if set(pair) <= set(columns)]


def _bags(path: Path) -> list[tuple[Path, Mapping[str, Any] | None]]:
    """The files that a table lists, relative to it or absolute, with their labels."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        pairs, lines = _pairs(list(reader.fieldnames or [])), list(reader)
    found: dict[Path, Mapping[str, Any] | None] = {}
    for slide, label in pairs:
        for line in lines:
            if line[slide]:
                found[path.parent / line[slide]] = _label(line[label])
    return list(found.items())


def _label(text: str | None) -> Mapping[str, Any] | None:
    if not text:
        return None
    try:
        return {"label": int(float(text))} if float(text).is_integer() else {"label": float(text)}
    except ValueError:
        return {"label": text}


def _read(path: Path, table: str | None) -> Contents:
    """Contents of the only slide that a table lists, or of a .pt file; see `Format`."""
    if path.suffix != ".csv":
        return tensor_contents(path)
    listed = _bags(path)
    if len(listed) != 1:
        raise DataError(
            f"'{path}' lists {len(listed)} slides, expected one file of features. Give one of "
            "them, or convert them all: wsizoo convert TABLE FOLDER --to wsizoo"
        )
    file, target = listed[0]
    return dataclasses.replace(tensor_contents(file), target=target)


def _targets(folder: Path, slide: str) -> list[Path]:
    return [folder / "pt_files" / f"{slide}.pt"]


def _write(bag: Bag, told: Written, folder: Path) -> Sequence[str]:
    """The tensor of one slide; its coordinates have no place there."""
    save_tensor(_targets(folder, bag.slide_id)[0], bag.features)
    return (PLACES, ENCODER, DETAILS, INSTANCES)


def _finish(folder: Path, written: Mapping[str, Bag]) -> None:
    """The table of all slides in the folder; labels of earlier calls stay."""
    table = folder / TABLE
    labels = {str(file): target for file, target in _bags(table)} if table.is_file() else {}
    rows = {str(file): (target or {}).get("label", "") for file, target in labels.items()}
    for slide, bag in written.items():
        rows[str(_targets(folder, slide)[0])] = (bag.target or {}).get("label", "")
    lines = [{"slide_path": path, "label": rows[path]} for path in sorted(rows)]
    write_csv(table, lines, ["slide_path", "label"])


FORMAT = Format(
    "mil-baseline",
    "MIL_BASELINE: a .csv with slide_path and label",
    _recognises,
    _read,
    _targets,
    _write,
    _bags,
    _finish,
    frames=FRAMES,
)
