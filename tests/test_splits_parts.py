import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsizoo.errors import DataError
from wsizoo.splits.parts import (
    SPAN_FRACTIONS,
    Split,
    permuted_split,
    span_camelyon16_segmentation_split,
    span_tcga_lung_split,
)


def every(split: Split) -> list[int]:
    return split.train + split.val + split.test


@settings(deadline=None)  # the first one imports torch
@given(st.integers(2, 300), st.integers(0, 5), st.sampled_from(sorted(SPAN_FRACTIONS)))
def test_each_slide_is_in_one_part(n: int, seed: int, kind: str) -> None:
    splits = [
        permuted_split(n, SPAN_FRACTIONS[kind], seed),
        span_camelyon16_segmentation_split(n, seed),
        span_tcga_lung_split(n, seed),
    ]
    for split in splits:
        assert sorted(every(split)) == list(range(n)) and split.train


@pytest.mark.parametrize("make", [span_camelyon16_segmentation_split, span_tcga_lung_split])
def test_a_seed_is_a_split(make) -> None:
    assert make(50, 1) == make(50, 1) != make(50, 2)
    assert permuted_split(50, (0.5, 0.2), 1) != permuted_split(50, (0.5, 0.2), 2)


def test_parts_have_the_sizes_that_were_asked_for() -> None:
    split = permuted_split(37, (0.7, 0.15), 0)
    assert (len(split.train), len(split.val), len(split.test)) == (25, 5, 7)
    assert permuted_split(4, (1.0, 0.0), 0).test == []


@pytest.mark.parametrize("fractions", [(0.7,), (0.9, 0.2), (-0.1, 0.5)])
def test_fractions_that_are_none_are_refused(fractions) -> None:
    with pytest.raises(DataError, match=r"fractions are .*, expected those of training and valid"):
        permuted_split(10, fractions, 0)


def test_a_split_without_training_slides_is_refused() -> None:
    with pytest.raises(DataError, match=r"1 slides leave none to train on with fractions \(0\.7"):
        permuted_split(1, (0.7, 0.15), 0)
