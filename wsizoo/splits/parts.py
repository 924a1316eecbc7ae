"""Splits into training, validation and test part, as papers made them.

A published split depends on the order of its slides: SPAN's code takes them as the file system
lists them, so that a seed alone does not say which slide is where.

Source: `tasks/vision/shared/data.py` of https://github.com/wwyi1828/SPAN at 08e4ba0.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from wsizoo.errors import DataError

SPAN_FRACTIONS = {  # of training and validation; what is left is the test part
    "classification": (0.70, 0.15),
    "survival": (0.70, 0.15),
    "segcamelyon": (0.70, 0.15),
    "bach": (0.70, 0.10),
    "her2": (0.70, 0.10),
    "camelyon17": (2 / 3 * 0.85, 2 / 3 * 0.15),
}


PARTS = ("train", "val", "test")
WORDS = {  # what tables and files call the parts
    **dict.fromkeys(("train", "training", "train_names"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "tune", "dev", "val_names"), "val"),
    **dict.fromkeys(("test", "testing", "test_names"), "test"),
}


@dataclass(frozen=True)
class Split:
    """Indices of the slides of each part, each slide in one."""

    train: list[int]
    val: list[int]
    test: list[int] = field(default_factory=list)

    def parts(self) -> dict[str, list[int]]:
        """Name of the part -> its slides; also of those that are empty."""
        return {name: getattr(self, name) for name in PARTS}


def splits_of_column(values: Sequence[Any], rows: Sequence[int]) -> list[Split]:
    """One split if the values name parts; if they are numbers of folds, one a fold, which tests.

    Args:
        values: (n,), None, empty or NaN: in no part. rows: of them, in the order of the parts.

    Raises:
        DataError: a word that names no part, or a single fold.
    """
    texts = ["" if value is None else str(value).strip().lower() for value in values]
    texts = ["" if text == "nan" else text for text in texts]
    try:
        numbers = [float(text) if text else None for text in texts]
    except ValueError:
        return [_split_of_words(texts, rows)]
    folds = sorted({number for number in numbers if number is not None})
    if len(folds) < 2:
        raise DataError(
            f"the column of the split holds {folds or 'nothing'}, expected numbers of folds, at "
            "least 2, or train, val and test"
        )
    known = [i for i in rows if numbers[i] is not None]
    return [
        Split(
            [i for i in known if numbers[i] != fold], [], [i for i in known if numbers[i] == fold]
        )
        for fold in folds
    ]


def _split_of_words(words: Sequence[str], rows: Sequence[int]) -> Split:
    split = Split([], [], [])
    for row in rows:
        if words[row] and words[row] not in WORDS:
            raise DataError(f"'{words[row]}' names no part, expected train, val or test")
        if words[row]:
            split.parts()[WORDS[words[row]]].append(row)
    return split


def permuted_split(n: int, fractions: tuple[float, float], seed: int) -> Split:
    """n slides in a random order: the first int(n f) train, the next validate, the rest test.

    Args:
        fractions: of training and validation, e.g. `SPAN_FRACTIONS["classification"]`.
        seed: of torch.randperm on a CPU.
    """
    import torch

    _check(n, fractions)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    train, val = (int(n * fraction) for fraction in fractions)
    return Split(order[:train], order[train : train + val], order[train + val :])


def span_camelyon16_segmentation_split(n: int, seed: int) -> Split:
    """The n slides of the official training folder: 85 % train; the official test folder tests."""
    _check(n, (0.85, 0.15))
    order = _shuffled(n, seed)
    train = int(n * (1 - 0.15))
    return Split(order[:train], order[train:])


def span_tcga_lung_split(n: int, seed: int) -> Split:
    """The last 15 % test; of the others the last 17.647 % (15 % of all) validate."""
    _check(n, (0.70, 0.15))
    order = _shuffled(n, seed)
    pool = int(0.85 * n)
    train = pool - int(pool * 0.176470588235294)
    return Split(order[:train], order[train:pool], order[pool:])


def _shuffled(n: int, seed: int) -> list[int]:
    order = list(range(n))
    random.Random(seed).shuffle(order)
    return order


def _check(n: int, fractions: tuple[float, float]) -> None:
    """Raise unless there is something to train on."""
    if len(fractions) != 2 or min(fractions) < 0 or not sum(fractions) <= 1:
        raise DataError(
            f"fractions are {fractions}, expected those of training and validation, at most 1 "
            "together"
        )
    if int(n * fractions[0]) < 1:
        raise DataError(f"{n} slides leave none to train on with fractions {fractions}")
