"""wsizoo.viz.plane: each cell where it lies, in its colour."""

import numpy as np
import pytest

from wsizoo.errors import DataError
from wsizoo.viz.colour import colours
from wsizoo.viz.plane import EDGE, GLASS, UNSEEN, attention_map, side_by_side

CELLS = np.array([[5, 9], [6, 9], [8, 9], [5, 10]])


def test_cells_have_the_colour_of_their_weight_and_grey_without() -> None:
    picture = attention_map(CELLS, np.array([0.5, 0.25, 0.0, 0.25]), 0, "weights")
    step = min(EDGE // 4, 84)

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
    picture = attention_map(cells, np.array([0.25, 0.25, 0.5]), 2, "weights")
    assert picture[42, 42].tolist() == picture[42, 84 + 42].tolist() == colours(1.0).tolist()


def test_what_does_not_fit_is_an_error() -> None:
    for cells, weights, query in (
        (CELLS[:0], np.zeros(0), 0),
        (CELLS, np.zeros(3), 0),
        (CELLS, np.zeros(4), 4),
    ):
        with pytest.raises(DataError, match="an attention map got"):
            attention_map(cells, weights, query, "weights")


def test_pictures_stand_side_by_side_in_rows() -> None:
    pictures = [np.full((10 + i, 20, 3), i, np.uint8) for i in range(3)]
    joined = side_by_side(pictures, columns=2, gap=4)
    assert joined.shape == (11 + 4 + 12, 44, 3)
    assert joined[5, 5, 0] == 0 and joined[5, 30, 0] == 1 and joined[20, 5, 0] == 2
    assert joined[10, 5, 0] == GLASS and joined[5, 22, 0] == GLASS
