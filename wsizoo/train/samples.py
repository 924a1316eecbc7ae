"""What a model is shown as one bag: a slide, or all slides of a patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsizoo.bag import Bag
from wsizoo.train.cohort import Cohort
from wsizoo.train.survival import time_bins


@dataclass(frozen=True)
class Sample:
    """One bag.

    Args:
        name: of the slide, or of all slides joined by `+`. rows: of the cohort that it is made of.
        target: as the table has it; of segmentation empty, that of the bag has the patches.
    """

    name: str
    patient: str
    rows: tuple[int, ...]
    target: Mapping[str, Any]


class Samples:
    """The bags of some slides of a cohort, read when asked for, with what a head trains on.

    Several threads may ask. As `data.patient_slides` says, all slides of a patient are one bag on
    one grid with gaps ("concat"), or each is its own.

    Args:
        rows: of the cohort, slides of one part.
        edges: survival times are given as the bins between these; None: as they are.
    """

    def __init__(
        self,
        cohort: Cohort,
        rows: Sequence[int],
        edges: Sequence[float] | None = None,
    ) -> None:
        self.cohort, self.edges = cohort, edges
        joined = cohort.config.patient_slides == "concat"
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
    first = cohort.records[rows[0]]
    name = "+".join(cohort.records[row].slide for row in rows)
    return Sample(name, first.patient, tuple(rows), first.target)
