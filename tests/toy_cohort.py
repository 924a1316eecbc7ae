"""A cohort of made-up slides, its table and a small model, written to a folder; for tests."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from wsizoo.bag import Bag
from wsizoo.fingerprint import Fingerprint
from wsizoo.slides.store import write_bag

DIM = 8
SPACING = 224.0
COLUMNS = ("slide", "patient", "site", "label", "time", "event", "value", "part")
RECORD = {
    "summary": "a toy",
    "licence": "MIT",
    "source": "a test",
    "encoder": {"name": "made-up", "dim": DIM},
    "aggregator": {"name": "abmil", "dim": 6, "attention": 4, "dropout": 0.1},
}
HEADS = {
    "classification": {"name": "classification"},
    "survival": {"name": "survival"},
    "regression": {"name": "regression"},
    "segmentation": {"name": "segmentation", "one_logit": True},
}


def write_cohort(folder: Path, slides: int = 16, per_patient: int = 1) -> None:
    """`slides.csv`, `features/`, `patches/` (labels) of slides; the class shifts features."""
    rows = []
    for i in range(slides):
        patient = i // per_patient
        label = patient % 2
        generator = torch.Generator().manual_seed(i)
        n = 5 + i % 4
        features = torch.randn(n, DIM, generator=generator) + label
        bag = made(features)
        write_bag(bag, folder / "features" / f"s{i:02}.h5")
        save_labels(folder / "patches" / f"s{i:02}.csv", [(i + j) % 3 == 0 for j in range(n)])
        rows.append(
            {
                "slide": f"s{i:02}",
                "patient": f"P{patient:02}",
                "site": "AB"[patient // 2 % 2],
                "label": ("benign", "malign")[label],
                "time": 3.0 + 2 * patient - 5 * label + 0.1 * (patient % 3),
                "event": int(patient % 3 != 0),
                "value": label + 0.25 * (patient % 4),
                "part": ("train", "train", "val", "test")[patient // 2 % 4],
            }
        )
    write_table(folder / "slides.csv", rows)


def made(features: torch.Tensor, encoder: str = "made-up") -> Bag:
    n = len(features)
    coords = torch.stack([torch.arange(n) % 3, torch.arange(n) // 3], 1) * int(SPACING)
    return Bag(features, coords, spacing=SPACING, mpp=0.5, encoder=Fingerprint(encoder=encoder))


def save_labels(file: Path, labels: list[bool]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("label\n" + "".join(f"{int(label)}\n" for label in labels))


def write_table(file: Path, rows: list[dict[str, Any]]) -> None:
    with open(file, "w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def read_table(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def write_config(folder: Path, task: str = "classification", **changes: Mapping[str, Any]) -> Path:
    """`toy.yaml`, a model, and `train.yaml`, a run of a few epochs."""
    (folder / "toy.yaml").write_text(yaml.safe_dump({**RECORD, "head": HEADS[task]}))
    config: dict[str, Any] = {
        "model": str(folder / "toy.yaml"),
        "data": {"table": "slides.csv", "features": "features", "bins": 2},
        "split": {"kind": "column", "column": "part"},
        "optimiser": {"lr": 1e-2},
        "train": {"epochs": 2, "workers": 0, "device": "cpu"},
    }
    if task == "segmentation":
        config["data"] |= {"instances": "patches", "classes": ["normal", "tumour"]}
    for key, value in changes.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, Mapping) else value
    file = folder / "train.yaml"
    file.write_text(yaml.safe_dump(config))
    return file
