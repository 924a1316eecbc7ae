"""The colour map and the ways to bring scores onto it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsizoo.errors import DataError
from wsizoo.viz.colour import STEPS, colours, normalise

FINITE = st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=50)


def to_oklab(srgb: np.ndarray) -> np.ndarray:
    """(N, 3) uint8 to OKLab, by the published forward matrices."""
    s = srgb / 255
    linear = np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4)
    lms = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    return np.cbrt(lms) @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )


def test_lightness_rises_all_the_way_so_the_order_survives_colour_blindness_and_grey_printers():
    lightness = to_oklab(colours(np.linspace(0, 1, 64)))[:, 0]
    assert (np.diff(lightness) > 0.004).all()
    assert lightness[0] < 0.3
    assert lightness[-1] > 0.9


def test_equal_steps_in_value_are_equal_steps_to_the_eye():
    lab = to_oklab(colours(np.arange(0, STEPS, 15) / (STEPS - 1)))
    steps = np.linalg.norm(np.diff(lab, axis=0), axis=1)
    assert steps.max() / steps.min() < 1.1


def test_no_colour_is_pink_or_purple():
    rgb = colours(np.linspace(0, 1, STEPS)).astype(int)
    assert (rgb[:, 0] <= np.maximum(rgb[:, 1], rgb[:, 2]) + 25).all()
    assert (rgb[:, 1] >= rgb[:, 0] - 25).all()


def test_colours_keep_the_shape_of_the_values():
    assert colours(np.zeros((2, 5))).shape == (2, 5, 3)
    assert colours([]).shape == (0, 3)
    assert colours([0.5]).dtype == np.uint8


@pytest.mark.parametrize("bad", [1.01, -0.01, float("nan")])
def test_values_without_a_colour_are_refused(bad):
    with pytest.raises(DataError, match=r"expected numbers in \[0, 1\]; .*normalise"):
        colours([0.5, bad])


def test_ranks_spread_evenly_whatever_the_scale():
    assert normalise([3.0, -1.0, 1e9]).tolist() == [0.5, 0.0, 1.0]


def test_ties_share_their_mean_rank():
    assert normalise([1, 2, 2, 3]).tolist() == pytest.approx([0, 0.5, 0.5, 1])


def test_minmax_is_linear():
    assert normalise([10, 15, 20], "minmax").tolist() == [0, 0.5, 1]


@pytest.mark.parametrize("how", ["rank", "minmax"])
def test_constant_scores_and_a_single_score_lie_in_the_middle(how):
    assert normalise([7.0, 7.0, 7.0], how).tolist() == [0.5] * 3
    assert normalise([7.0], how).tolist() == [0.5]
    assert normalise([], how).shape == (0,)


@given(FINITE)
def test_normalised_scores_keep_their_order_within_0_and_1(scores):
    for how in ("rank", "minmax"):
        shares = normalise(scores, how)
        assert ((shares >= 0) & (shares <= 1)).all()
        assert (np.diff(shares[np.argsort(scores, kind="stable")]) >= 0).all()


@given(FINITE)
def test_rank_depends_on_the_order_only(scores):
    order = np.unique(scores, return_inverse=True)[1].reshape(-1)
    assert np.array_equal(normalise(scores), normalise(order * 3.0 + 1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(bad):
    with pytest.raises(DataError, match=r"scores: 1 of 3 are not finite \(the first is \S+ at 1\)"):
        normalise([0, bad, 1])


def test_unknown_normalisations_and_shapes_are_refused():
    with pytest.raises(DataError, match="no normalisation named 'zscore'"):
        normalise([1.0], "zscore")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"scores are \(2, 2\), expected \(N,\)"):
        normalise(np.zeros((2, 2)))
