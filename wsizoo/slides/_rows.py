"""The rows of `/features` as they are written, and the digest of a feature file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsizoo.errors import DataError

BLOCK_BYTES = 2**26  # read at a time where only the digest is wanted


class Rows:
    """`/features`, written row after row, and the digest of what is read back so far."""

    def __init__(self, file: Any, n: int, digest: Any) -> None:
        self.file, self.n, self.digest = file, n, digest
        self.dataset: Any = None
        self.done = 0

    def append(self, features: Tensor) -> None:
        """Write rows after the last ones."""
        features = features.detach().cpu()
        if features.dtype is torch.bfloat16:  # unknown to HDF5; float32 holds it exactly
            features = features.float()
        rows = np.ascontiguousarray(features.numpy())
        if self.dataset is None:
            self.dataset = self._created(rows)
            self.digest.update(f"features {rows.dtype} {self.dataset.shape}".encode())
        end = self.done + len(rows)
        if (rows.dtype, rows.shape[1:]) != (self.dataset.dtype, self.dataset.shape[1:]):
            raise DataError(
                f"features from row {self.done} on are {rows.dtype} {rows.shape[1:]} each, those "
                f"before are {self.dataset.dtype} {self.dataset.shape[1:]}; expected one kind"
            )
        if end > self.n:
            raise DataError(f"{end} rows of features for {self.n} patches, expected one each")
        self.dataset[self.done : end] = rows
        self.digest.update(rows.data)
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


def begin_digest(told: Mapping[str, Any]) -> Any:
    """sha256 of the header (but for the digest in it); `add_array` adds what is read back."""
    header = {name: value for name, value in told.items() if name != "digest"}
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode())


def add_array(digest: Any, name: str, data: Any) -> None:
    """Add an array, or a dataset block by block."""
    digest.update(f"{name} {data.dtype} {data.shape}".encode())
    row = max(1, data.dtype.itemsize * int(np.prod(data.shape[1:], dtype=np.int64)))
    step = max(1, BLOCK_BYTES // row)
    for start in range(0, len(data), step):
        digest.update(np.ascontiguousarray(data[start : start + step]).data)
