"""The slides of a table by patient, and the strata that patients are dealt by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from wsizoo.errors import DataError
from wsizoo.measures.times import times_and_events
from wsizoo.splits.dealing import deal, deal_sites
from wsizoo.splits.parts import Split


@dataclass
class Grouped:
    """Slides of patients; `strata` and `sites` by patient, where they are asked for."""

    slides: list[str]
    patients: list[str]
    strata: Mapping[str, str] = field(default_factory=dict)
    sites: Mapping[str, str] | None = None

    def rows(self) -> list[int]:
        return self.by_name(range(len(self.slides)))

    def by_name(self, rows: Iterable[int]) -> list[int]:
        return sorted(rows, key=lambda i: self.slides[i])

    def checked(self, name: str, values: Sequence[Any] | None) -> Sequence[Any]:
        """The values, if there is one for each slide. Raises DataError otherwise."""
        if values is None or len(values) != len(self.slides):
            many = "no" if values is None else str(len(values))
            raise DataError(
                f"there are {many} {name} for {len(self.slides)} slides, expected one each: name "
                "the column that has them"
            )
        return values

    def dealt(self, rows: Sequence[int], shares: Sequence[float], key: str) -> list[list[int]]:
        """The rows of each part, those of a patient together.

        Raises:
            DataError: fewer sites than parts, or a part that is left empty.
        """
        names = sorted({self.patients[i] for i in rows})
        strata = [self.strata.get(name, "") for name in names]
        if self.sites is None:
            found = deal(names, strata, shares, key)
        else:
            sites = [self.sites[name] for name in names]
            wanted, there = sum(share > 0 for share in shares), sorted(set(sites))
            if len(there) < wanted:
                raise DataError(
                    f"{len(there)} sites ({', '.join(there[:5])}) cannot fill {wanted} parts that "
                    "share none: ask for fewer parts, or for site=mix"
                )
            found = deal_sites(sites, strata, shares, key)
        part_of = dict(zip(names, found.tolist(), strict=True))
        parts: list[list[int]] = [[] for _ in shares]
        for i in self.by_name(rows):
            parts[part_of[self.patients[i]]].append(i)
        for part, share in zip(parts, shares, strict=True):
            if share > 0 and not part:
                raise DataError(
                    f"{len(names)} patients leave a part empty that is to have {share:.3g} of them:"
                    " ask for a larger fraction or fewer folds, or for no such part (0)"
                )
        return parts


def group(slides: Sequence[str], patients: Sequence[str] | None) -> Grouped:
    """Raises DataError where a slide stands twice, or there are none."""
    names = [str(slide) for slide in slides]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or not names:
        raise DataError(
            f"slide '{min(twice)}' stands in {names.count(min(twice))} rows, expected one"
            if twice
            else "there are no slides to split"
        )
    grouped = Grouped(names, names)
    grouped.patients = [str(one) for one in grouped.checked("patients", patients or names)]
    return grouped


def one_each(name: str, grouped: Grouped, values: Sequence[Any]) -> dict[str, Any]:
    """The value of each patient. Raises DataError where slides of one state several."""
    found: dict[str, Any] = {}
    for patient, value in zip(grouped.patients, values, strict=True):
        if found.setdefault(patient, value) != value:
            raise DataError(
                f"patient '{patient}' has the {name} {found[patient]} and {value}, expected one: "
                "mend the table"
            )
    return found


def strata(
    grouped: Grouped,
    labels: Sequence[Any] | None,
    times: ArrayLike | None,
    events: ArrayLike | None,
    bins: int,
    parts: int,
) -> dict[str, str]:
    """What each patient counts as: event and quantile of time, else its class, else nothing."""
    if times is not None:
        return _time_strata(grouped, times, events, bins, parts)
    return {} if labels is None else _class_strata(grouped, labels)


def _class_strata(grouped: Grouped, labels: Sequence[Any]) -> dict[str, str]:
    """Class of each patient; where slides differ, that of the fewest patients (first by name)."""
    of: dict[str, set[str]] = {}
    for patient, label in zip(grouped.patients, grouped.checked("labels", labels), strict=True):
        of.setdefault(patient, set()).add(str(label))
    count = Counter(label for labels_of in of.values() for label in labels_of)
    return {patient: min(known, key=lambda v: (count[v], v)) for patient, known in of.items()}


def _time_strata(
    grouped: Grouped, times: ArrayLike, events: ArrayLike | None, bins: int, parts: int
) -> dict[str, str]:
    """Event and quantile of the time among those of equal event, of each patient.

    Quantiles are fewer where they would hold fewer patients than there are parts.
    """
    known, seen = times_and_events(times, np.ones(np.shape(times)) if events is None else events)
    grouped.checked("times", known.tolist())
    if np.isnan(known).any():
        name = grouped.slides[int(np.isnan(known).argmax())]
        raise DataError(f"slide '{name}' has no time (NaN): leave out slides without one")
    of = one_each("time and event", grouped, list(zip(known.tolist(), seen.tolist(), strict=True)))
    found = {}
    for event in (False, True):
        order = sorted((time, name) for name, (time, is_seen) in of.items() if is_seen == event)
        width = max(1, min(bins, len(order) // parts))
        for rank, (_, name) in enumerate(order):
            found[name] = f"{int(event)} {rank * width // len(order):03d}"
    return found


def check_classes(
    splits: Sequence[Split], labels: Sequence[Any] | None = None, events: ArrayLike | None = None
) -> None:
    """Raise DataError for a part of one class, or without an event, that nothing can be told from.

    Also for a training part that lacks a class. Parts without slides, of files, are left alone.

    Args:
        labels: (n,) classes. events: (n,) 1: seen; looked at where there are no labels.
    """
    if labels is None and events is not None and not np.asarray(events).astype(bool).any():
        raise DataError(
            "no patient of the table has had the event (1: seen, 0: censored): there is nothing to "
            "learn. Look at its column of events, or say which column tells who was censored: "
            "data.censorship=COLUMN, or split make --censorship COLUMN"
        )
    for fold, split in enumerate(splits):
        for part, rows in split.parts().items():
            whose = f"the {part} part of split {fold} ({len(rows)} slides)"
            if rows and labels is not None:
                _check_labels(whose, part == "train", split, rows, [str(v) for v in labels])
            elif rows and events is not None and not np.asarray(events).astype(bool)[rows].any():
                raise DataError(
                    f"{whose} has no patient whose event was seen: ask for fewer folds or a larger "
                    "fraction, and stratify"
                )


def _check_labels(
    whose: str, trains: bool, split: Split, rows: Sequence[int], labels: Sequence[str]
) -> None:
    there = {labels[i] for i in rows}
    lacks = sorted({labels[i] for part in split.parts().values() for i in part} - there)
    if len(there) == 1:
        raise DataError(
            f"{whose} is of one class, '{there.pop()}': ask for fewer folds or a larger fraction, "
            "stratify, and see whether other classes have patients enough"
        )
    if trains and lacks:
        raise DataError(
            f"{whose} has no slide of class '{lacks[0]}', which another part has: it has too few "
            "patients. Leave it out, or join it with another"
        )
