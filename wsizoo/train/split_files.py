"""Files of splits: ours, and those of CLAM, Patho-Bench, ACMIL and Patch-GCN."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from wsizoo.train.splits import Split


def split_digest(rows: Iterable[tuple[str, str]]) -> str:
    """sha256 of the sorted lines `slide,part`: of what is where, not of how a file says so."""
    raise NotImplementedError


def split_rows(split: Split, slides: Sequence[str]) -> list[tuple[str, str]]:
    """(slide, part) of each slide that the split holds, by name of the slide."""
    raise NotImplementedError


def write_split(
    file: Path | str,
    splits: Split | Sequence[Split],
    slides: Sequence[str],
    patients: Sequence[str] | None = None,
    sites: Sequence[str] | None = None,
) -> list[str]:
    """A csv with the columns slide, patient, (site) and part; of several splits fold_0, fold_1, ...

    Returns:
        The `split_digest` of each split.
    """
    raise NotImplementedError


def read_split(
    file: Path | str, slides: Sequence[str], patients: Sequence[str] | None = None
) -> list[Split]:
    """The splits that a file holds, one a fold, as indices of the slides of a table."""
    raise NotImplementedError
