"""wsizoo.viz.plane: each cell where it lies, in its colour."""

import numpy as np
import pytest

from wsizoo.errors import DataError
from wsizoo.viz.colour import colours
from wsizoo.viz.heatmap import INK
from wsizoo.viz.plane import EDGE, GLASS, LARGEST, LETTERS, UNSEEN, attention_map

CELLS = np.array([[5, 9], [6, 9], [8, 9], [5, 10]])


def test_cells_have_the_colour_of_their_weight_and_grey_without() -> None:
    picture = attention_map(CELLS, np.array([0.5, 0.25, 0.0, 0.25]), 0)
    step = min(EDGE // 4, LARGEST)

    def middle(column: int, row: int) -> list[int]:
        rgb: list[int] = picture[row * step + step // 2, column * step + step // 2].tolist()
        return rgb

    assert middle(0, 0) == colours(1.0).tolist()
    assert middle(1, 0) == middle(0, 1) == colours(0.5).tolist()
    assert middle(2, 0) == middle(1, 1) == [GLASS] * 3
    assert middle(3, 0) == [UNSEEN] * 3
    edge = picture[1, 1].astype(int)
    assert edge.max() < 60, "the query has a dark outline"
    assert picture.shape[0] > 2 * step, "a legend lies below"


def test_cells_that_repeat_add_up() -> None:
    cells = np.array([[0, 0], [0, 0], [1, 0]])
    picture = attention_map(cells, np.array([0.25, 0.25, 0.5]), 2)
    assert picture[9, 9].tolist() == picture[9, LARGEST + 9].tolist() == colours(1.0).tolist()


def test_what_does_not_fit_is_an_error() -> None:
    for cells, weights, query in (
        (CELLS[:0], np.zeros(0), 0),
        (CELLS, np.zeros(3), 0),
        (CELLS, np.zeros(4), 4),
    ):
        with pytest.raises(DataError, match="an attention map got"):
            attention_map(cells, weights, query)


def line_of_the_scale(picture: np.ndarray, rows: int) -> int:
    """Its length in px, below a map of so many."""
    first = (picture[rows + LETTERS, :] == INK).all(1)
    return int(first[: int(np.argmin(first[LETTERS:])) + LETTERS].sum())


def test_a_scale_is_a_round_number_of_patches_whatever_a_cell_is() -> None:
    cells = np.stack([np.arange(40), np.zeros(40, np.int64)], 1)
    weights = np.full(40, 1 / 40)
    step = EDGE // 40
    assert line_of_the_scale(attention_map(cells, weights, 0), step) == 10 * step + 1
    assert line_of_the_scale(attention_map(cells, weights, 0, unit=2.0), step) == 20 * step / 2 + 1
    halves = attention_map(cells, weights, 0, unit=3.5)
    assert line_of_the_scale(halves, step) == round(20 * step / 3.5) + 1
    plain, told = (attention_map(cells, weights, 0, um=um) for um in (None, 112.0))
    assert (plain[:step] == told[:step]).all() and (plain != told).any(), "microns are told"
