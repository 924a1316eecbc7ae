"""Splits by patient: stratified, on request of whole sites, whatever the order of the table.

Who is drawn depends on the seed and on the names of patients alone (a sha256 of both), so that the
same table in another order, another NumPy or another computer gives the same split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsizoo.errors import DataError
from wsizoo.train.dealing import deal, deal_sites
from wsizoo.train.splits import PARTS, Split

KINDS = ("holdout", "kfold", "extrapolation", "column")
FRACTIONS = {"holdout": (0.7, 0.15, 0.15), "extrapolation": (0.6, 0.2, 0.2)}  # unless told others
WORDS = {  # what tables call the parts
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "tune", "dev"),
    "test": ("test", "testing"),
}


def make_splits(
    slides: Sequence[str],
    patients: Sequence[str] | None = None,
    labels: Sequence[Any] | None = None,
    *,
    times: ArrayLike | None = None,
    events: ArrayLike | None = None,
    sites: Sequence[str] | None = None,
    sizes: Sequence[int] | None = None,
    column: Sequence[Any] | None = None,
    kind: str = "holdout",
    fractions: Sequence[float] = (),
    folds: int = 5,
    val_fraction: float = 0.15,
    repeats: int = 1,
    seed: int = 0,
    stratify: bool = True,
    site: str = "mix",
    bins: int = 4,
) -> list[Split]:
    """Parts of a cohort, one `Split` a fold and repeat; the slides of a patient stay together.

    Args:
        slides, patients: (n,) names; without patients each slide is its own.
        labels: (n,) classes. Of a patient whose slides differ, the class of the fewest patients
            counts.
        times, events: (n,) survival times, of which events were seen (1) or not; times alone are
            the values of a regression.
        sites: (n,), for `site="preserve"`. sizes: (n,) patches, for `kind="extrapolation"`.
        column: (n,) the part of each slide, or its fold, for `kind="column"`: each fold tests once.
        kind: "holdout" (by fractions), "kfold", "column", or "extrapolation": the patients with the
            smallest slides train, those with larger ones, at random, validate and test. A patient
            is as large as the largest of its slides.
        fractions: of patients that train, validate and test; by default `FRACTIONS[kind]`.
        val_fraction: of the patients that do not test, for the kinds that state no such part.
        repeats: of holdout, kfold and extrapolation, each drawn anew.
        stratify: by label, or by event and quantile of time.
        site: "preserve": all patients of a site in one part.
        bins: quantiles of time to stratify by.

    Returns:
        Indices of slides, in the order of their names.

    Raises:
        DataError: columns of other lengths, a slide twice, fewer patients or sites than parts, an
            empty part, one that holds a single class (or no event), a training part that lacks one.

    Source: site-preserving parts as Howard et al., "The impact of site-specific digital histology
    signatures on deep learning model accuracy and bias", Nature Communications 12, 2021, ask for
    (they solve a quadratic programme; ours is a search). Extrapolation: Li et al., "Rethinking
    Transformer for Long Contextual Histopathology Whole Slide Image Analysis", NeurIPS 2024.
    """
    raise NotImplementedError
