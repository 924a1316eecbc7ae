"""What a model is shown as one bag: a slide, or all slides of a patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsizoo.bag import Bag
from wsizoo.measures.times import time_bins
from wsizoo.train.cohort import Cohort

KEPT = 256 * 2**20  # of a part; small cohorts are read once, not once an epoch


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

    Several threads may ask. The first `KEPT` bytes of features stay in memory. As
    `data.patient_slides` says, all slides of a patient are one bag on one grid with gaps
    ("concat"), or each is its own.

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
        self._kept: dict[int, Bag] = {}
        self._room = KEPT
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
        bag = self._kept.get(index)
        if bag is None:
            bag = self._read(index)
            if self._room >= bag.features.nbytes:  # threads may both pass: a bag more is no harm
                self._room -= bag.features.nbytes
                self._kept[index] = bag
        return bag

    def _read(self, index: int) -> Bag:
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
