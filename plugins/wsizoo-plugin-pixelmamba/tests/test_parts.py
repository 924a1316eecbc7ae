"""Orders, fusion and expansion where the parity cases do not reach: ties, odd numbers, edges."""

import pytest
import torch
from wsizoo_plugin_pixelmamba.expansion import expand
from wsizoo_plugin_pixelmamba.fusion import fuse, galleries, merges
from wsizoo_plugin_pixelmamba.serialise import bag_order, grid_order, region_tokens, serialise

import wsizoo
from wsizoo.errors import BagError

K = 99.0  # the CLS


def bag_of(cells, **changes):
    cells = torch.tensor(cells)
    pixels = torch.zeros(len(cells), 3, 2, 2, dtype=torch.uint8)
    return wsizoo.Bag(pixels, **{"coords": cells * 100, "spacing": 100.0, **changes})


def test_an_image_of_the_paper_s_making():
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    found = serialise(image, torch.tensor([K]), (2, 2))
    assert found.region_order.tolist() == [0, 1, 3, 2]
    assert found.tokens[0, :, :, 0].tolist() == [
        [0, 1, K, 5, 4],
        [2, 3, K, 7, 6],
        [10, 11, K, 15, 14],
        [8, 9, K, 13, 12],
    ]


def test_a_region_of_one_pixel_has_its_cls_first():
    tokens = region_tokens(torch.full((1, 1, 1, 1), 5.0), torch.tensor([K]))
    assert tokens.flatten().tolist() == [K, 5]


@pytest.mark.parametrize("outer", ["snake", "raster"])
@pytest.mark.parametrize("at", [(0, 0), (3, 5), (-4, 1)])
def test_a_full_bag_is_visited_like_an_image_wherever_it_lies(outer, at):
    rows, columns = 3, 4
    cells = [[x + at[0], y + at[1]] for y in range(rows) for x in range(columns)]
    shuffled = torch.randperm(len(cells), generator=torch.Generator().manual_seed(0))
    order = bag_order(bag_of([cells[i] for i in shuffled]), outer)
    assert torch.equal(shuffled[order], grid_order(rows, columns, outer))


def test_missing_regions_are_left_out_of_the_path():
    cells = [[0, 0], [2, 0], [0, 1], [2, 1], [1, 2]]
    assert bag_order(bag_of(cells)).tolist() == [0, 1, 3, 2, 4]


def test_the_slides_of_a_patient_follow_one_another():
    first = bag_of([[0, 0], [1, 0], [0, 1], [1, 1]])
    second = bag_of([[5, 9], [6, 9], [7, 9], [6, 10]])
    both = wsizoo.Bag.concat([first, second])
    assert bag_order(both).tolist() == [0, 1, 3, 2, 4, 5, 6, 7]
    orders = [bag_order(first), bag_order(second) + 4]
    assert torch.equal(bag_order(both), torch.cat(orders))


def test_two_regions_in_one_cell_are_refused():
    with pytest.raises(BagError, match="1 patches share a grid cell with another"):
        bag_order(bag_of([[0, 0], [1, 0], [1, 0]]))


def tokens_of(cls):
    """Regions of two cells around these CLS tokens."""
    cls = torch.tensor(cls, dtype=torch.float64)
    cells = torch.randn(len(cls), 2, cls.shape[1], generator=torch.Generator().manual_seed(0))
    return torch.stack([cells[:, 0].double(), cls, cells[:, 1].double()], 1)


def test_equal_similarities_go_to_the_lowest_places():
    found = fuse(tokens_of([[1, 0]] * 6), 2)
    assert found.merged_into.tolist() == [0, 0, 1, 0, 2, 3]
    assert found.survivor.tolist() == [0, 2, 4, 5]


@pytest.mark.parametrize("at_once", [1, 7, 12])
def test_partners_that_are_sought_in_parts_are_those_of_all(monkeypatch, at_once):
    cls = torch.randn(11, 4, generator=torch.Generator().manual_seed(2)).tolist()
    tokens = tokens_of([*cls, cls[0]])  # the last is as like the first as can be
    whole = fuse(tokens, 4)
    monkeypatch.setattr("wsizoo_plugin_pixelmamba.fusion.AT_ONCE", at_once)
    parts = fuse(tokens, 4)
    assert parts.merged_into.equal(whole.merged_into)
    assert parts.tokens.equal(whole.tokens)
    assert parts.merged_into[11] == 0


def test_cosines_do_not_see_lengths_and_a_zero_token_is_like_nothing():
    found = fuse(tokens_of([[1, 0], [0, 0], [0, 1], [0, 50]]), 1)
    assert found.merged_into.tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize(
    ("n", "split", "gallery"),
    [(5, "alternate", [0, 2, 4]), (5, "halves", [0, 1, 2]), (4, "halves", [0, 1])],
)
def test_with_an_odd_number_the_gallery_has_one_more(n, split, gallery):
    assert galleries(n, split).tolist() == gallery
    found = fuse(tokens_of([[1, i] for i in range(n)]), 99, split)
    assert found.survivor.tolist() == gallery


def test_shared_galleries_in_both_ways():
    tokens = tokens_of([[1.0, 0], [1, 0.1], [0, 1], [1, 0.2], [-1, 0], [1, 0.3]])
    mean, pairs = (fuse(tokens, 3, shared=how) for how in ("mean", "pairwise"))
    assert mean.merged_into.tolist() == pairs.merged_into.tolist() == [0, 0, 1, 0, 2, 0]
    torch.testing.assert_close(mean.tokens[0], tokens[[0, 1, 3, 5]].mean(0))
    one_by_one = ((tokens[0] + tokens[1]) / 2 + tokens[3]) / 2
    torch.testing.assert_close(pairs.tokens[0], (one_by_one + tokens[5]) / 2)


def test_similarities_are_not_those_of_half_precision():
    cls = torch.tensor([[1, 0], [1, 1e-3], [0.1, 1], [1, 5e-4]], dtype=torch.float32)
    tokens = cls[:, None].repeat(1, 3, 1)
    with torch.autocast("cpu", torch.bfloat16):
        found = fuse(tokens, 1)
    assert found.merged_into.tolist() == [0, 1, 2, 0]


def test_one_region_and_no_merges_change_nothing():
    for tokens, k in ((tokens_of([[1, 0]]), 3), (tokens_of([[1, 0], [1, 0]]), 0)):
        found = fuse(tokens, k)
        assert found.tokens is tokens
        assert found.merged_into.tolist() == list(range(len(tokens)))


@pytest.mark.parametrize(
    ("alpha", "n", "layers", "k"),
    [(0.8, 300, 24, 10), (0.8, 31, 24, 2), (0.0, 9, 24, 0), (1, 24, 24, 1)],
)
def test_how_many_merge(alpha, n, layers, k):
    assert merges(alpha, n, layers) == k


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("h-cat", [[1, 1.5], [9, 9], [3, 3.5]]),
        ("h-avg", [[1.25], [9], [3.25]]),
        ("v-cat", [[1, 2], [9, 9], [2, 3]]),
        ("v-avg", [[1.5], [9], [2.5]]),
    ],
)
def test_the_smallest_expansion(kind, expected):
    tokens = torch.tensor([1.0, 2, 9, 4, 3])[:, None]  # a b / c d in scan order
    assert expand(tokens, (2, 2), kind).tolist() == expected
