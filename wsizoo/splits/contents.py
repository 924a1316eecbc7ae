"""Slides whose features are the same, or so alike that one may be a copy of the other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsizoo.errors import DataError, WsizooError
from wsizoo.formats.detect import contents_of
from wsizoo.slides.manifest import list_slides
from wsizoo.sources import FEATURE_SUFFIXES
from wsizoo.splits.files import rows_of_names

NEAR = 0.99


@dataclass(frozen=True)
class Pair:
    """Two slides, and what they have in common."""

    one: str
    other: str
    told: str


@dataclass(frozen=True)
class Contents:
    """Of the feature files of slides. unread: slides without, and why."""

    same: list[Pair]
    near: list[Pair]
    unread: dict[str, str]


def read_contents(folder: Path | str, slides: Sequence[str], near: float = NEAR) -> Contents:
    """Compare the features of slides, of files of any tool.

    Two are the same if they have the same patches, in whatever order, as float32. They are near if
    the cosine of their mean features is above `near`, each dimension without its mean and in units
    of its standard deviation over slides.

    Args:
        folder: with a file a slide, of its name. near: 0 to 1; 1 looks for none.

    Raises:
        DataError: there is no such folder, or it holds no feature files.

    Cost: every file is read once; pairs of slides times the width of features.
    """
    digests: dict[str, str] = {}
    means: dict[str, NDArray[np.float64]] = {}
    unread: dict[str, str] = {}
    files = files_of(folder, slides)
    for slide in dict.fromkeys(slides):
        if slide not in files:
            unread[slide] = f"there is no feature file of it in {folder}"
            continue
        try:
            features = contents_of(files[slide])[1].features().float().numpy()
        except WsizooError as error:
            unread[slide] = str(error)
            continue
        digests[slide] = _digest(features)
        means[slide] = features.mean(0, dtype=np.float64)
    same = list(_same(digests))
    known = {(pair.one, pair.other) for pair in same}
    close = [pair for pair in _near(means, near) if (pair.one, pair.other) not in known]
    return Contents(same, close, unread)


def files_of(folder: Path | str, slides: Sequence[str]) -> dict[str, Path]:
    """The feature file of each slide that has one in a folder."""
    files = [entry.path for entry in list_slides(folder, FEATURE_SUFFIXES)]
    found, _ = rows_of_names(slides, [file.name for file in files])
    return {slide: files[rows[0]] for slide, rows in found.items()}


def sizes_of(folder: Path | str, slides: Sequence[str]) -> list[int]:
    """Patches of each slide. Raises DataError naming those without a feature file."""
    files = files_of(folder, slides)
    missing = [slide for slide in slides if slide not in files]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(slides)} slides have no feature file in '{folder}', such as "
            f"'{missing[0]}': extract them first"
        )
    return [contents_of(files[slide])[1].n for slide in slides]


def _digest(features: NDArray[np.float32]) -> str:
    """sha256 of the rows (N, D), sorted by their bytes."""
    digest = hashlib.sha256(str(features.shape).encode())
    for row in sorted(row.tobytes() for row in features):
        digest.update(row)
    return digest.hexdigest()


def _same(digests: dict[str, str]) -> Iterator[Pair]:
    """Each slide with the first one of its digest."""
    first: dict[str, str] = {}
    for slide, digest in digests.items():
        if first.setdefault(digest, slide) != slide:
            yield Pair(first[digest], slide, "the same features")


def _near(means: dict[str, NDArray[np.float64]], near: float) -> Iterator[Pair]:
    for width in sorted({len(mean) for mean in means.values()}):
        names = [slide for slide, mean in means.items() if len(mean) == width]
        table = np.stack([means[name] for name in names])  # (S, D)
        table = table - table.mean(0)
        table /= np.maximum(table.std(0), 1e-12)
        table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
        for i, name in enumerate(names):
            cosine = table[i + 1 :] @ table[i]  # (S - i - 1,)
            for other in np.flatnonzero(cosine > near):
                told = f"mean features of cosine {cosine[other]:.4f}"
                yield Pair(name, names[i + 1 + int(other)], told)
