"""longmil, longmil-v1 and full-attention as aggregators: the contract, recorded numbers, bad bags.

After a change of the method that is meant, record the golden file anew and say why in the commit:

    python tests/test_model.py
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from wsizoo_plugin_longmil.blocks import received
from wsizoo_plugin_longmil.model import FullAttention, LongMIL
from wsizoo_plugin_longmil.places import packed, place
from wsizoo_plugin_longmil.positions import Alibi
from wsizoo_plugin_longmil.v1 import LongMILV1

from wsizoo import Bag, BagBatch
from wsizoo.errors import BagError, SpecError
from wsizoo.ops import alibi_slopes, grid_attention, use_backend
from wsizoo.testing import conformance

GOLDEN = Path(__file__).parent / "golden_longmil.safetensors"
SMALL = {"in_dim": 24, "dim": 16}
RICH = {"heads": 2, "radius": 2.5, "local_position": "both", "global_position": "both"}
KINDS = {"longmil": LongMIL, "longmil-v1": LongMILV1, "full-attention": FullAttention}
GEOMETRIES = {
    "one patch": [[5, 9]],
    "two far apart": [[0, 0], [90_000, 70_000]],
    "a line": [[i, 3] for i in range(25)],
    "a sparse line": [[3, 4 * i] for i in range(40)],
    "a full square": [[i // 12, i % 12] for i in range(144)],
    "one place": [[4, 4]] * 7,
    "two in a place": [[0, 0], [1, 2], [0, 0], [3, 3]],
}


@conformance(LongMIL, **SMALL)
def test_longmil_is_an_aggregator(check):
    check()


@conformance(LongMIL, **SMALL, **RICH, mlp_ratio=0, attention_dropout=0.1)
def test_longmil_with_all_positions_is_an_aggregator(check):
    check()


@conformance(LongMIL, **SMALL, preset="v1", local_blocks=1)
def test_longmil_with_the_settings_of_version_1_is_an_aggregator(check):
    check()


@conformance(LongMIL, **SMALL, pooling="none", radius=0, slopes=[0.5])
def test_longmil_without_pooling_is_an_aggregator(check):
    check()


@conformance(LongMIL, **SMALL, local_blocks=0, radius=10, heads=4, global_position="rope")
def test_longmil_without_local_layers_is_an_aggregator(check):
    check()


@conformance(LongMIL, **SMALL, global_layer="cross-scan-mamba")
def test_longmil_with_a_linear_global_layer_is_an_aggregator(check):
    check()


@conformance(LongMIL, **SMALL, global_layer="cross-scan-mamba", pooling="none", local_blocks=1)
def test_longmil_with_a_linear_global_layer_on_patches_is_an_aggregator(check):
    check()


@conformance(LongMILV1, **SMALL)
def test_longmil_v1_is_an_aggregator(check):
    check()


@conformance(LongMILV1, **SMALL, positions="alibi_rope", heads=2)
def test_longmil_v1_with_both_positions_is_an_aggregator(check):
    check()


@conformance(LongMILV1, **SMALL, positions="rope", heads=1, unit=28)
def test_longmil_v1_with_rope_is_an_aggregator(check):
    check()


@conformance(FullAttention, **SMALL)
def test_full_attention_is_an_aggregator(check):
    check()


@conformance(FullAttention, **SMALL, heads=2, layers=1, position="alibi", mlp_ratio=0)
def test_full_attention_with_alibi_is_an_aggregator(check):
    check()


def bag_of(cells, dim=24, seed=0, **changes):
    cells = torch.tensor(cells)
    features = torch.randn(len(cells), dim, generator=torch.Generator().manual_seed(seed))
    given = {"coords": cells * 224, "spacing": 224.0, "slide_id": "S1", **changes}
    return Bag(features, **given)


def made(kind=LongMIL, **options):
    torch.manual_seed(0)
    return kind(**{**SMALL, **options}).eval()


@torch.no_grad()
def golden_outputs(features, coords, tensors=None):
    """What all three give for one slide, and their tensors."""
    found, weights = {}, {}
    for name, kind in KINDS.items():
        module = made(kind, heads=2)
        prefix = f"weights.{name}."
        if tensors is not None:
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            module.load_state_dict(own)
        output = module(Bag(features, coords=coords, spacing=224.0))
        weights.update({prefix + k: v for k, v in module.state_dict().items()})
        found |= {f"out.{name}.slide": output.slide, f"out.{name}.scores": output.scores}
    return found, weights


def test_they_still_compute_the_recorded_numbers():
    golden = load_file(GOLDEN)
    found, _ = golden_outputs(golden["in.features"], golden["in.coords"], golden)
    assert set(found) == {name for name in golden if name.startswith("out.")}
    for name, value in found.items():
        torch.testing.assert_close(value, golden[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(LongMIL, {}), (LongMIL, {"global_layer": "cross-scan-mamba"}), (FullAttention, {})],
    ids=str,
)
@pytest.mark.parametrize("cells", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_any_shape_of_tissue_has_an_answer_that_packing_does_not_change(cells, kind, options):
    module = made(kind, **options)
    bags = [bag_of(cells), bag_of(GEOMETRIES["a full square"], seed=1), bag_of(cells, seed=2)]
    with torch.no_grad():
        together = module.forward_packed(BagBatch.pack(bags))
        singles = [module(bag) for bag in bags]
    for field, join in (("slide", torch.stack), ("scores", torch.cat)):
        if getattr(together, field) is None:
            assert options["global_layer"] == "cross-scan-mamba"
            continue
        alone = join([getattr(single, field) for single in singles])
        torch.testing.assert_close(getattr(together, field), alone, rtol=1e-4, atol=1e-5)
        assert bool(torch.isfinite(alone).all())


@pytest.mark.parametrize("options", [{}, RICH, {"pooling": "none"}, {"preset": "v1"}], ids=str)
def test_patches_beyond_the_radius_of_all_local_layers_are_not_heard(options):
    module = made(**{"radius": 2.5, **options})
    radius = module.settings.radius
    reach = int(2 * radius) + 1  # of two layers, one layer's radius behind the other
    cells = [[0, i] for i in range(2 * reach)]
    small, large = bag_of(cells[:-reach]), bag_of(cells)
    features = large.features.clone()
    features[: len(small)] = small.features
    with torch.no_grad():
        before = module.local_tokens(small.features, place([small]))
        after = module.local_tokens(features, place([large]))
    near = len(small) - reach + 1  # tokens whose neighbours' neighbours are in the small bag
    torch.testing.assert_close(after[:near], before[:near])
    assert not torch.allclose(after[near : len(small)], before[near:])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (LongMIL, {}),
        (LongMIL, {**RICH, "radius": 3.7}),
        (LongMIL, {"preset": "v1", "attention_dropout": 0}),
        (LongMIL, {"global_layer": "cross-scan-mamba"}),
        (FullAttention, {"heads": 2, "position": "both"}),
        (LongMILV1, {"positions": "alibi_rope"}),
    ],
    ids=str,
)
def test_fast_paths_in_float64_are_the_reference(kind, options):
    module = made(kind, **options).double()
    found = []
    for backend in ("auto", "reference"):
        bag = bag_of([*GEOMETRIES["a full square"], *GEOMETRIES["two in a place"]])
        features = bag.features.double().requires_grad_()
        with use_backend(backend):
            slide = module(bag.replace(features=features)).slide
            grads = torch.autograd.grad(slide.square().sum(), [features, *module.parameters()])
        found.append([slide, *grads])
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-11, atol=1e-12)


def test_a_patch_alone_in_its_radius_hears_itself_only():
    module = made(radius=3, mlp_ratio=0, local_blocks=1)
    bag = bag_of(GEOMETRIES["a sparse line"])
    block = module.local[0]
    with torch.no_grad():
        x = torch.relu(module.embed(bag.features))
        v = block.qkv(block.norm1(x))[:, 32:]
        torch.testing.assert_close(
            module.local_tokens(bag.features, place([bag])), x + block.proj(v)
        )


def test_with_radius_0_a_patch_hears_those_in_its_place():
    module = made(radius=0, mlp_ratio=0, local_blocks=1)
    bag = bag_of(GEOMETRIES["two in a place"])
    block, spoilt = module.local[0], bag.features.clone()
    spoilt[2] += 1  # in the place of patch 0
    with torch.no_grad():
        x = torch.relu(module.embed(bag.features))
        alone = x + block.proj(block.qkv(block.norm1(x))[:, 32:])
        found = module.local_tokens(bag.features, place([bag]))
        other = module.local_tokens(spoilt, place([bag]))
    torch.testing.assert_close(found[[1, 3]], alone[[1, 3]])
    assert not torch.allclose(found[0], alone[0])
    assert not torch.allclose(found[0], other[0])
    torch.testing.assert_close(found[[1, 3]], other[[1, 3]])


def test_the_slides_of_a_patient_are_one():
    bags = [bag_of(GEOMETRIES["a line"], seed=seed) for seed in (1, 2)]
    joined = Bag.concat(bags)
    module = made(**RICH)
    with torch.no_grad():
        local = module.local_tokens(joined.features, place([joined]))
        for i, bag in enumerate(bags):
            own = module.local_tokens(bag.features, place([bag]))
            torch.testing.assert_close(local[25 * i : 25 * i + 25], own)


def test_a_radius_beyond_the_slide_is_full_attention():
    bag = bag_of(GEOMETRIES["a full square"])
    far, farther, near = (made(radius=r) for r in (16, 1e12, 3))
    with torch.no_grad():
        torch.testing.assert_close(far(bag).slide, farther(bag).slide)
        assert not torch.allclose(far(bag).slide, near(bag).slide, atol=1e-4)


def test_patches_in_one_place_count_one_by_one():
    pooled = packed([torch.tensor([[0, 0], [1, 1], [0, 0], [2, 0]])]).pooled()
    assert pooled.cells.tolist() == [[0, 0], [1, 0]]
    assert pooled.counts.tolist() == [3, 1]
    x = torch.tensor([[3.0], [6.0], [0.0], [5.0]])
    assert pooled.mean(x).tolist() == [[3.0], [5.0]]
    torch.testing.assert_close(
        pooled.spread(torch.tensor([0.6, 0.4])), torch.tensor([0.6, 0.6, 0.6, 0.4]) / 2.2
    )


def ranks(values):
    """Of the rounded values, ties in the middle."""
    below = values[None].lt(values[:, None]).sum(1)
    return (below + values[None].eq(values[:, None]).sum(1) / 2).double()


def test_the_ranking_of_scores_survives_a_grid_that_begins_a_patch_earlier():
    full = torch.cartesian_prod(torch.arange(1, 25), torch.arange(1, 25))
    cells = full[torch.rand(576, generator=torch.Generator().manual_seed(0)) < 0.6]
    features = torch.zeros(len(cells), 24)
    features[:, :2] = (cells / 8).sin()  # tissue that changes slowly
    corner = torch.zeros(1, 2).long()
    bag = Bag(features, cells * 224, spacing=224.0)
    more = Bag(torch.cat([features[:1], features]), torch.cat([corner, bag.coords]), spacing=224.0)
    module = made(slopes=[0.0])
    with torch.no_grad():
        module.glob.qkv.weight.mul_(4)  # else all receive nearly the same
        here = module(bag).scores
        there = module(more).scores[1:]
    both = torch.stack([ranks(here), ranks(there)])
    assert float(torch.corrcoef(both)[0, 1]) > 0.8


def test_blocks_of_two_slides_are_never_one():
    cells = [torch.tensor([[0, 0], [2, 1]]), torch.tensor([[0, 0], [0, 1], [1, 3]])]
    pooled = packed(cells).pooled()
    assert pooled.cells.tolist() == [[0, 0], [1, 0], [0, 0], [0, 1]]
    assert pooled.offsets.tolist() == [0, 2, 4]
    assert pooled.number.tolist() == [0, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("kind", "options"),
    [(LongMIL, {}), (LongMIL, RICH), (FullAttention, {"heads": 2}), (LongMILV1, {})],
    ids=str,
)
def test_scores_are_shares_of_the_slide(kind, options):
    bag = bag_of(GEOMETRIES["a full square"])
    scores = made(kind, **options)(bag).scores
    assert scores.shape == (144,)
    assert bool((scores > 0).all())
    torch.testing.assert_close(scores.sum(), torch.tensor(1.0))
    assert not scores.requires_grad


def test_a_state_space_layer_pays_no_attention_so_there_are_no_scores():
    module = made(global_layer="cross-scan-mamba")
    assert module(bag_of(GEOMETRIES["a line"])).scores is None


def test_a_state_space_layer_has_states_without_weight_decay():
    decayed, spared = made(global_layer="cross-scan-mamba").param_groups(1e-3)
    mamba = made(global_layer="cross-scan-mamba").glob.mamba
    assert [p.shape for p in spared["params"]] == [mamba.A_log.shape, mamba.D.shape]
    assert spared["weight_decay"] == 0
    assert len(decayed["params"]) > 20
    assert made().param_groups(1e-3)[1]["params"] == []


def test_scores_are_the_attention_that_tokens_receive(monkeypatch):
    monkeypatch.setattr("wsizoo_plugin_longmil.blocks.SCORES", 200)
    torch.manual_seed(0)
    q, k = torch.randn(2, 30, 2, 4).unbind(0)
    places = packed([torch.randint(9, (20, 2)), torch.randint(9, (10, 2))])
    bias = Alibi(alibi_slopes(2))
    # through the op itself: a value that tells who was attended to
    for start, end in ((0, 20), (20, 30)):
        own = packed([places.cells[start:end]]).everywhere
        seen = torch.zeros(2, end - start)
        for j in range(end - start):
            v = torch.zeros(end - start, 2, 4)
            v[j] = 1
            seen[:, j] = grid_attention(q[start:end], k[start:end], v, own, bias)[..., 0].mean(0)
        found = received(q, k, places.everywhere, bias)[start:end]
        torch.testing.assert_close(found, seen.mean(0))


def test_alibi_moves_the_answer_as_far_as_its_slopes_say():
    bag = bag_of(GEOMETRIES["a full square"])
    flat, none = made(slopes=[0.0]), made(global_position="none")
    steep = made(slopes=[4.0])
    with torch.no_grad():
        torch.testing.assert_close(flat(bag).slide, none(bag).slide)
        assert not torch.allclose(steep(bag).slide, none(bag).slide, atol=1e-3)


def test_an_option_wins_over_its_preset():
    module = made(preset="v1", radius=7)
    assert (module.settings.heads, module.settings.radius) == (4, 7)
    assert module.settings.local_position == "alibi"
    assert made().settings.heads == 1


def test_half_precision_features_are_read_in_the_precision_of_the_weights():
    bag = bag_of(GEOMETRIES["a line"])
    for kind in KINDS.values():
        module = made(kind)
        low = bag.replace(features=bag.features.bfloat16())
        exact = bag.replace(features=bag.features.bfloat16().float())
        torch.testing.assert_close(module(low).slide, module(exact).slide)


@pytest.mark.parametrize("name", KINDS)
def test_bags_that_cannot_be_read_say_why(name):
    module, bag = made(KINDS[name]), bag_of(GEOMETRIES["a line"])
    broken = bag.features.clone()
    broken[[3, 7]] = torch.nan
    cases = {
        "slide 'S1': 2 of 25 patches have NaN or infinite features, first patch 3": {
            "features": broken
        },
        rf"S1: features are \(25, 23\), {name} reads \(N, 24\)": {"features": broken[:, 1:]},
        "S1 has no coords, so no grid": {"coords": None},
    }
    for message, changes in cases.items():
        with pytest.raises(BagError, match=message):
            module(bag.replace(**changes))
    with pytest.raises(BagError, match="S1 has no patches: nothing to attend to"):
        module(bag.subset(torch.empty(0, dtype=torch.int64)))
    with pytest.raises(BagError, match=rf"S1: {name}'s result is not finite although.*3e\+38"):
        module(bag.replace(features=torch.full((25, 24), 3e38)))


@pytest.mark.parametrize("kind", [LongMIL, FullAttention])
def test_slides_without_one_grid_are_refused(kind):
    module, bag = made(kind), bag_of(GEOMETRIES["a full square"])
    with pytest.raises(BagError, match="S1 has no spacing, so no grid"):
        module(bag.replace(spacing=None, footprint=None))
    moved = bag.replace(coords=bag.coords + torch.tensor([112, 30]))
    torch.testing.assert_close(module(moved).slide, module(bag).slide)
    off = bag.coords.clone()
    off[5, 0] += 90
    off[80, 1] -= 80
    message = r"2 of 144 patches lie off the grid .*first patch 5 at .*spacing is the step"
    with pytest.raises(BagError, match=message):
        module(bag.replace(coords=off))


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize(
    ("far", "span"),
    [
        ([10**14, 0], r"\S+e\+1\d cells of \d+ px in x, [\d.]+ in y"),
        ([-(10**14), 5], r"\S+e\+1\d cells of \d+ px in x, [\d.]+ in y"),
        ([3, 10**14], r"[\d.]+ cells of \d+ px in x, \S+e\+1\d in y"),
    ],
)
def test_patches_on_no_slide_are_refused(kind, far, span):
    message = rf"S1: patches span {span}; at most .* patch 2 lies at \(.*wsizoo inspect FILE"
    with pytest.raises(BagError, match=message):
        made(kind)(bag_of([[0, 0], [0, 1], far, [1, 1]]))


def test_a_slide_among_others_is_named():
    bags = [bag_of(GEOMETRIES["a line"], slide_id=name) for name in ("A", "B")]
    bags[1].features[4] = torch.inf
    with pytest.raises(BagError, match="slide 'B': 1 of 25 patches have NaN or infinite features"):
        made().forward_packed(BagBatch.pack(bags))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": -1}, "longmil's radius is -1, expected a number from 0"),
        ({"radius": float("nan")}, "radius is nan, expected a number from 0"),
        ({"radius": float("inf")}, "radius is inf, expected a number from 0"),
        ({"radius": True}, "radius is True, expected a number from 0"),
        ({"heads": 3}, r"dim is 16, expected a multiple of heads \(3\)"),
        ({"heads": 8, "local_position": "rope"}, "heads are 8, expected a number for which RoPE"),
        ({"heads": 0}, "heads are 0, expected a whole number from 1"),
        ({"local_blocks": -1}, "local_blocks are -1, expected a whole number from 0"),
        ({"mlp_ratio": 0.01}, r"mlp_ratio is 0.01, expected 0, or at least 1 / dim \(16\)"),
        ({"attention_dropout": 1}, "attention_dropout is 1, expected a share from 0"),
        (
            {"slopes": [1, 2]},
            r"longmil's slopes are \[1, 2\], expected a list of numbers from 0, one a head",
        ),
        ({"local_position": "alibi rope"}, "local_position is 'alibi rope', expected one of none"),
        ({"pooling": 2}, "pooling is 2, expected one of 2x2, none"),
        ({"global_layer": "gla"}, "global_layer is 'gla', expected one of attention, cross"),
        ({"distance": "floor"}, "distance is 'floor', expected one of exact, v1"),
        ({"preset": "v3"}, "longmil's preset is 'v3', expected one of paper, v1"),
        ({"raduis": 3}, r"longmil has no argument 'raduis'\. Did you mean.*radius"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        made(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "full-attention's layers are 0, expected a whole number from 1"),
        ({"heads": 8}, "full-attention's heads are 8, expected a number for which RoPE"),
        (
            {"slopes": [-1.0], "position": "alibi"},
            r"full-attention's slopes are \[-1.0\], expected a list of numbers from 0",
        ),
        ({"slopes": [1.0]}, r"slopes are \[1.0\], which has no effect without ALiBi in any layer"),
        ({"position": "axial"}, "full-attention's position is 'axial', expected one of none"),
    ],
    ids=str,
)
def test_options_of_full_attention_that_cannot_be_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        made(FullAttention, **options)


LINEAR = {"global_layer": "cross-scan-mamba"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"local_blocks": 0, "radius": 5},
            "longmil's radius is 5, which has no effect with local_blocks=0: leave it out",
        ),
        ({"local_blocks": 0, "local_position": "rope"}, "local_position is 'rope', which has no"),
        ({**LINEAR, "global_position": "rope"}, "no effect with global_layer=cross-scan-mamba"),
        ({**LINEAR, "local_blocks": 0, "heads": 4}, "heads are 4, which .* without layers of att"),
        ({**LINEAR, "local_blocks": 0, "mlp_ratio": 2}, "mlp_ratio is 2, which has no effect"),
        ({**LINEAR, "local_blocks": 0, "attention_dropout": 0.1}, "attention_dropout is 0.1, whi"),
        ({"global_position": "none", "slopes": [3]}, r"slopes are \[3\], which .* without ALiBi"),
        ({"global_position": "rope", "distance": "v1"}, "distance is 'v1', which has no effect"),
        ({**LINEAR, "slopes": [3]}, r"slopes are \[3\], which has no effect"),
        ({"preset": "v1", "local_blocks": 0, "radius": 10}, "radius is 10, which has no effect"),
    ],
    ids=str,
)
def test_options_that_change_nothing_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        made(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"local_blocks": 0, "radius": 10.0, "local_position": "none"},  # as they are anyway
        {**LINEAR, "slopes": None},
        {**LINEAR, "local_position": "alibi", "slopes": [3]},
        {**LINEAR, "heads": 4, "mlp_ratio": 2},
        {"preset": "v1", "local_blocks": 0},
    ],
    ids=str,
)
def test_options_that_some_layer_reads_or_that_change_nothing_by_default_are_taken(options):
    made(**options)


def record():
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(70, 24, generator=generator)
    cells = torch.randperm(34 * 15, generator=generator)[:70]
    coords = torch.stack([cells // 15, cells % 15], 1) * 224
    found, weights = golden_outputs(features, coords)
    save_file({**weights, "in.features": features, "in.coords": coords, **found}, GOLDEN)


if __name__ == "__main__":
    record()
