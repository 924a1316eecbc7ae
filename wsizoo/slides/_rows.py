"""The rows of `/features` as they are written, and the checksums of a feature file."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsizoo.errors import DataError

BLOCK_BYTES = 2**26  # read at a time where only the digest is wanted
SEAL_BYTES = 512  # HDF5's smallest user block: bytes before the file proper, which its readers skip
SEALS = ("digest", "crc")  # fields of the header that say what the rest must be


class Checksums:
    """sha256 of a file's header and arrays, its identity, and their crc32, which is quick to check.

    Args:
        told: the header. quick: the crc32 only.
    """

    def __init__(self, told: Mapping[str, Any], quick: bool = False) -> None:
        header = {name: value for name, value in told.items() if name not in SEALS}
        self._sha256 = None if quick else hashlib.sha256()
        self._crc = 0
        self.update(json.dumps(header, sort_keys=True).encode())

    def update(self, data: Any) -> None:
        """Add bytes."""
        self._crc = zlib.crc32(data, self._crc)
        if self._sha256 is not None:
            self._sha256.update(data)

    def add(self, name: str, data: Any) -> None:
        """Add an array, or a dataset block by block."""
        self.begin(name, data)
        row = max(1, data.dtype.itemsize * int(np.prod(data.shape[1:], dtype=np.int64)))
        step = max(1, BLOCK_BYTES // row)
        for start in range(0, len(data), step):
            self.update(np.ascontiguousarray(data[start : start + step]).data)

    def begin(self, name: str, data: Any) -> None:
        """Add the name and the form of an array whose rows follow."""
        self.update(f"{name} {data.dtype} {data.shape}".encode())

    def seals(self) -> dict[str, str]:
        """The fields of the header that `matches` looks at."""
        assert self._sha256 is not None
        return dict(zip(SEALS, (self._sha256.hexdigest(), f"{self._crc:08x}"), strict=True))

    def matches(self, told: Mapping[str, Any]) -> bool:
        """Whether the header states what was added."""
        if self._sha256 is not None:
            return told.get("digest") == self._sha256.hexdigest()
        return told.get("crc") == f"{self._crc:08x}"


class Rows:
    """`/features`, written row after row, and the checksums of what is read back so far."""

    def __init__(self, file: Any, n: int, sums: Checksums) -> None:
        self.file, self.n, self.sums = file, n, sums
        self.dataset: Any = None
        self.done = 0

    def append(self, features: Tensor) -> None:
        """Write rows after the last ones: (n, D) float, or (n, 3, H, W) uint8 as (n, H, W, 3)."""
        rows = stored_rows(features)
        if self.dataset is None:
            self.dataset = self._created(rows)
            self.sums.begin("features", self.dataset)
        end = self.done + len(rows)
        if (rows.dtype, rows.shape[1:]) != (self.dataset.dtype, self.dataset.shape[1:]):
            raise DataError(
                f"features from row {self.done} on are {rows.dtype} {rows.shape[1:]} each, those "
                f"before are {self.dataset.dtype} {self.dataset.shape[1:]}; expected one kind"
            )
        if end > self.n:
            raise DataError(f"{end} rows of features for {self.n} patches, expected one each")
        self.dataset[self.done : end] = rows
        self.sums.update(rows.data)
        self.done = end

    def _created(self, rows: NDArray[Any]) -> Any:
        """The dataset: vectors in one piece, pixels compressed, a chunk a patch."""
        shape = (self.n, *rows.shape[1:])
        packed: dict[str, Any] = {}
        if rows.ndim == 4 and 0 not in shape:
            packed = {"chunks": (1, *shape[1:]), "compression": "gzip", "compression_opts": 1}
        return self.file.create_dataset("features", shape, rows.dtype, **packed)

    def finish(self, slide_id: str) -> None:
        """Raise DataError unless every patch has its row."""
        if self.dataset is None or self.done != self.n:
            raise DataError(
                f"slide '{slide_id}': {self.done} rows of features for {self.n} patches"
            )


def stored_rows(features: Tensor) -> NDArray[Any]:
    """Features as they lie in a file: (n, D), or pixels (n, 3, H, W) as (n, H, W, 3)."""
    features = features.detach().cpu()
    if features.dtype is torch.bfloat16:  # unknown to HDF5; float32 holds it exactly
        features = features.float()
    if features.ndim == 4:
        features = features.permute(0, 2, 3, 1)
    return np.ascontiguousarray(features.numpy())


def read_rows(stored: NDArray[Any]) -> Tensor:
    """The inverse of `stored_rows`."""
    features = torch.from_numpy(stored)
    return features.permute(0, 3, 1, 2).contiguous() if features.ndim == 4 else features


class PatientFile(io.FileIO):
    """A file that HDF5 can write to until the end, whatever the disk says; `check` tells.

    HDF5 crashes the process when a write fails, so it never hears of it.
    """

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        block, done = memoryview(data).cast("B"), 0
        while done < len(block) and self.failed is None:
            try:
                done += super().write(block[done:])
            except OSError as error:
                self.failed = error
        return len(block)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.failed = self.failed or error
            return size or 0

    def check(self) -> None:
        """Raise the OSError that was kept back."""
        if self.failed is not None:
            raise self.failed


def seal(path: Path) -> None:
    """Fill the block before the HDF5 file with the checksum of every byte behind it."""
    text = _seal_text(path)
    with open(path, "rb+") as file:
        file.write(text)


def is_sealed(path: Path) -> bool:
    """Whether every byte of a file is as it was when it was sealed."""
    with open(path, "rb") as file:
        found = file.read(SEAL_BYTES)
    return found == _seal_text(path)


def _seal_text(path: Path) -> bytes:
    crc = size = 0
    with open(path, "rb") as file:
        file.seek(SEAL_BYTES)
        while block := file.read(BLOCK_BYTES):
            crc, size = zlib.crc32(block, crc), size + len(block)
    text = f"wsizoo feature file (HDF5 from byte {SEAL_BYTES} on): {size} bytes, crc32 {crc:08x}\n"
    return text.encode().ljust(SEAL_BYTES)
