import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from wsizoo.errors import DataError
from wsizoo.measures.metrics import accuracy
from wsizoo.measures.probabilities import classification_measures, tuned_threshold
from wsizoo.measures.weighted import value_of

BOTH = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 9)), min_size=2, max_size=25).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


@settings(deadline=None)
@given(BOTH, st.sampled_from(["youden", "f1"]))
def test_no_threshold_is_better_than_the_tuned_one(rows: list[tuple[int, int]], by: str) -> None:
    labels, tenths = np.array(rows).T
    scores = tenths / 10

    def worth(threshold: float) -> float:
        predicted = scores >= threshold
        if by == "f1":
            return float(reference.f1_score(labels, predicted, zero_division=0))
        return float(predicted[labels == 1].mean() - predicted[labels == 0].mean())

    found = tuned_threshold(labels, scores, by)
    assert found in scores
    best = max(map(worth, np.unique(scores)))
    assert worth(found) == pytest.approx(best)
    assert not any(worth(t) > best - 1e-12 for t in np.unique(scores) if t > found)


def test_of_thresholds_that_are_equally_good_the_largest_is_taken() -> None:
    assert tuned_threshold([0, 0, 0, 1, 1, 1], [0.1, 0.1, 0.2, 0.2, 0.3, 0.3]) == 0.3


def test_a_tuned_threshold_decides_from_it_on() -> None:
    labels, p = np.array([0, 0, 1, 1, 0]), np.array([0.1, 0.3, 0.3, 0.4, 0.2])
    best = tuned_threshold(labels, p)
    assert best == 0.3  # both positives for one of three negatives
    found = classification_measures(labels, np.stack([1 - p, p], 1), threshold=best)
    told = value_of(found["accuracy_at_tuned_threshold"], 5)
    assert told == accuracy(labels, p >= best) > value_of(found["accuracy"], 5)


def test_what_a_threshold_cannot_be_tuned_on_is_named() -> None:
    with pytest.raises(DataError, match="a threshold is tuned by 'youden' or 'f1', not by 'cost'"):
        tuned_threshold([0, 1], [0.1, 0.2], by="cost")
    with pytest.raises(DataError, match="A ROC curve needs slides of both classes"):
        tuned_threshold([1, 1], [0.1, 0.2])
