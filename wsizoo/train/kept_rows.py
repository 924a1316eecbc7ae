"""Rows of predictions as they come, so that an evaluation that was interrupted goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch

import wsizoo
from wsizoo.errors import DataError
from wsizoo.files import write_text
from wsizoo.model import SlideModel
from wsizoo.prediction_files import Row
from wsizoo.train.cohort import Cohort
from wsizoo.train.samples import Sample

FILE = ".predicted.jsonl"


@dataclass
class KeptRows:
    """What a slide was predicted as, and how long it took, s, by part and slide.

    A row counts as long as its files have the size and time that they had.
    """

    cohort: Cohort
    file: IO[bytes]
    found: Mapping[tuple[str, str], Mapping[str, Any]]

    def row(self, part: str, sample: Sample) -> tuple[Row, float] | None:
        """Of a sample, if it is there."""
        told = self.found.get((part, sample.name))
        if told is None or told["files"] != self._files(sample):
            return None
        return told["row"], told["seconds"]

    def add(self, part: str, sample: Sample, row: Row, seconds: float) -> None:
        """Keep a row, so that a kill after this leaves it. Raises DataError: no room for it."""
        told = {"part": part, "files": self._files(sample), "row": row, "seconds": seconds}
        try:
            self.file.write(json.dumps({"sample": sample.name, **told}).encode() + b"\n")
        except OSError as error:
            raise DataError(f"'{self.file.name}' cannot be written: {error}") from error

    def _files(self, sample: Sample) -> list[list[int]]:
        records = [self.cohort.records[row] for row in sample.rows]
        stats = [path.stat() for r in records for path in (r.file, r.instances) if path]
        return [[stat.st_size, stat.st_mtime_ns] for stat in stats]


@contextmanager
def kept_rows(folder: Path, model: SlideModel, cohort: Cohort) -> Iterator[KeptRows]:
    """The rows in a folder, of this model on this cohort; of others they are begun anew.

    They lie there until the block ends without an error.
    """
    file, head = folder / FILE, json.dumps({"of": _key(model, cohort)}) + "\n"
    found = _read(file, head)
    write_text(file, head + "".join(json.dumps(told) + "\n" for told in found))
    with open(file, "ab", buffering=0) as opened:
        yield KeptRows(cohort, opened, {(told["part"], told["sample"]): told for told in found})
    file.unlink()


def _read(file: Path, head: str) -> list[dict[str, Any]]:
    """Rows under this head; a line that a kill cut short does not count."""
    if not file.is_file():
        return []
    first, *lines = file.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
    whole = [line for line in lines if line.endswith("\n")]
    return [json.loads(line) for line in whole] if first == head else []


def _key(model: SlideModel, cohort: Cohort) -> str:
    """sha256 hex of all that predictions depend on but the files of the slides."""
    told = [wsizoo.__version__, model.name, str(model.device), cohort.digest]
    found = hashlib.sha256(json.dumps([*told, asdict(cohort.config)], sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        plain = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        found.update(name.encode() + plain.numpy().tobytes())
    return found.hexdigest()
