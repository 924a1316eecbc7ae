"""ABMIL on the classic MIL sets, five times 10 folds, beside the published accuracy."""

import dataclasses
import functools
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

import wsizoo
from benchmarks._measure import load_now
from benchmarks._mil_sets import read_table
from wsizoo.splits.making import make_splits
from wsizoo.splits.parts import Split
from wsizoo.train.config import RunConfig, load_config
from wsizoo.train.one_run import settings_of
from wsizoo.train.trainer import train_model

DATA = Path(os.environ.get("WSIZOO_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
HOW = (
    "no {name}.npz (X, bag, y) or {name}.data in $WSIZOO_DATA/mil_benchmark; the UCI has MUSK as "
    "clean1.data and clean2.data, https://archive.ics.uci.edu/dataset/74 and 75"
)
HERE = ("train.workers=0", "train.device=cpu")  # the bags are in memory
# accuracy and its standard error as printed in Table 1 of Ilse, Tomczak and Welling, ICML 2018
PUBLISHED = {
    "musk1": {"abmil": (0.892, 0.040), "gated abmil": (0.900, 0.050)},
    "musk2": {"abmil": (0.858, 0.048), "gated abmil": (0.863, 0.042)},
    "elephant": {"abmil": (0.868, 0.022), "gated abmil": (0.857, 0.027)},
}


@dataclasses.dataclass(frozen=True)
class Fold:
    """One model of the many: trained on all folds of a run but one.

    Args:
        index: of the fold, counted through all runs.
    """

    path: Path
    config: RunConfig
    index: int


def run(jobs: int = 2, *changes: str) -> None:
    """All sets that are there.

    Args:
        jobs: processes; 1: this one. changes: of the recipe, as `"train.epochs=2"`.
    """
    if find_spec("lightning_fabric") is None:
        print("  left out: pip install 'wsizoo[train]'")
        return
    print(f"  accuracy in %, {jobs} processes of one thread, {load_now()}")
    with mapping(jobs) as each:
        for name, published in PUBLISHED.items():
            path = find(name)
            if path is None:
                print(f"  {name}: left out, {HOW.format(name=name)}")
                continue
            for model, (theirs, error) in published.items():
                start = time.perf_counter()
                folds = plan(path, model, changes)
                found = list(each(accuracy, folds))
                repeats = folds[0].config.split.repeats
                told = compared(np.reshape(found, (repeats, -1)).mean(1), theirs, error)
                print(f"  {name}, {model}: {told}; {time.perf_counter() - start:.0f} s", flush=True)


@contextmanager
def mapping(jobs: int) -> Iterator[Callable[..., Iterable[float]]]:
    """`map`, here or in processes of one thread each."""
    if jobs == 1:
        yield map
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield pool.map


def find(name: str) -> Path | None:
    """The table of this set, if it is there."""
    paths = (DATA / "mil_benchmark" / f"{name}.{suffix}" for suffix in ("npz", "data"))
    return next((path for path in paths if path.is_file()), None)


def plan(path: Path, model: str, changes: Iterable[str]) -> list[Fold]:
    """All folds of all runs, with the recipe's config for this set and model."""
    table = read_table(path)
    config = load_config(
        {"recipe": "mil-benchmark", "data": {"table": str(path)}}, [*HERE, *changes]
    )
    own = [
        f"encoder={{name: {table.name}, dim: {table.features.shape[1]}}}",
        f"aggregator.gated={str(model.startswith('gated')).lower()}",
        "head.classes=['0','1']",
    ]
    config = dataclasses.replace(config, overrides=[*config.overrides, *own])
    return [Fold(path, config, k) for k in range(config.split.repeats * config.split.folds)]


def accuracy(fold: Fold) -> float:
    """Share of the fold's bags whose class is told."""
    config, bags = fold.config, bags_of(fold.path)
    split = splits_of(fold.path, config.split.folds, config.split.repeats, config.split.seed)
    parts = split[fold.index]
    model = wsizoo.build(config.model, *config.overrides, seed=fold.index)
    with tempfile.TemporaryDirectory() as folder:
        shown = [bags[index] for index in parts.train]
        train_model(model, shown, None, settings_of(config, fold.index), Path(folder))
    with torch.inference_mode():
        right = [int(model(bags[i]).logits.argmax()) == bags[i].target["label"] for i in parts.test]
    return float(np.mean(right))


@functools.lru_cache(maxsize=1)
def bags_of(path: Path) -> list[wsizoo.Bag]:
    return read_table(path).bags()


@functools.lru_cache(maxsize=1)
def splits_of(path: Path, folds: int, repeats: int, seed: int) -> list[Split]:
    """Stratified by label, all bags but a fold's train."""
    bags = bags_of(path)
    return make_splits(
        [bag.slide_id for bag in bags],
        labels=[bag.target["label"] for bag in bags],
        kind="kfold",
        folds=folds,
        repeats=repeats,
        seed=seed,
        val_fraction=0.0,
    )


def compared(runs: Sequence[float], theirs: float, error: float) -> str:
    """Ours with the standard error of the mean over runs, beside theirs."""
    mean = float(np.mean(runs))
    own = float(np.std(runs, ddof=1)) / math.sqrt(len(runs)) if len(runs) > 1 else math.nan
    apart = (mean - theirs) / error
    within = "within" if abs(apart) <= 2 else "NOT within"
    return (
        f"{100 * mean:.1f} +- {100 * own:.1f}, published {100 * theirs:.1f} +- {100 * error:.1f}: "
        f"{apart:+.1f} published standard errors, {within} two"
    )
