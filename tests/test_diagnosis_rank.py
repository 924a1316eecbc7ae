"""wsizoo.diagnosis.rank and bounds: the numbers of matrices that are known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from wsizoo.diagnosis.bounds import band_bound, hull, plane_bound
from wsizoo.diagnosis.rank import effective_rank, rank_above, singular_values, sparsity

Floats = NDArray[np.float64]


def square(side: int) -> NDArray[np.int64]:
    """(side^2, 2) cells, in raster order."""
    return np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)


def disk(cells: NDArray[np.int64], radius: float) -> NDArray[np.bool_]:
    return ((cells[:, None] - cells[None]) ** 2).sum(-1) <= radius**2


def band(n: int, b: int) -> NDArray[np.bool_]:
    at = np.arange(n)
    return np.abs(at[:, None] - at) <= b


def uniform(allowed: NDArray[np.bool_]) -> Floats:
    return allowed / allowed.sum(1, keepdims=True)


def random(allowed: NDArray[np.bool_], dim: int = 32, seed: int = 0) -> Floats:
    """Softmax of scores of rank `dim`, where a pair may attend."""
    q, k = np.random.default_rng(seed).normal(size=(2, len(allowed), dim))
    scores = np.where(allowed, q @ k.T / np.sqrt(dim), -np.inf)
    weights: Floats = np.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("n", "b", "rank"), [(200, 10, 190), (300, 20, 288)])
def test_uniform_bands_have_the_rank_that_is_known(n: int, b: int, rank: int) -> None:
    weights = uniform(band(n, b))
    bound = band_bound(weights, band(n, b))
    assert (bound.rank, bound.holds) == (n - b, True)
    assert rank_above(singular_values(weights)) == rank >= bound.rank


def test_random_weights_on_a_band_have_full_rank() -> None:
    assert rank_above(singular_values(random(band(200, 10)))) == 200


@pytest.mark.parametrize(("side", "radius", "bound"), [(24, 5, 456), (30, 10, 600)])
def test_the_bound_of_the_plane_is_that_of_a_shifted_square(
    side: int, radius: int, bound: int
) -> None:
    cells = square(side)
    allowed = disk(cells, radius)
    found = plane_bound(random(allowed), cells, allowed)
    assert (found.rank, found.holds) == (bound, True)
    line = band_bound(random(allowed), allowed)  # raster order: b is radius times side
    assert (line.rank, line.holds) == (side * (side - radius), True)


def test_a_square_of_900_patches_has_the_sparsity_and_ranks_that_are_known() -> None:
    cells = square(30)
    local, full = random(disk(cells, 10)), random(np.ones((900, 900), bool))
    assert sparsity(local) == pytest.approx(0.742, abs=5e-4)
    assert sparsity(full) < 0.01
    values, others = singular_values(local), singular_values(full)
    assert rank_above(values) == rank_above(others) == 900  # softmax of low rank has full rank
    assert effective_rank(values) == pytest.approx(561, rel=0.02)
    assert effective_rank(others) == pytest.approx(434, rel=0.02)
    assert rank_above(values, 1e-3) == pytest.approx(888, abs=6)
    assert rank_above(others, 1e-3) == pytest.approx(847, abs=6)


def test_a_bound_holds_on_any_tissue_and_is_never_above_the_rank() -> None:
    rng = np.random.default_rng(1)
    for seed in range(12):
        side, radius = int(rng.integers(3, 14)), float(rng.choice([0, 1, 1.5, 2, 3, 20]))
        cells = square(side)[rng.random(side**2) < 0.7]
        allowed = disk(cells, radius)
        for weights in (uniform(allowed), random(allowed, 4, seed)):
            found = plane_bound(weights, cells, allowed)
            assert found.holds
            assert 0 < found.rank <= rank_above(singular_values(weights)) or len(cells) == 0


def test_patches_of_one_cell_count_once() -> None:
    cells = np.repeat(square(5), 2, 0)
    allowed = disk(cells, 1)
    found = plane_bound(uniform(allowed), cells, allowed)
    assert (found.rank, found.holds) == (20, True)
    assert rank_above(singular_values(uniform(allowed))) >= 20


def test_windows_count_the_pairs_that_they_let_attend() -> None:
    cells = square(8)
    allowed = (cells[:, None] // 4 == cells[None] // 4).all(-1)
    found = plane_bound(uniform(allowed), cells, allowed)
    assert (found.rank, found.holds) == (4, True)  # the far corner, once a window
    assert rank_above(singular_values(uniform(allowed))) == 4


def test_a_triangle_without_a_positive_diagonal_or_with_more_below_does_not_hold() -> None:
    cells, allowed = square(6), disk(square(6), 2)
    weights = uniform(allowed)
    weights[allowed & (cells[:, None] != cells[None]).any(-1)] = 0  # each to itself alone
    assert not plane_bound(weights, cells, allowed).holds
    assert not band_bound(weights, allowed).holds
    everywhere = uniform(np.ones_like(allowed))
    assert not plane_bound(everywhere, cells, allowed).holds
    assert not band_bound(everywhere, allowed).holds


def test_attention_everywhere_is_bounded_by_next_to_nothing() -> None:
    allowed = np.ones((36, 36), bool)
    weights = uniform(allowed)
    for found in (band_bound(weights, allowed), plane_bound(weights, square(6), allowed)):
        assert (found.rank, found.holds) == (1, True)
    values = singular_values(weights)
    assert rank_above(values) == 1
    assert effective_rank(values) == pytest.approx(1, abs=1e-6)


def test_nothing_and_nobody_have_rank_0() -> None:
    nobody = np.zeros((3, 3), bool)
    assert band_bound(np.zeros((3, 3)), nobody).rank == 0
    assert plane_bound(np.zeros((3, 3)), square(2)[:3], nobody).rank == 0
    assert effective_rank(np.zeros(3)) == 0
    assert rank_above(np.zeros(3)) == rank_above(np.zeros(0)) == 0
    assert effective_rank(np.ones(7)) == pytest.approx(7)


def test_a_hull_has_corners_only() -> None:
    assert hull(square(4)).tolist() == [[0, 0], [3, 0], [3, 3], [0, 3]]
    line = np.array([[0, 0], [1, 1], [2, 2]])
    assert hull(line).tolist() == [[0, 0], [2, 2]]
    assert hull(line[:1]).tolist() == [[0, 0]]
