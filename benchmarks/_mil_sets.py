"""The literature's classic MIL sets: instance tables, and as feature files that wsizoo reads."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import wsizoo
from wsizoo.errors import DataError


@dataclass(frozen=True)
class InstanceTable:
    """Instances that belong to labelled bags.

    Args:
        name: of the set.
        features: (N, D) float32.
        bag: (N,) int64, the bag of each instance, 0 to n - 1.
        labels: (n,) 0 or 1, of each bag.
    """

    name: str
    features: NDArray[np.float32]
    bag: NDArray[np.int64]
    labels: NDArray[np.generic]

    def __post_init__(self) -> None:
        if len(self.features) != len(self.bag):
            raise DataError(
                f"'{self.name}' has {len(self.features)} instances and names the bag of "
                f"{len(self.bag)}"
            )
        if not np.array_equal(np.unique(self.bag), np.arange(len(self.labels))):
            raise DataError(
                f"'{self.name}' labels {len(self.labels)} bags, but its instances are of other "
                f"ones: expected each of 0 to {len(self.labels) - 1}"
            )
        if not np.isin(self.labels, (0, 1)).all():
            raise DataError(f"'{self.name}' has labels {np.unique(self.labels)}, expected 0 and 1")

    def bags(self) -> list[wsizoo.Bag]:
        """One bag each, in order, with its label as target."""
        return [
            wsizoo.Bag(
                torch.from_numpy(self.features[self.bag == index]),
                slide_id=f"{self.name}-{index:03d}",
                target={"label": int(label)},
            )
            for index, label in enumerate(self.labels)
        ]


def read_table(path: Path) -> InstanceTable:
    """An instance table: NAME.npz with X (N, D), bag (N,) and y (n,), or NAME.data of the UCI.

    Raises:
        DataError: another file, or content that is neither.
    """
    readers = {".npz": _read_npz, ".data": _read_c45}
    if path.suffix not in readers:
        raise DataError(f"'{path}' is no instance table, expected {' or '.join(readers)}")
    try:
        features, bag, labels = readers[path.suffix](path)
    except (KeyError, ValueError, IndexError) as error:
        raise DataError(f"'{path}' is no instance table: {error}") from error
    return InstanceTable(path.stem, features.astype(np.float32), bag.astype(np.int64), labels)


Columns = tuple[NDArray[np.generic], NDArray[np.generic], NDArray[np.generic]]


def _read_npz(path: Path) -> Columns:
    with np.load(path, allow_pickle=False) as file:
        return file["X"], file["bag"], file["y"]


def _read_c45(path: Path) -> Columns:
    """Rows NAME_OF_BAG,NAME_OF_INSTANCE,x_1,...,x_D,CLASS. with bags in the order of their names.

    A bag is positive if one of its instances is.
    """
    rows = [line.rstrip(".").split(",") for line in path.read_text().split()]
    names, bag = np.unique([row[0] for row in rows], return_inverse=True)
    numbers = np.array([row[2:] for row in rows], np.float64)
    labels = np.zeros(len(names))
    np.maximum.at(labels, bag, numbers[:, -1])
    return numbers[:, :-1], bag, labels


def write_cohort(table: InstanceTable, folder: Path) -> Path:
    """A feature file a bag in `folder/features`; returns `folder/table.csv`: slide,label.

    The name of the set stands for the encoder.
    """
    encoder = wsizoo.Fingerprint(encoder=table.name, declared=True)
    for bag in table.bags():
        wsizoo.write_bag(bag.replace(encoder=encoder), folder / "features" / f"{bag.slide_id}.h5")
    path = folder / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["slide", "label"])
        writer.writerows((bag.slide_id, bag.target["label"]) for bag in table.bags())
    return path
