"""Digests of what a cohort holds: targets, features, labels of patches; what changed has a name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from wsizoo.errors import DataError
from wsizoo.files import sha256_of

if TYPE_CHECKING:
    from wsizoo.train.cohort import Cohort


def cohort_digests(cohort: Cohort) -> dict[str, str]:
    """By what they are of, sha256 hex; take `Cohort.digests`, which works them out once.

    `data_digest`: slides, patients and targets. `features_digest`: features of each slide.
    `patches_digest`: labels of patches in files of their own, only where there are such.
    """
    told = {"data_digest": cohort.digest, "features_digest": _of_slides(cohort, "features")}
    if any(record.instances for record in cohort.records):
        told["patches_digest"] = _of_slides(cohort, "instances")
    return told


def whole_digest(cohort: Cohort) -> str:
    """All of them as one."""
    return sha256_lines(f"{name} {digest}" for name, digest in cohort.digests.items())


def _of_slides(cohort: Cohort, what: str) -> str:
    files = {record.slide: getattr(record, what) for record in cohort.records}
    return sha256_lines(
        f"{slide} {file and file_digest(file)}" for slide, file in sorted(files.items())
    )


def file_digest(file: Path) -> str:
    """The digest that a feature file of wsizoo states of its content; else that of its bytes."""
    from wsizoo.slides.store import read_header

    if file.is_dir():
        inside = sorted(path for path in file.rglob("*") if path.is_file())
        return sha256_lines(f"{path.relative_to(file)} {sha256_of(path)}" for path in inside)
    try:
        return read_header(file).digest
    except DataError:
        return sha256_of(file)


def sha256_lines(lines: Iterable[str]) -> str:
    """sha256 hex of lines of text."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
