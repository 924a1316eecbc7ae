"""Runs of every method of the core and of wsizoo-plugin-mil: survival, by hazards and by Cox."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.toy_cohort import read_table, write_config
from wsizoo.registry import default
from wsizoo.train.config import load_config
from wsizoo.train.run import run_training

MODELS = {  # one of each aggregator -> what makes it small
    "abmil-uni": ["dim=8", "attention=4"],
    "mean-uni": ["dim=8"],
    "max-uni": ["dim=8"],
    "mean-instance-uni": ["dim=8"],
    "max-instance-uni": ["dim=8", "pool=one-patch"],
    "clam-sb-uni": ["dim=8", "attention=4"],
    "clam-mb-uni": ["dim=8", "attention=4"],
    "dsmil-uni": ["query=4"],
    "transmil-uni": ["dim=16"],
    "attmil-retccl": ["dim=8", "attention=4"],
    "acmil-ga-uni": ["dim=8", "attention=4"],
    "acmil-mha-uni": ["dim=8", "heads=2"],
    "dtfd-uni": ["dim=8", "attention=4", "distill=maxs"],
    "gcn-uni": ["dim=8"],
    "gat-uni": ["dim=8"],
    "transformer-uni": ["dim=8", "heads=2", "mlp=8"],
    "rrt-uni": ["dim=16", "regions=2"],
    "ilra-uni": ["dim=8"],
    "wikg-uni": ["dim=8"],
    "knn-uni": ["capacity=16", "k=2"],
    "mhim-abmil-uni": ["dim=8"],
    "mhim-dsmil-uni": ["dim=8"],
    "mhim-transmil-uni": ["dim=16"],
}
HEADS = {"survival": "accumulate", "cox": "batch_size"}  # Cox compares the slides of a step


def test_every_aggregator_of_both_is_among_them() -> None:
    registry = default()
    known = {
        one.name
        for one in registry.plugins.components("aggregator")
        if one.target.startswith(("wsizoo.mil.", "wsizoo_plugin_mil."))
    }
    assert {registry.model_spec(name).aggregator["name"] for name in MODELS} == known


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", MODELS)
def test_every_method_is_trained_for_survival(
    name: str, head: str, cohort: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "model": name,
        "recipe": "mil-survival",
        "overrides": [
            f"head={head}",
            "encoder={name: made-up, dim: 8}",
            *(f"aggregator.{option}" for option in MODELS[name]),
        ],
    }
    file = write_config(cohort, "survival", **changes)
    config = load_config(file, ["train.accumulate=1", f"train.{HEADS[head]}=4", "train.epochs=1"])
    run = run_training(config, tmp_path / "run")
    rows = read_table(run / "predictions.csv")
    risks = {float(row["risk"]) for row in rows if row["part"] == "test"}
    assert len(risks) > 1 and all(math.isfinite(risk) for risk in risks)
    measures = json.loads((run / "metrics.json").read_text())
    assert "c_index" in str(measures)
