"""What a linear probe reads from the built-in encoder, beside a plain colour histogram."""

import csv
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wsizoo.encoders.handcrafted import encode
from wsizoo.slides.patches import PatchGrid, read_batches
from wsizoo.slides.reader import open_slide

DATA = Path(os.environ.get("WSIZOO_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
MPP = 0.5
FOLDS, REPEATS, STRENGTH = 5, 10, 0.1
Features = NDArray[np.float64]


@dataclass(frozen=True)
class Tiles:
    """Labelled images: mpp in um/px; patch_size in px at 0.5 um/px, the most that lies in them."""

    name: str
    folder: str
    mpp: float
    patch_size: int
    goal: float | None = None


SETS = (
    Tiles("PCam", "pcam_tiles", 0.972, 186, 0.84),
    Tiles("Kather", "crc_tiles", 0.331, 148),
)


def run(scratch: Path) -> None:
    del scratch
    for tiles in SETS:
        reason = why_not(tiles)
        if reason:
            print(f"  linear probe on {tiles.name}: left out, {reason}")
            continue
        patches, labels = read(tiles)
        print(
            f"  linear probe on {tiles.name}: {len(labels)} patches of {tiles.patch_size} px at "
            f"{MPP} um/px (from {tiles.mpp}), {len(set(labels))} classes; balanced accuracy, "
            f"{FOLDS} folds, {REPEATS} repeats"
        )
        goal = f", goal {tiles.goal}" if tiles.goal else ""
        print(f"    handcrafted-he: {_told(*probe(handcrafted(patches), labels))}{goal}")
        print(f"    RGB histogram: {_told(*probe(histogram(patches), labels))}")


def _told(repeats: list[float], folds: list[float]) -> str:
    mean, over_repeats, over_folds = np.mean(repeats), np.std(repeats), np.std(folds)
    return f"{mean:.3f} +- {over_repeats:.3f} over repeats, {over_folds:.3f} over folds"


def why_not(tiles: Tiles) -> str | None:
    if find_spec("sklearn") is None:
        return "scikit-learn is not installed: pip install scikit-learn"
    if not (DATA / tiles.folder / "labels.csv").exists():
        return f"no '{DATA / tiles.folder}': set WSIZOO_DATA to the folder of the sample data"
    return None


def read(tiles: Tiles) -> tuple[NDArray[np.uint8], NDArray[np.str_]]:
    """Patches (N, P, P, 3) at 0.5 um/px, read as those of a slide are, and labels (N,)."""
    patches, labels = [], []
    with open(DATA / tiles.folder / "labels.csv", newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["file"])
    for row in rows:
        with open_slide(DATA / tiles.folder / row["file"], tiles.mpp) as slide:
            grid = PatchGrid.of(slide, MPP, tiles.patch_size)
            (batch,) = read_batches(slide, grid, np.zeros((1, 2), np.int64), 1, threads=1)
        patches.append(batch.pixels[0])
        labels.append(row["label"])
    return np.stack(patches), np.array(labels)


def handcrafted(patches: NDArray[np.uint8]) -> Features:
    return encode(torch.from_numpy(patches).permute(0, 3, 1, 2)).double().numpy()


def histogram(patches: NDArray[np.uint8], bins: int = 16) -> Features:
    """Square roots of the shares of 16 grey values of each channel, (N, 48)."""
    counts = [
        np.bincount(patch[..., channel].ravel() // (256 // bins), minlength=bins)
        for patch in patches
        for channel in range(3)
    ]
    return np.sqrt(np.reshape(counts, (len(patches), 3 * bins)) / patches[0, ..., 0].size)


def probe(
    features: Features, labels: NDArray[np.str_], repeats: int = REPEATS
) -> tuple[list[float], list[float]]:
    """Balanced accuracy of each repeat, all its folds together, and of each fold of all repeats."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    together, folds = [], []
    for seed in range(repeats):
        predicted = np.empty_like(labels)
        split = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        for train, test in split.split(features, labels):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=1000))
            predicted[test] = model.fit(features[train], labels[train]).predict(features[test])
            folds.append(balanced_accuracy_score(labels[test], predicted[test]))
        together.append(balanced_accuracy_score(labels, predicted))
    return together, folds
