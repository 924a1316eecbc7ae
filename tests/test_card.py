"""wsizoo.card: measured results as a table and as the Hub's model-index."""

from typing import Any

import yaml

from wsizoo.card import composition, model_card

SPEC = {
    "summary": "a toy",
    "licence": "MIT",
    "source": "a test",
    "aggregator": {"name": "abmil"},
    "head": {"name": "classification"},
}


def card(training: dict[str, Any]) -> tuple[dict[str, Any], str]:
    config = {"name": "toy", "spec": SPEC, "trained": True, "fingerprint": {}, "training": training}
    _, front, body = model_card(config).split("---\n", 2)
    return yaml.safe_load(front), body


def test_measures_stand_beside_their_intervals() -> None:
    values = {
        "auc": {"value": 0.91, "low": 0.8, "high": 0.97, "n": 40},
        "ece": {"value": 0.125, "low": None, "high": None, "n": 40},
        "recall_of_in situ": {"value": 0.75, "low": None, "high": None, "n": 40},
        "auprc": {"value": None, "low": None, "high": None, "n": 40},
    }
    metrics = {"data": "My Table", "part": "test", "level": "patient", "values": values}
    front, body = card({"metrics": metrics, "intended_use": "Research."})
    assert "| Metric (test part, by patient) | Value | 95 % interval | n |" in body
    assert "| auc | 0.910 | 0.800 to 0.970 | 40 |" in body
    assert "| ece | 0.125 | - | 40 |" in body
    assert "| auprc | - | - | 40 |" in body
    assert "\n\nResearch.\n" in body and "- metrics" not in body and "- intended_use" not in body
    (listed,) = front["model-index"]
    assert listed["results"] == [
        {
            "task": {"type": "image-classification"},
            "dataset": {"name": "My Table", "type": "my-table"},
            "metrics": [
                {"type": "auc", "name": "auc (test)", "value": 0.91},
                {"type": "ece", "name": "ece (test)", "value": 0.125},
                {"type": "recall", "name": "recall_of_in situ (test)", "value": 0.75},
            ],
        }
    ]


def test_resamples_without_the_measure_are_told_where_they_are_many() -> None:
    one = {"value": 0.91, "low": 0.8, "high": 0.97, "n": 16, "resamples": 2000}
    values = {"few": {**one, "undefined": 20}, "many": {**one, "undefined": 21}}
    metrics = {"data": "t", "part": "test", "level": "patient", "values": values}
    _, body = card({"metrics": metrics})
    assert "| few | 0.910 | 0.800 to 0.970 | 16 |" in body
    assert "| many | 0.910 | 0.800 to 0.970 (21 of 2000 resamples left out) | 16 |" in body


def test_an_interval_tells_where_it_is_from_unless_from_a_bootstrap() -> None:
    values = {
        "accuracy": {"value": 1.0, "low": 0.8, "high": 1.0, "n": 16, "method": "Clopper-Pearson"},
        "kappa": {"value": 1.0, "low": None, "high": None, "n": 16, "method": "none here"},
    }
    _, body = card({"metrics": {"data": "t", "part": "test", "level": "slide", "values": values}})
    assert "| accuracy | 1.000 | 0.800 to 1.000 (Clopper-Pearson) | 16 |" in body
    assert "| kappa | 1.000 | - (none here) | 16 |" in body


def test_metrics_of_another_shape_are_told_as_they_are() -> None:
    front, body = card({"metrics": "AUC 0.9"})
    assert "- metrics: AUC 0.9" in body and "model-index" not in front
    front, body = card({"metrics": {"auc": 0.9}})
    assert "- metrics: {'auc': 0.9}" in body and "model-index" not in front


def test_a_licence_that_nobody_stated_is_told_to_be_unknown() -> None:
    config = {"name": "toy", "trained": True, "fingerprint": {}, "training": {}}
    told = model_card({**config, "spec": {**SPEC, "licence": "unknown"}})
    assert "\nlicense: unknown\n" in told
    assert "nobody has stated" in told
    assert "nobody has stated" not in model_card({**config, "spec": SPEC})


def test_parts_are_named_from_the_encoder_of_the_features_on() -> None:
    spec = {**SPEC, "encoder": {"name": "uni"}}
    assert composition(spec, {"encoder": "resnet50"}) == ["resnet50", "abmil", "classification"]
    assert composition(spec, {}) == ["uni", "abmil", "classification"]
    assert composition(SPEC, {}) == ["abmil", "classification"]
