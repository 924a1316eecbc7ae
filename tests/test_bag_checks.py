"""wsizoo.bag_checks: what parts ask of a bag; each refusal says whose bag and which patch."""

import pytest
import torch

from wsizoo.bag import Bag
from wsizoo.bag_checks import check_any, check_extent, check_finite, check_on_grid, check_width
from wsizoo.errors import BagError


def bag_at(*coords: tuple[int, int]) -> Bag:
    return Bag(torch.zeros(len(coords), 4), torch.tensor(coords), spacing=224.0, slide_id="S1")


def off_grid(bag: Bag) -> torch.Tensor:
    assert bag.coords is not None and bag.spacing is not None
    return bag.coords - bag.grid() * bag.spacing


def test_a_bag_without_patches_and_one_of_another_width_are_refused() -> None:
    with pytest.raises(BagError, match="S1 has no patches: nothing to attend to"):
        check_any(Bag(torch.zeros(0, 4), slide_id="S1"), "nothing to attend to")
    with pytest.raises(BagError, match=r"S1: features are \(1, 4\), mine reads \(N, 8\)"):
        check_width(bag_at((0, 0)), 8, "mine")
    check_any(bag_at((0, 0)), "nothing to attend to")
    check_width(bag_at((0, 0)), 4, "mine")


def test_a_grid_may_begin_anywhere_but_has_one_beginning() -> None:
    there = bag_at((100, 50), (324, 50), (100, 275))
    check_on_grid(there, off_grid(there))
    bad = bag_at((0, 0), (224, 0), (448, 0), (672, 100))
    with pytest.raises(
        BagError, match=r"1 of 4 patches lie off the grid .*patch 3 at \(672, 100\)"
    ):
        check_on_grid(bad, off_grid(bad))


def test_patches_on_no_slide_are_refused() -> None:
    check_extent(bag_at((0, 0), (224 << 20, 0)), 224)
    with pytest.raises(BagError, match=r"in x, 1 in y; .* patch 2 lies at"):
        check_extent(bag_at((0, 0), (224, 100), (224 << 40, 224)), 224)


def test_a_result_that_is_not_finite_names_the_features_or_the_weights() -> None:
    bag = bag_at((0, 0), (224, 0))
    check_finite(torch.zeros(3), [bag], "mine")
    with pytest.raises(BagError, match="mine's result is not finite although its features are"):
        check_finite(torch.tensor(torch.inf), [bag], "mine")
    bag.features[1, 2] = torch.nan
    with pytest.raises(
        BagError, match=r"slide 'S1': 1 of 2 patches have NaN or infinite.*first patch 1"
    ):
        check_finite(torch.tensor(torch.nan), [bag], "mine")
