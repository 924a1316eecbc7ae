"""A cohort: slides of a table, their patients, targets and feature files, checked as a whole."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from wsizoo.bag import Bag
from wsizoo.errors import DataError, NotFoundError
from wsizoo.formats.detect import contents_of
from wsizoo.formats.inspection import inspect
from wsizoo.formats.read import ReadAs, read_places, read_with_report
from wsizoo.formats.regrid import Rule
from wsizoo.slides.manifest import SLIDE_SUFFIXES
from wsizoo.sources import FEATURE_SUFFIXES
from wsizoo.tables import ALONE, Origins, Table, find_origins, read_table
from wsizoo.train.config import DataConfig
from wsizoo.train.digests import cohort_digests
from wsizoo.train.patch_labels import SUFFIXES as LABEL_SUFFIXES
from wsizoo.train.patch_labels import read_patch_labels
from wsizoo.train.problems import Problems, some
from wsizoo.train.row_targets import (
    LackingError,
    Target,
    UnreadableError,
    classes_of,
    target_columns,
    target_of,
)

IMAGES = SLIDE_SUFFIXES | {".png", ".jpg", ".jpeg"}


@dataclass(frozen=True)
class Record:
    """A slide of the table.

    Args:
        features: the file; None in a cohort without bags. instances: that of labels of patches.
        target: `label` (an index), `time` and `event`, or `value`; empty for segmentation.
        row: of the table, as text.
    """

    slide: str
    patient: str
    site: str | None
    features: Path | None
    target: Target
    row: Mapping[str, str]
    instances: Path | None = None

    @property
    def file(self) -> Path:
        """Of the features. Raises DataError: none, in a cohort without bags."""
        if self.features is None:
            raise DataError(f"slide '{self.slide}' has no features: say data.features=FOLDER")
        return self.features


@dataclass(frozen=True, eq=False)
class Cohort:
    """Slides in the order of the table.

    Args:
        classes: of classification and segmentation, in order.
        dropped: (slide, reason) of those that were left out on request.
        of_patients: where patients are from, to be shown.
    """

    config: DataConfig
    task: str
    records: tuple[Record, ...]
    classes: tuple[str, ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()
    of_patients: str = ALONE

    def __len__(self) -> int:
        return len(self.records)

    @property
    def slides(self) -> list[str]:
        return [record.slide for record in self.records]

    @property
    def patients(self) -> list[str]:
        return [record.patient for record in self.records]

    @property
    def sites(self) -> list[str] | None:
        """Of each slide; None where neither a column nor barcodes tell them."""
        found = [r.site for r in self.records if r.site is not None]
        return found or None

    @property
    def labels(self) -> list[str] | None:
        """The class of each slide; None where slides have none."""
        if self.task != "classification":
            return None
        return [self.classes[int(record.target["label"])] for record in self.records]

    def values(self, key: str) -> list[float]:
        """`time`, `event`, `value` or `label` of each slide."""
        return [record.target[key] for record in self.records]

    @property
    def digest(self) -> str:
        """sha256 hex of task, classes, and each slide with patient and target, in any order."""
        rows = sorted((r.slide, r.patient, sorted(r.target.items())) for r in self.records)
        text = json.dumps([self.task, self.classes, rows])
        return hashlib.sha256(text.encode()).hexdigest()

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """Of targets, features and labels of patches, as `cohort_digests` names them."""
        return cohort_digests(self)

    @property
    def at_odds(self) -> dict[str, list[str]]:
        """Patients whose slides have different targets -> those slides."""
        slides: dict[str, list[Record]] = {}
        for record in self.records:
            slides.setdefault(record.patient, []).append(record)
        return {
            patient: [record.slide for record in own]
            for patient, own in slides.items()
            if any(record.target != own[0].target for record in own)
        }

    def bag(self, index: int) -> Bag:
        """The features of a slide with its target, read now. Raises DataError, FingerprintError."""
        record = self.records[index]
        bag = read_with_report(record.file, self.reading, record.slide).bag
        if not len(bag):
            raise DataError(f"'{record.file}' holds no patches")
        target: dict[str, Any] = dict(record.target)
        if self.task == "segmentation":
            target["instances"] = self._labels_of_patches(record, bag)
        return bag.replace(target=target)

    def labels_of_patches(self, index: int) -> Any:
        """(N,) as the bag's target `instances`; the features are not read. Raises as `bag`."""
        record = self.records[index]
        return self._labels_of_patches(record, read_places(record.file, self.reading, record.slide))

    def _labels_of_patches(self, record: Record, bag: Bag) -> Any:
        if record.instances is not None:
            return read_patch_labels(record.instances, bag, self.classes)
        if "instances" not in (bag.target or {}):
            raise DataError(
                f"'{record.file}' holds no labels of patches; say where they lie: "
                "data.instances=FOLDER"
            )
        return cast(Mapping[str, Any], bag.target)["instances"]

    @property
    def reading(self) -> ReadAs:
        """What files of other tools do not say themselves."""
        return _reading(self.config)

    def sizes(self) -> list[int]:
        """The number of patches of each slide, as its file states it; features are not read."""
        return [contents_of(r.file, self.config.format)[1].n for r in self.records]


def _reading(config: DataConfig) -> ReadAs:
    rule = cast(Rule, config.collisions)
    return ReadAs(config.encoder, config.slide_mpp, config.coords_mpp, rule, config.format)


def read_cohort(
    config: DataConfig,
    task: str | None = None,
    classes: Sequence[str] | None = None,
    *,
    bags: bool = True,
) -> Cohort:
    """The slides of a table, everything that is wrong with them told at once.

    Args:
        task, classes: of the model, where the config states none.
        bags: with feature files; without, what needs the table alone can be done.

    Raises:
        NotFoundError: no such table or folder.
        DataError: a column that is not there (the near one named); slides without features or
            target (unless they are to be dropped), twice, or that cannot be understood; a patient
            whose slides contradict each other.
    """
    chosen, table = config.task or task or "", read_table(config.table)
    _check_columns(table, config, chosen)
    names = [slide_name(row[config.slide]) for row in table.rows]
    origins = origins_of(table, names, config)
    classes = config.classes or classes or ()
    if chosen == "classification":
        classes = classes_of(table, config.label, classes)
    files = FeatureFiles(config) if bags else None
    records, dropped, problems = {}, [], Problems()
    for i, (line, row, name) in enumerate(zip(table.lines, table.rows, names, strict=True)):
        if not name:
            problems.add("rows name no slide", f"line {line}")
        elif name in records:
            problems.add("stand in the table a second time", f"{name} (line {line})")
        else:
            try:
                records[name] = _record(i, name, row, origins, config, chosen, classes, files)
            except UnreadableError as error:
                problems.add(str(error), name)
            except LackingError as error:
                if config.missing == "error":
                    problems.add(str(error), name)
                dropped.append((name, str(error)))
    _add_unreadable(problems, records.values(), config)
    hint = "To leave out slides without features or target: data.missing=drop" if dropped else ""
    problems.raise_if_any(f"slides of table '{table.path}'", hint)
    if not records:
        raise DataError(f"table '{table.path}': all {len(dropped)} slides {dropped[0][1]}")
    kept, left_out = tuple(records.values()), tuple(dropped)
    cohort = Cohort(config, chosen, kept, tuple(classes), left_out, origins.of_patients)
    _check_patients(cohort)
    return cohort


def _add_unreadable(problems: Problems, records: Iterable[Record], config: DataConfig) -> None:
    """Where something is wrong already: what is wrong with the files of the others."""
    for record in records if problems.slides else ():
        if record.features is None:
            continue
        found = inspect(record.features, _reading(config))
        if not found.complete:
            problems.add(f"have a file that cannot be read ({found.reason})", record.slide)


def slide_name(cell: str) -> str:
    """The name of a slide, without folders and without the suffix of an image or feature file."""
    name = PurePosixPath(cell.replace("\\", "/")).name
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in IMAGES | FEATURE_SUFFIXES else name


def _record(
    i: int,
    name: str,
    row: Mapping[str, str],
    origins: Origins,
    config: DataConfig,
    task: str,
    classes: Sequence[str],
    files: FeatureFiles | None,
) -> Record:
    target = target_of(row, config, task, classes)
    patient = origins.patients[i]
    if not patient:
        raise UnreadableError(f"have no patient (column {origins.column})")
    instances = None
    if task == "segmentation" and config.instances is not None and files is not None:
        places = [Path(config.instances) / f"{name}{suffix}" for suffix in LABEL_SUFFIXES]
        instances = next((place for place in places if place.is_file()), None)
        if instances is None:
            wanted = " or ".join(f"SLIDE{suffix}" for suffix in LABEL_SUFFIXES)
            raise LackingError(f"have no labels of patches in '{config.instances}' ({wanted})")
    file = files.of(name, row) if files else None
    site = origins.sites[i] if origins.sites is not None else None
    return Record(name, patient, site, file, target, row, instances)


class FeatureFiles:
    """The feature files of a folder by the names of slides."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.folder = Path(config.features or Path(config.table).parent)
        if config.features is None and config.file is None:
            raise DataError(
                "data.features names no folder with feature files: data.features=FOLDER"
            )
        if not self.folder.is_dir():
            raise NotFoundError(f"No folder of features at '{self.folder}'")
        self.named: dict[str, list[Path]] = {}
        for file in [] if config.file else sorted(self.folder.iterdir()):
            if file.suffix.lower() in FEATURE_SUFFIXES:
                self.named.setdefault(file.name.removesuffix(file.suffix), []).append(file)

    def of(self, slide: str, row: Mapping[str, str]) -> Path:
        """The file of a slide. Raises LackingError, UnreadableError."""
        if self.config.file:
            file = self.folder / row[self.config.file]
            if not row[self.config.file] or not file.exists():
                raise LackingError(f"have no feature file (column {self.config.file})")
            return file
        found = self.named.get(slide) or self.named.get(row[self.config.slide]) or []
        if len(found) > 1:
            both = " and ".join(f"SLIDE{file.suffix}" for file in found)
            raise UnreadableError(f"have several feature files in '{self.folder}' ({both})")
        if not found:
            example = next(iter(self.named.values()), None)
            holds = f"holds for instance {example[0].name}" if example else "holds no feature file"
            raise LackingError(f"have no feature file in '{self.folder}', which {holds}")
        return found[0]


def origins_of(table: Table, names: Sequence[str], config: DataConfig) -> Origins:
    """Patients and sites; the default column of patients is one that may be called otherwise."""
    told = None if config.patient == DataConfig.patient else config.patient
    keys = ("data.patient", "data.site")
    return find_origins(table, names, told, config.site, keys, alone=config.patient is None)


def _check_columns(table: Table, config: DataConfig, task: str) -> None:
    table.require(config.slide, "data.slide")
    for key, column in target_columns(config, task).items():
        table.require(column, f"data.{key}")
    if config.file is not None:
        table.require(config.file, "data.file")


def _check_patients(cohort: Cohort) -> None:
    """Slides of a patient may differ in what is said of slides, where each is a sample."""
    if cohort.task != "survival" and cohort.config.patient_slides == "each":
        return
    problems = Problems()
    for patient, slides in cohort.at_odds.items():
        problems.add("have slides with different targets", f"{patient} ({some(slides)})")
    hint = "Where targets are of slides: data.patient_slides=each"
    problems.raise_if_any(
        f"patients of table '{cohort.config.table}'", hint if cohort.task != "survival" else ""
    )
