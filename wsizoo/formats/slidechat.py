"""SlideChat: a .csv with a header and one row a patch, the first 512 columns its CONCH features."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.files import replacing
from wsizoo.formats.contents import Contents, Format, Look

WIDTH = 512
"""Columns that are features; what stands in later ones is not defined, and not read."""


def _recognises(look: Look) -> bool:
    if look.kind != "csv":
        return False
    with open(look.path, newline="", encoding="utf-8-sig") as file:
        return len(next(csv.reader(file), [])) >= WIDTH


def _read(path: Path, table: str | None) -> Contents:
    """Contents without coordinates and encoder, of which these files state nothing."""
    with open(path, "rb") as file:
        n = sum(bool(line.strip()) for line in file) - 1  # the header's
    return Contents((path,), (n, WIDTH), "float32", lambda: _features(path, n))


def _features(path: Path, n: int) -> Tensor:
    found: NDArray[np.float32] = np.loadtxt(
        path,
        np.float32,
        delimiter=",",
        skiprows=1,
        usecols=range(WIDTH),
        ndmin=2,
        quotechar='"',
        comments=None,
        encoding="utf-8-sig",
    )
    return torch.from_numpy(found.reshape(n, WIDTH))


def write_features(path: Path | str, features: Tensor) -> None:
    """Write (n, 512) as such a file, complete or not at all. Raises DataError: another width."""
    if features.ndim != 2 or features.shape[1] != WIDTH:
        raise DataError(
            f"features are {tuple(features.shape)}; SlideChat's files hold (N, {WIDTH}), of CONCH"
        )
    head = ",".join(str(i) for i in range(WIDTH))
    with replacing(path) as temporary:
        values = features.detach().float().cpu().numpy()
        np.savetxt(temporary, values, "%.9g", ",", header=head, comments="", encoding="utf-8")


FORMAT = Format(
    "slidechat",
    f"SlideChat: .csv with a header and {WIDTH} columns of features or more",
    _recognises,
    _read,
    bags=lambda path: [(path, None)],
)
