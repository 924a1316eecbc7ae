"""What is shown to a model: a slide, or all slides of a patient, with its target."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from wsizoo.bag import Bag
from wsizoo.train.cohort import Cohort
from wsizoo.train.survival import time_bins, time_edges


@dataclass(frozen=True)
class Sample:
    """A slide, or a patient.

    Args:
        name: the slide's or the patient's. indices: of its slides in the cohort.
    """

    name: str
    patient: str
    indices: tuple[int, ...]


def units(cohort: Cohort, indices: Iterable[int] | None = None) -> list[Sample]:
    """The samples that some slides make, as `data.patient_slides` says.

    One a slide; or ("concat") one a patient, in the order of their first slides. For "late_mean"
    one a slide too: what they give is averaged by whoever measures, by `patient`.

    Args:
        indices: of slides, default all. All slides of a patient must be among them, or none.
    """
    chosen = list(range(len(cohort)) if indices is None else indices)
    if cohort.config.patient_slides != "concat":
        records = cohort.records
        return [Sample(records[i].slide, records[i].patient, (i,)) for i in chosen]
    together: dict[str, list[int]] = {}
    for index in chosen:
        together.setdefault(cohort.records[index].patient, []).append(index)
    return [Sample(patient, patient, tuple(own)) for patient, own in together.items()]


class Samples(Sequence[Bag]):
    """Bags with targets, read when asked for; several threads may ask.

    Args:
        edges: right ends of all bins of time but the last; None: targets hold the times themselves.
    """

    def __init__(
        self, cohort: Cohort, samples: Sequence[Sample], edges: Sequence[float] | None = None
    ) -> None:
        self.cohort, self.samples = cohort, list(samples)
        self.edges = None if edges is None else list(edges)
        self.names = [sample.name for sample in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        """The bag, or the part of a slice. Slides of a patient lie on grids far apart."""
        if isinstance(index, slice):
            return Samples(self.cohort, self.samples[index], self.edges)
        sample = self.samples[index]
        bags = [self.cohort.bag(i) for i in sample.indices]
        if self.cohort.config.patient_slides == "concat":
            bag = Bag.concat(bags).replace(slide_id=sample.name)
        else:
            (bag,) = bags
        if self.edges is None or "time" not in (bag.target or {}):
            return bag
        target = dict(bag.target or {})
        target["time"] = int(time_bins([target["time"]], self.edges)[0])
        return bag.replace(target=target)


def survival_edges(cohort: Cohort, train: Iterable[int]) -> list[float]:
    """Right ends of all bins of time but the last, from quantiles of the patients' events.

    Each patient counts once, however many slides there are.

    Args:
        train: slides of the training part, the only ones that are looked at; with `data.bins_from`
            "whole_cohort" (the published variant), all are.

    Raises:
        DataError: no events, or too few for `data.bins`.
    """
    config = cohort.config
    chosen = range(len(cohort)) if config.bins_from == "whole_cohort" else train
    targets = {cohort.records[i].patient: cohort.records[i].target for i in chosen}
    times = [target["time"] for target in targets.values()]
    events = [target["event"] for target in targets.values()]
    found: list[float] = time_edges(times, events, config.bins).tolist()
    return found
