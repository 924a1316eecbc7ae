"""longmil-v1: what its published code does to slides that are small, large, or in one place."""

import pytest
import torch
from wsizoo_plugin_longmil.positions import Clamped, published_turns
from wsizoo_plugin_longmil.v1 import LongMILV1

from wsizoo import Bag
from wsizoo.diagnosis.layers import attention_layers
from wsizoo.errors import BagError, SpecError
from wsizoo.model import SlideModel
from wsizoo.ops import alibi_slopes
from wsizoo.spec import ModelSpec


def made(**options):
    torch.manual_seed(0)
    return LongMILV1(**{"in_dim": 24, "dim": 16, **options}).eval()


def bag_of(coords):
    coords = torch.tensor(coords)
    features = torch.randn(len(coords), 24, generator=torch.Generator().manual_seed(0))
    return Bag(features, coords, slide_id="S1")


def masked_heads(module, coords):
    """Which heads hear not everybody in the first layers, and what the last adds at least."""
    cells = module.cells_of(bag_of(coords))
    near, far = module.biases(cells)
    offset = cells[None] - cells[:, None]
    return (near(offset) == -torch.inf).flatten(1).any(1).tolist(), float(far(offset).min())


def test_cells_are_two_patches_and_halves_go_to_the_even_one():
    cells = made().cells_of(bag_of([[1000 + 448 * i, 50] for i in range(10)]))
    assert cells[:, 0].tolist() == [0, 0, 1, 2, 2, 2, 3, 4, 4, 4]
    assert made(unit=448).cells_of(bag_of([[9, 8], [457, 8]])).tolist() == [[0, 0], [1, 0]]


@pytest.mark.parametrize("spacing", [256, 320, 448, 512])
def test_diagnose_measures_cells_in_the_patches_of_the_slide(spacing):
    at = torch.arange(400)
    coords = torch.stack([at % 20, at // 20], 1) * spacing
    bag = Bag(torch.randn(400, 24), coords, spacing=float(spacing), mpp=0.25)
    model = SlideModel("v1", ModelSpec("s", "MIT", "x"), 24, aggregator=made()).eval()
    (_, _, last) = attention_layers(model, bag)
    assert last.unit == 896 / spacing
    ends = last.cells[[0, -1]]  # first and last patch, in cells
    apart = last.unit * (ends[1] - ends[0]) * spacing
    assert abs(apart - 19 * spacing).max() <= 448, "half a cell of level-0 px"


def test_only_the_head_with_the_largest_slope_is_masked():
    line = [[896 * i, 0] for i in range(12)]
    assert masked_heads(made(), line) == ([True, False, False, False], -25.0)
    assert masked_heads(made(heads=1), line) == ([True], pytest.approx(-100 / 256))
    six = made(dim=24, heads=6)
    assert masked_heads(six, line)[0] == [False, False, False, False, True, False]


def test_on_a_small_slide_the_farthest_patches_are_masked_instead():
    square = [[896 * (i // 4), 896 * (i % 4)] for i in range(16)]
    heads, lowest = masked_heads(made(), square)
    assert heads == [True, False, False, False]
    assert lowest == -4 * 0.25  # the diagonal is 3 sqrt(2) cells, 4 whole ones
    near, _ = made().biases(torch.tensor([[0, 0], [3, 3], [3, 1]]))
    assert near(torch.tensor([3, 3]))[0] == -torch.inf
    assert near(torch.tensor([3, 1]))[0] == -3 * 0.25


@pytest.mark.parametrize("positions", ["alibi", "alibi_rope", "rope"])
@pytest.mark.parametrize("coords", [[[7, 9]], [[7, 9], [100, 50], [300, 9]]], ids=["one", "three"])
def test_patches_in_one_cell_hear_each_other_unless_it_is_to_be_as_published(positions, coords):
    module = made(positions=positions)
    assert bool(module(bag_of(coords)).slide.isfinite().all())
    strict = made(positions=positions, compat="published")
    if positions == "rope":
        assert bool(strict(bag_of(coords)).slide.isfinite().all())
        return
    message = rf"S1: all {len(coords)} patches lie in one cell, .* gives NaN; aggregator\.compat="
    with pytest.raises(BagError, match=message):
        strict(bag_of(coords))


def test_grids_larger_than_the_published_tables_are_for_our_arithmetic_alone():
    wide = bag_of([[0, 0], [0, 300 * 896]])
    assert bool(made(positions="alibi_rope")(wide).slide.isfinite().all())
    message = r"S1: patches span 301 cells, the published LongMIL has tables of 300 x 300"
    with pytest.raises(BagError, match=message):
        made(compat="published")(wide)
    made(compat="published")(bag_of([[0, 0], [0, 299 * 896]]))


def test_a_distance_is_rounded_down_and_beyond_ten_cells_it_is_a_hundred():
    bias = Clamped.of(torch.tensor([1.0]))
    offsets = {(0, 0): 0, (1, 1): 1, (6, 8): 10, (-10, 0): 10, (0, 11): 100, (10, 1): 100}
    for offset, units in offsets.items():
        assert float(bias(torch.tensor(offset))) == -units
    twice = Clamped.of(torch.tensor([0.5]), unit=2)
    assert float(twice(torch.tensor([3, 0]))) == -0.5
    assert float(twice(torch.tensor([12, 16]))) == -5
    assert float(twice(torch.tensor([20, 1]))) == -50
    assert float(bias(torch.tensor([1 << 40, 1 << 40]))) == -100


def test_slopes_are_of_half_precision_as_published():
    bias = Clamped.of(alibi_slopes(3))
    exact = alibi_slopes(3)[2].half() * torch.tensor(7.0).half()
    assert float(bias(torch.tensor([7, 0]))[2]) == -float(exact)


def test_the_published_rotation_is_no_embedding_of_offsets():
    cells = torch.tensor([[0, 0], [5, 3], [40, 77], [45, 80]])
    cos, sin = published_turns(cells, 384, 4, torch.float64)
    x = torch.view_as_complex(torch.stack([cos, sin], -1)).flatten(1)
    same_offset = (x[1] * x[0].conj()).real.sum(), (x[3] * x[2].conj()).real.sum()
    assert abs(same_offset[0] - same_offset[1]) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, r"longmil-v1's dim is 16, expected a multiple of heads \(3\)"),
        ({"dim": 18, "heads": 1, "positions": "rope"}, "dim is 18, expected a multiple of heads"),
        ({"positions": "both"}, "positions are 'both', expected one of alibi, alibi_rope, rope"),
        ({"unit": 0}, "longmil-v1's unit is 0, expected a number above 0, in level-0 px"),
        ({"compat": True}, "compat is True, expected one of None, published"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        made(**options)
