from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.ops import hard_topk

BAGS = st.lists(st.lists(st.integers(-2, 2), min_size=1, max_size=8), min_size=1, max_size=5)


def best_of(scores: list[int], k: int, start: int = 0) -> list[int]:
    """Rows from `start` on, by a sort of (score, place) in Python."""
    by_score = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return sorted(start + i for i in by_score[:k])


@settings(deadline=None)
@given(BAGS, st.integers(1, 9), st.sampled_from([torch.float32, torch.float64, torch.float16]))
def test_the_k_best_of_each_slide_earlier_ones_of_equals(
    bags: list[list[int]], k: int, dtype: torch.dtype
) -> None:
    offsets = torch.tensor([0, *map(len, bags)]).cumsum(0)
    scores = torch.tensor([s for bag in bags for s in bag], dtype=dtype)
    expected = [
        row
        for bag, start in zip(bags, offsets.tolist(), strict=False)
        for row in best_of(bag, k, start)
    ]
    found = hard_topk(scores, k, offsets=offsets)
    assert found.dtype == torch.int64 and found.tolist() == expected
    assert hard_topk(scores[: len(bags[0])], k).tolist() == best_of(bags[0], k)


def test_a_negative_zero_is_a_zero() -> None:
    assert hard_topk(torch.tensor([-0.0, 0.0, -1.0, 0.0, -0.0]), 2).tolist() == [0, 1]


def test_many_ties_are_settled_by_place() -> None:
    assert hard_topk(torch.zeros(100_000), 32).tolist() == list(range(32))


def test_scores_that_learn_do_not_matter() -> None:
    scores: Tensor = torch.arange(5.0).requires_grad_()
    assert hard_topk(scores, 2).tolist() == [3, 4]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": 0}, "hard_topk got k = 0, expected a whole number of at least 1"),
        ({"k": -3}, "hard_topk got k = -3, expected a whole number"),
        ({"k": 1.0}, "hard_topk got k = 1.0, expected a whole number"),
        ({"k": True}, "hard_topk got k = True, expected a whole number"),
        ({"offsets": torch.tensor([0, 1, 1, 4])}, "hard_topk: slide 1 of 3 has no rows"),
        ({"offsets": torch.tensor([0, 3])}, r"hard_topk got offsets \[0, 3\] for 4 rows"),
        ({"scores": torch.tensor([0, 1, 2, torch.nan])}, "the score nan for row 2 of slide 1"),
        ({"scores": torch.zeros(4, 1)}, r"hard_topk got scores \(4, 1\)"),
    ],
)
def test_bad_input_is_refused(changed: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = {"scores": torch.zeros(4), "k": 2, "offsets": torch.tensor([0, 1, 4])}
    asked |= changed
    with pytest.raises(DataError, match=message):
        hard_topk(asked["scores"], asked["k"], offsets=asked["offsets"])
