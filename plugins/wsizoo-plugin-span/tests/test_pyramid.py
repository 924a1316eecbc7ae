"""The grids of a pyramid: room for all patches, levels, packing, and weights back to patches."""

import pytest
import torch
from wsizoo_plugin_span.pyramid import Plan, Step, build

TWICE = Plan(Step(2, 2, 1), (Step(2, 2, 1),) * 2, half_window=3)
SQUARE = torch.cartesian_prod(torch.arange(8), torch.arange(8))


def random_cells(n, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randperm(height * width, generator=generator)[:n]
    cells = torch.stack([flat // width, flat % width], 1)
    return cells - cells.min(0).values


def published(plan):
    return Plan(plan.step, plan.downs, plan.half_window, published=True)


@pytest.mark.parametrize("step", [Step(2, 2, 1), Step(3, 2, 1), Step(3, 3, 1), Step(2, 1, 2)])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_patch_lies_under_a_cell_of_every_level(step, n):
    plan = Plan(step, (step,) * n, half_window=3)
    for size in (1, 2, 5, 11, 16, 37):
        cells = torch.cartesian_prod(torch.arange(size), torch.arange(3))
        pyramid = build([cells], plan)
        weights = {n: torch.ones(len(pyramid.levels[n]))}
        given = pyramid.to_patches(weights)
        assert len(given) == len(cells)
        assert bool((given > 0).all())
        torch.testing.assert_close(given.sum(), weights[n].sum())


def test_pads_are_tokens_in_the_published_mode_alone():
    cells, features = random_cells(40, 20, 9), torch.randn(40, 3)
    ours, theirs = build([cells], TWICE), build([cells], published(TWICE))
    assert ours.tokens(features) is features
    assert ours.patches(features) is features
    assert ours.levels[0].seen == theirs.levels[0].seen
    torch.testing.assert_close(theirs.levels[0].cells[1:-1], ours.levels[0].cells)
    padded = theirs.tokens(features)
    assert padded[0].tolist() == padded[-1].tolist() == [0, 0, 0]
    torch.testing.assert_close(theirs.patches(padded), features)
    assert [len(level.outsiders) for level in ours.levels] == [0, 0, 0]
    assert theirs.levels[2].outsiders.tolist() == [0, len(theirs.levels[2]) - 1]


def test_windows_shift_on_a_grid_that_they_tile_by_default_alone():
    cells = torch.cartesian_prod(torch.arange(20), torch.arange(20))  # 24 x 24 with its room
    for plan, shifts in ((TWICE, True), (published(TWICE), False)):
        level = build([cells], plan).levels[0]
        assert level.seen == ((24, 24),)
        union, regular = (level.neighbourhood(p).dense() for p in ("union", "regular"))
        assert torch.equal(union, regular) != shifts


def test_a_grid_smaller_than_a_window_is_one_window():
    level = build([torch.tensor([[0, 0], [0, 1]])], TWICE).levels[1]
    assert max(level.seen[0]) < 6
    assert bool(level.neighbourhood("shifted").dense().all())


def test_levels_and_neighbourhoods_are_built_once():
    level = build([random_cells(30, 9, 9)], TWICE).levels[0]
    assert level.neighbourhood("union") is level.neighbourhood("union")
    assert level.angles(8, torch.float32)[0] is level.angles(8, torch.float32)[0]


@pytest.mark.parametrize("mode", [lambda plan: plan, published])
def test_packed_slides_have_the_grids_that_each_has_alone(mode):
    slides = [random_cells(50, 31, 12), SQUARE[:1], random_cells(90, 5, 40, seed=2), SQUARE]
    packed = build(slides, mode(TWICE))
    for b, cells in enumerate(slides):
        alone = build([cells], mode(TWICE))
        for own, level in zip(alone.levels, packed.levels, strict=True):
            rows = slice(level.bounds[b], level.bounds[b + 1])
            torch.testing.assert_close(level.own_cells[rows], own.cells)
            assert level.seen[b] == own.seen[0]
            for pattern in ("union", "shifted"):
                dense = level.neighbourhood(pattern).dense()[rows]
                assert torch.equal(dense[:, rows], own.neighbourhood(pattern).dense())
                assert int(dense.sum()) == int(dense[:, rows].sum())


def test_only_downsampling_that_tiles_the_grid_packs():
    assert TWICE.packs
    assert Plan(Step(3, 3, 1), (Step(3, 3, 1), None), 3).packs
    assert not Plan(Step(3, 2, 1), (Step(3, 2, 1),), 3).packs
    assert not Plan(Step(2, 2, 2), (Step(2, 2, 2),), 3).packs
    assert not Plan(Step(3, 3, 1), (Step(2, 2, 1),), 3).packs


def test_patches_have_the_weight_of_the_cell_over_them_and_stages_keep_their_totals():
    cells = torch.tensor([[0, 0], [7, 7], [7, 8], [8, 7]])
    plan = Plan(Step(2, 2, 1), (Step(2, 2, 1),), half_window=3, published=True)
    pyramid = build([cells], plan)
    rows = pyramid.patches(torch.arange(len(pyramid.levels[0])))  # of the patches
    coarse = torch.zeros(len(pyramid.levels[1]))
    book = pyramid.rulebooks[0]
    coarse[book.parents[rows[1]]] = 1.0  # over three patches
    coarse[book.parents[rows[0]]] = 1.0  # over one
    fine = torch.zeros(len(pyramid.levels[0]))
    fine[rows[0]] = 1.0
    fine[0] = 3.0  # a pad's: the patches share the total as they share the rest
    assert pyramid.to_patches({1: coarse}).tolist() == [0.5, 0.5, 0.5, 0.5]
    assert pyramid.to_patches({0: fine, 1: coarse}).tolist() == [4.5, 0.5, 0.5, 0.5]


def test_where_kernels_overlap_a_patch_has_the_mean_of_the_cells_over_it():
    step = Step(3, 2, 1)
    pyramid = build([SQUARE], Plan(step, (step,) * 2, half_window=3))
    for stage in (1, 2):
        weights = torch.ones(len(pyramid.levels[stage]))
        given = pyramid.to_patches({stage: weights})
        torch.testing.assert_close(given, (weights.sum() / 64).expand(64))


def test_packed_slides_share_out_the_totals_that_each_has_alone():
    slides = [random_cells(50, 31, 12), random_cells(90, 5, 40, seed=2)]
    packed, alone = build(slides, TWICE), [build([cells], TWICE) for cells in slides]
    weights = torch.rand(len(packed.levels[2]))
    parts = weights.split([len(each.levels[2]) for each in alone])
    expected = [each.to_patches({2: part}) for each, part in zip(alone, parts, strict=True)]
    torch.testing.assert_close(packed.to_patches({2: weights}), torch.cat(expected))


def test_far_islands_cost_no_memory_for_the_sea_between():
    far = torch.cat([SQUARE, SQUARE + torch.tensor([3_000_000, 2_000_000])])
    levels = build([far], TWICE).levels
    assert len(levels[0]) == 128
    assert len(levels[2]) == 2 * len(build([SQUARE], TWICE).levels[2])
