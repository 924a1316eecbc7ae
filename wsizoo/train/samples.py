"""What a model is shown as one bag: a slide, or all slides of a patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsizoo.bag import Bag
from wsizoo.errors import DataError
from wsizoo.train.cohort import Cohort
from wsizoo.train.survival import time_bins


@dataclass(frozen=True)
class Sample:
    """One bag.

    Args:
        name: of the slide, or of all slides joined by `+`. rows: of the cohort that it is made of.
    """

    name: str
    patient: str
    site: str | None
    rows: tuple[int, ...]
    target: Mapping[str, Any]


class Samples:
    """The bags of some slides of a cohort, read when asked for, with what a head trains on.

    Args:
        rows: of the cohort, slides of one part.
        joined: all slides of a patient are one bag, on one grid with gaps.
        edges: survival times are given as the bins between these; None: as they are.

    Raises:
        DataError: slides of one patient that are to be joined and whose targets differ.
    """

    def __init__(
        self,
        cohort: Cohort,
        rows: Sequence[int],
        joined: bool = False,
        edges: Sequence[float] | None = None,
    ) -> None:
        self.cohort, self.edges = cohort, edges
        groups: dict[str, list[int]] = {}
        for row in rows:
            record = cohort.records[row]
            groups.setdefault(record.patient if joined else record.slide, []).append(row)
        self.samples = [_sample(cohort, group) for group in groups.values()]

    @property
    def names(self) -> list[str]:
        """One a bag, for messages."""
        return [sample.name for sample in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Bag:
        """The bag with its target."""
        sample = self.samples[index]
        bags = [self.cohort.bag(row) for row in sample.rows]
        bag = bags[0] if len(bags) == 1 else Bag.concat(bags)
        target = dict(bag.target or {})
        if self.edges is not None and "time" in target:
            target["time"] = int(time_bins([float(target["time"])], self.edges)[0])
        return bag.replace(target=target, slide_id=sample.name)


def _sample(cohort: Cohort, rows: Sequence[int]) -> Sample:
    records = [cohort.records[row] for row in rows]
    first = records[0]
    for other in records[1:]:
        for key, value in first.target.items():
            if other.target.get(key) != value:
                raise DataError(
                    f"patient '{first.patient}': {key} of slide '{first.slide}' is {value}, of "
                    f"'{other.slide}' {other.target.get(key)}. Slides that are joined need one "
                    "target; or let each stand for itself: data.patient_slides=each"
                )
    name = "+".join(record.slide for record in records)
    return Sample(name, first.patient, first.site, tuple(rows), first.target)
