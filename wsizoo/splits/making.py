"""Splits by patient: stratified, on request of whole sites, whatever the order of the table.

Who is drawn depends on the seed and on the names of patients alone (a sha256 of both), so that the
same table in another order, another NumPy or another computer gives the same split.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from wsizoo.errors import DataError
from wsizoo.splits.files import read_split
from wsizoo.splits.grouping import (
    Grouped,
    check_classes,
    group,
    one_each,
    strata,
)
from wsizoo.splits.parts import Split, splits_of_column

KINDS = ("holdout", "kfold", "file", "column", "extrapolation")
FRACTIONS = {"holdout": (0.7, 0.15, 0.15), "extrapolation": (0.6, 0.2, 0.2)}  # unless told others


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
    file: Path | str | None = None,
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
        file: as `read_split` takes it, for `kind="file"`.
        kind: "holdout" (by fractions), "kfold", "file", "column", or "extrapolation": the patients
            with the smallest slides train, those with larger ones, at random, validate and test. A
            patient is as large as the largest of its slides.
        fractions: of patients that train, validate and test; by default `FRACTIONS[kind]`.
        val_fraction: of the patients that train, to validate: of each fold, and of files and
            columns that say nothing of validation. Files and columns that do are taken as they are.
        seed: of the first of `repeats`; the others have seed + 1 and so on.
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
    check_options(kind, folds, val_fraction, repeats, site)
    grouped = group(slides, patients)
    if site == "preserve":
        grouped.sites = one_each("site", grouped, grouped.checked("sites", sites))
    if stratify:
        parts = folds if kind == "kfold" else 3
        grouped.strata = strata(grouped, labels, times, events, bins, parts)
    seeds = range(seed, seed + repeats)
    if kind == "kfold":
        splits = [one for s in seeds for one in _by_folds(grouped, folds, val_fraction, str(s))]
    elif kind in ("file", "column"):
        splits = _given(grouped, file if kind == "file" else None, column, val_fraction, seed)
    else:
        shares = _checked_fractions(tuple(fractions) or FRACTIONS[kind])
        sizes = grouped.checked("sizes", sizes) if kind == "extrapolation" else None
        splits = [_by_fractions(grouped, shares, sizes, str(s)) for s in seeds]
    check_classes(splits, labels, events if times is not None else None)
    return splits


def check_options(kind: str, folds: int, val_fraction: float, repeats: int, site: str) -> None:
    """Raise DataError for options that no table could be split by."""
    if kind not in KINDS:
        raise DataError(f"no kind of split is called '{kind}', expected one of {', '.join(KINDS)}")
    if site not in ("mix", "preserve"):
        raise DataError(f"site is '{site}', expected mix or preserve")
    if folds < 2 or repeats < 1:
        raise DataError(
            f"there are to be {folds} folds and {repeats} repeats, expected 2 and 1 at least"
        )
    if not 0 <= val_fraction < 1:
        raise DataError(f"val_fraction is {val_fraction}, expected at least 0 and less than 1")
    if site == "preserve" and kind not in ("holdout", "kfold"):
        raise DataError(
            f"site=preserve cannot be held by kind '{kind}', which says itself who is where: ask "
            "for holdout or kfold, or for site=mix"
        )


def _checked_fractions(fractions: tuple[float, ...]) -> tuple[float, ...]:
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        total = sum(fractions)
        parts = len(fractions) == 3 and min(fractions) >= 0 and total > 0
        shares = " ".join(f"{one / total:.4g}" for one in fractions) if parts else "0.7 0.15 0.15"
        raise DataError(
            f"fractions are {fractions}, expected those of train, val and test, 1 together: "
            f"{shares}"
        )
    if fractions[0] == 0:
        raise DataError(f"fractions are {fractions}, which leave nobody to train on")
    return fractions


def _by_folds(grouped: Grouped, folds: int, val_fraction: float, key: str) -> list[Split]:
    patients = len(set(grouped.patients))
    if patients < folds:
        raise DataError(
            f"{patients} patients cannot make {folds} folds: ask for {patients} at most"
        )
    tests = grouped.dealt(grouped.rows(), [1 / folds] * folds, key)
    splits = []
    for fold, test in enumerate(tests):
        rest = grouped.by_name(set(grouped.rows()) - set(test))
        splits.append(_carved(grouped, Split(rest, [], test), val_fraction, f"{key}/{fold}"))
    return splits


def _given(
    grouped: Grouped,
    file: Path | str | None,
    column: Sequence[Any] | None,
    val_fraction: float,
    seed: int,
) -> list[Split]:
    """The splits of a file, else of a column, with a validation part where they have none."""
    if file is not None:
        splits = read_split(file, grouped.slides, grouped.patients)
    else:
        splits = splits_of_column(grouped.checked("values of the column", column), grouped.rows())
    return [_carved(grouped, one, val_fraction, f"{seed}/{i}") for i, one in enumerate(splits)]


def _carved(grouped: Grouped, split: Split, val_fraction: float, key: str) -> Split:
    """The split with a share of its training patients to validate, unless some do already."""
    if split.val or not split.train:
        return split
    train, val = grouped.dealt(split.train, (1 - val_fraction, val_fraction), key)
    return Split(train, val, split.test)


def _by_fractions(
    grouped: Grouped, shares: tuple[float, ...], sizes: Sequence[Any] | None, key: str
) -> Split:
    """All parts at random, or, with sizes, the smallest patients to train."""
    if sizes is None:
        return Split(*grouped.dealt(grouped.rows(), shares, key))
    largest: dict[str, int] = {}
    for patient, size in zip(grouped.patients, sizes, strict=True):
        largest[patient] = max(int(size), largest.get(patient, 0))
    order = sorted(largest, key=lambda patient: (largest[patient], patient))
    small = set(order[: round(len(order) * shares[0])])
    if not 0 < len(small) < len(order):
        raise DataError(
            f"fractions {shares} of {len(order)} patients leave none that are small or none that "
            "are large, expected some of both"
        )
    train = [i for i in grouped.rows() if grouped.patients[i] in small]
    large = [i for i in grouped.rows() if grouped.patients[i] not in small]
    return Split(
        train, *grouped.dealt(large, [share / sum(shares[1:]) for share in shares[1:]], key)
    )
