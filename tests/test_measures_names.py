"""wsizoo.measures.names: one table of what measures are called and which way they point."""

import pytest

from tests.run_folders import MEASURES
from wsizoo.measures.names import BESIDE, LOWER_IS_BETTER, MAIN, TITLES, title
from wsizoo.train.measuring import ALONE_OR_ANY, any_resample

ROWS = {
    "classification": [{"label": "a", "p_a": 0.7, "p_b": 0.3}],
    "survival": [{"time": 3, "event": 1, "risk": 0.2, "s_0": 0.9, "s_1": 0.5}],
    "regression": [{"value": 1, "predicted": 2}],
    "segmentation": [{"tp": 1, "fp": 0, "fn": 1}],
}


@pytest.mark.parametrize("task", ALONE_OR_ANY)
def test_what_speaks_for_a_task_is_measured_and_the_main_one_is_better_larger(task: str) -> None:
    found = any_resample(ROWS[task], task, classes=["a", "b"], edges=[2])
    assert {MAIN[task], *BESIDE[task]} <= set(found)
    assert set(MEASURES[task]) <= set(found), "what tests of reports draw"
    assert MAIN[task] not in LOWER_IS_BETTER


def test_every_named_measure_is_one() -> None:
    known = {
        name
        for task, rows in ROWS.items()
        for name in any_resample(rows, task, classes=["a", "b"], edges=[2])
    }
    assert set(TITLES) | LOWER_IS_BETTER <= known
    assert (title("r2"), title("recall_of_in situ")) == ("R²", "Recall of in situ")
