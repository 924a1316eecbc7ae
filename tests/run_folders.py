"""Folders as `wsizoo train` leaves them, with made-up predictions, for tests of reports."""

import json
from pathlib import Path

import numpy as np

from wsizoo.files import write_csv, write_json, write_text

MEASURES = {
    "classification": ("accuracy", "balanced_accuracy", "macro_f1", "auc", "auprc", "brier", "ece"),
    "survival": ("c_index", "time_dependent_auc", "integrated_brier"),
    "regression": ("mae", "rmse", "r2", "pearson", "spearman"),
    "segmentation": ("dice_per_slide", "iou_per_slide", "dice_pooled", "iou_pooled"),
}
CONFIG = """model: abmil-uni
recipe: baselines
data: {{table: slides.csv, features: features, patient: patient}}
split: {{kind: kfold, folds: 5}}
train: {{epochs: 12}}
note: {note}
"""


def classification_row(rng, classes):
    label = rng.integers(len(classes))
    logits = rng.normal(size=len(classes)) + 1.4 * (np.arange(len(classes)) == label)
    shares = np.exp(logits) / np.exp(logits).sum()
    row = {"label": classes[label], "predicted": classes[int(shares.argmax())]}
    return row | {f"p_{name}": float(f"{p:.7g}") for name, p in zip(classes, shares, strict=True)}


def survival_row(rng, _):
    risk = rng.normal()
    until, last = rng.exponential(900 * np.exp(-0.8 * risk)), rng.uniform(200, 3000)
    row = {"time": round(min(until, last), 1), "event": int(until < last), "risk": round(risk, 5)}
    steps = np.cumprod(np.full(4, 1 / (1 + np.exp(risk - 1.5))))
    return row | {f"s_{t}": float(f"{s:.7g}") for t, s in enumerate(steps)}


def regression_row(rng, _):
    value = rng.normal(50, 12)
    return {"value": round(value, 3), "predicted": round(value + rng.normal(2, 6), 3)}


def segmentation_row(rng, _):
    tp, fp, fn = (int(n) for n in rng.integers([10, 0, 0], [400, 120, 160]))
    wrong = fp + fn
    overlaps = {"dice": 2 * tp / (2 * tp + wrong), "iou": tp / (tp + wrong)}
    return overlaps | {"tp": tp, "fp": fp, "fn": fn}


ROWS = {
    "classification": classification_row,
    "survival": survival_row,
    "regression": regression_row,
    "segmentation": segmentation_row,
}


def write_run(
    folder: Path,
    task: str = "classification",
    classes: tuple[str, ...] = ("normal", "tumour"),
    *,
    n: int = 60,
    seed: int = 0,
    slide: str = "slide",
    parts: tuple[str, ...] = ("test", "val"),
    level: str = "patient",
    epochs: int = 12,
) -> Path:
    """A finished run: each part has n patients, every tenth of them two slides."""
    rng = np.random.default_rng(seed)
    slides, patients = [], []
    for part in parts:
        for i in range(n):
            row = ROWS[task](rng, classes)
            who = {"patient": f"P{i:03d}-{part}", "part": part}
            patients.append({**who, **row, "slides": 1 + (i % 10 == 0)})
            slides += [
                {"slide": f"{slide}-{part}-{i:03d}{copy}", **who, **row}
                for copy in ("ab" if i % 10 == 0 else "a")
            ]
    named = {"classification": classes, "segmentation": ("normal", "tumour")}.get(task)
    write_csv(folder / "predictions.csv", slides, list(slides[0]))
    write_csv(folder / "predictions_patients.csv", patients, list(patients[0]))
    write_json(folder / "metrics.json", metrics(rng, task, parts, n, level))
    write_json(folder / "run.json", facts(task, named, seed))
    environment = {"python": "3.12.1", "wsizoo": "0.1.0", "libraries": {"torch": "2.9.0"}}
    write_json(folder / "environment.json", {**environment, "plugins": {}, "platform": "Linux"})
    write_text(folder / "config.yaml", CONFIG.format(note=json.dumps(slide)))
    write_csv(folder / "epochs.csv", learning(rng, epochs), list(learning(rng, 1)[0]))
    return folder


def metrics(rng, task, parts, n, level):
    found = {"level": level}
    for part in parts:
        found[part] = {}
        for name in MEASURES[task]:
            value = float(rng.uniform(0.7, 0.95))
            ends = {"low": value - 0.06, "high": min(1.0, value + 0.05)}
            found[part][name] = {"value": value, **ends, "n": n, "patients": n, "level": 0.95}
    return found


def facts(task, classes, seed):
    return {
        "state": "finished",
        "task": task,
        "classes": None if classes is None else list(classes),
        "model": "abmil-uni",
        "parameters": 526_000,
        "split_digest": "a" * 64,
        "data_digest": "b" * 64,
        "encoder": {"name": "uni", "mpp": 0.5},
        "seconds": 83.4,
        "peak_mb": 812.5,
        "slides": {"train": 300, "val": 66, "test": 66},
        "seed": seed,
        "fold": 0,
        "best_epoch": 7,
        "version": "0.1.0",
    }


def learning(rng, epochs):
    return [
        {
            "epoch": i + 1,
            "lr": 1e-4,
            "train_loss": 0.7 * 0.85**i,
            "val_loss": 0.7 * 0.9**i + 0.02 * max(0, i - 6) + 0.01 * rng.normal(),
            "val_auc": 0.9 - 0.3 * 0.8**i,
            "seconds": 4.2,
        }
        for i in range(epochs)
    ]


def write_runs(
    folder: Path, task="classification", classes=("normal", "tumour"), **options
) -> Path:
    """Two folds by two seeds."""
    runs, names = [], [f"fold{fold}-seed{seed}" for fold in (0, 1) for seed in (0, 1)]
    for index, name in enumerate(names):
        write_run(folder / name, task, classes, seed=index, **options)
        runs.append(json.loads((folder / name / "metrics.json").read_text())["test"])
    values = {k: [run[k]["value"] for run in runs] for k in MEASURES[task]}
    overall = {
        "runs": names,
        "mean": {k: float(np.mean(v)) for k, v in values.items()},
        "std": {k: float(np.std(v, ddof=1)) for k, v in values.items()},
    }
    overall["interval"] = {
        k: {"value": v, "low": v - 0.02, "high": v + 0.02} for k, v in overall["mean"].items()
    }
    write_json(folder / "metrics.json", overall)
    write_text(folder / "config.yaml", CONFIG.format(note="several"))
    return folder
