"""Runs that write what a training run leaves, without training; other processes import it too."""

import csv
import json
import os
import time
from pathlib import Path

import numpy as np

from wsizoo.files import write_csv, write_json
from wsizoo.train.config import RunConfig


def pretend(config: RunConfig, out: Path) -> None:
    """A run directory whose numbers depend on config, seed and split alone."""
    with open(str(config.split.file), newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == "test"]
    rng = np.random.default_rng([config.seeds[0], len(" ".join(config.overrides))])
    strength = 3.0 if not config.overrides else 0.5
    predictions = []
    for row in sorted(rows, key=lambda row: row["slide"]):
        label = int(row["slide"][1:]) % 2
        score = 1 / (1 + np.exp(-strength * (label - 0.5) - rng.normal()))
        predictions.append(
            {
                "slide": row["slide"], "patient": row["slide"], "part": "test",
                "label": ("normal", "tumour")[label], "predicted": "tumour",
                "p_normal": round(1 - score, 7), "p_tumour": round(score, 7),
            }
        )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "predictions.csv", predictions, list(predictions[0]))
    auc = {"value": round(float(rng.uniform(0.5, 1)), 6), "low": 0.4, "high": 1.0, "n": len(rows)}
    write_json(out / "metrics.json", {"level": "slide", "test": {"auc": auc}})
    record = {"state": "finished", "task": "classification", "classes": ["normal", "tumour"]}
    record |= {"parameters": 1000, "seconds": 2.0, "peak_mb": 300.5, "seconds_per_slide": 0.002}
    write_json(out / "run.json", record)
    log(out, "ran")


def pretend_slowly(config: RunConfig, out: Path) -> None:
    time.sleep(0.3)
    pretend(config, out)


def fail_for_max(config: RunConfig, out: Path) -> None:
    """As `pretend`, but one model fails as long as the file `broken` stands beside the cells."""
    if (
        any('"max"' in text for text in config.overrides)
        and (out.parent.parent / "broken").exists()
    ):
        raise ValueError("no luck")
    pretend(config, out)


def die_for_max(config: RunConfig, out: Path) -> None:
    if any('"max"' in text for text in config.overrides):
        os._exit(9)
    pretend(config, out)


def log(out: Path, what: str) -> None:
    """A line a call, in the benchmark's folder."""
    with open(out.parent.parent / "calls.log", "a", encoding="utf-8") as file:
        file.write(json.dumps([what, out.name]) + "\n")


def calls(folder: Path) -> list[str]:
    """Names of the cells that were run, in the order in which they ended."""
    file = folder / "calls.log"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [json.loads(line)[1] for line in lines]
