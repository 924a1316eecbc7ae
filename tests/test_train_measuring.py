"""wsizoo.train.measuring: rows of predictions, measured as one run and as several."""

from typing import Any

import numpy as np
import pytest

from wsizoo.measures.runs import Run, measure_runs
from wsizoo.train.measuring import any_resample, labels_of_two, measure_rows

RNG = np.random.default_rng(0)
EDGES = [10.0, 20.0]


def classified() -> dict[str, Any]:
    p = float(RNG.uniform(0.05, 0.95))
    label = "tumour" if RNG.random() < p else "normal"
    return {"label": label, "p_normal": 1 - p, "p_tumour": p}


def survived() -> dict[str, Any]:
    s = np.cumprod(RNG.uniform(0.5, 0.95, 3)).tolist()
    time, event = float(RNG.exponential(20)), int(RNG.random() < 0.6)
    return {"time": time, "event": event, "risk": -sum(s)} | {f"s_{i}": v for i, v in enumerate(s)}


def valued() -> dict[str, Any]:
    value = float(RNG.normal())
    return {"value": value, "predicted": value + float(RNG.normal())}


def counted() -> dict[str, Any]:
    return dict(zip(("tp", "fp", "fn"), RNG.integers(1, 30, 3).tolist(), strict=True))


@pytest.mark.parametrize(
    ("task", "made"),
    [
        ("classification", classified),
        ("survival", survived),
        ("regression", valued),
        ("segmentation", counted),
    ],
)
def test_runs_that_predict_the_same_know_no_more_than_one_of_them(task: str, made: Any) -> None:
    """Pooled or averaged, three runs on the same patients have the interval of one."""
    rows = [{"patient": f"p{i % 30}", **made()} for i in range(40)]  # ten patients have two slides
    options: Any = {"classes": ["normal", "tumour"], "edges": EDGES}
    one = measure_rows(rows, task, **options, resamples=200)
    pooled = measure_rows(rows * 3, task, **options, resamples=200)
    run = Run([row["patient"] for row in rows], any_resample(rows, task, **options))
    mean = measure_runs([run] * 3, resamples=200)
    for name, alone in one.items():
        for several in (pooled[name], mean[name]):
            assert several.value == pytest.approx(alone.value), name
            assert (several.low, several.high) == pytest.approx((alone.low, alone.high)), name
            assert (several.patients, several.method) == (alone.patients, alone.method), name
        assert alone.low < alone.high, name


def test_a_patient_of_two_classes_has_no_label() -> None:
    rows = [{"patient": "a", "label": "x"}, {"patient": "b", "label": "y"}] * 2
    assert labels_of_two(rows, "classification", ["x", "y"]) == {"a": 0, "b": 1}
    mixed = [*rows, {"patient": "a", "label": "y"}]
    assert labels_of_two(mixed, "classification", ["x", "y"]) is None
    assert labels_of_two(rows, "classification", ["x", "y", "z"]) is None
