"""span and span-unet as aggregators: the contract, the recorded numbers, scores, bad bags.

After a change of the method that is meant, record the golden files anew and say why in the commit:

    python tests/test_model.py
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from wsizoo_plugin_span import hooks
from wsizoo_plugin_span.model import Span, SpanUNet
from wsizoo_plugin_span.pyramid import build

import wsizoo
from wsizoo import Bag, BagBatch
from wsizoo.errors import BagError, SpecError
from wsizoo.ops import rotary_turns
from wsizoo.testing import conformance

GOLDEN = Path(__file__).parent / "golden_model.safetensors"
SMALL = {"in_dim": 24, "dim": 8, "head_dim": 4}
PUBLISHED = {**SMALL, "compat": "published"}
RICH = {
    **SMALL,
    "tokens": ["max", "mean", "std", "lrn0.1"],
    "positions": "rope",
    "half_window": 1,
    "share_qkv": True,
}
GEOMETRIES = {
    "one patch": [[5, 9]],
    "two far apart": [[0, 0], [90_000, 70_000]],
    "a line": [[i, 3] for i in range(25)],
    "a long line": [[3, 2 * i] for i in range(60)],
    "a full square": [[i // 12, i % 12] for i in range(144)],
}


@conformance(Span, **SMALL)
def test_span_is_an_aggregator(check):
    check()


@conformance(Span, **PUBLISHED)
def test_published_span_is_an_aggregator(check):
    check()


@conformance(Span, **RICH, pooling="multiattn")
def test_span_with_attention_pooling_is_an_aggregator(check):
    check()


@conformance(Span, **SMALL, pooling="addition", attention="swin", positions="alibi", layers="12")
def test_span_that_pools_tokens_is_an_aggregator(check):
    check()


@conformance(Span, **SMALL, pooling="concat", kernel=3, down="patchconv", drop_path=0.1)
def test_span_with_overlapping_kernels_is_an_aggregator(check):
    check()


@conformance(SpanUNet, **SMALL)
def test_span_unet_is_an_aggregator(check):
    check()


@conformance(SpanUNet, **PUBLISHED)
def test_published_span_unet_is_an_aggregator(check):
    check()


@conformance(SpanUNet, **RICH, up="patchinvs", attention="tradswin", skip_after_layers=False)
def test_span_unet_in_other_ways_is_an_aggregator(check):
    check()


def bag_of(cells, dim=24, seed=0, **changes):
    cells = torch.tensor(cells)
    features = torch.randn(len(cells), dim, generator=torch.Generator().manual_seed(seed))
    given = {"coords": cells * 224, "spacing": 224.0, "slide_id": "S1", **changes}
    return Bag(features, **given)


def made(kind, **options):
    torch.manual_seed(0)
    return kind(**{**SMALL, **options}).eval()


@torch.no_grad()
def golden_outputs(features, coords, tensors=None):
    """What both networks give for one slide, and their tensors."""
    found, weights = {}, {}
    bag = Bag(features, coords=coords, spacing=224.0)
    for name, kind in (("span", Span), ("unet", SpanUNet)):
        module = made(kind, table_std=0.5)
        prefix = f"weights.{name}."
        if tensors is not None:
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            module.load_state_dict(own)
        output = module(bag)
        weights.update({prefix + k: v for k, v in module.state_dict().items()})
        for field in ("slide", "scores", "instances"):
            if getattr(output, field) is not None:
                found[f"out.{name}.{field}"] = getattr(output, field)
    return found, weights


def test_they_still_compute_the_recorded_numbers():
    golden = load_file(GOLDEN)
    found, _ = golden_outputs(golden["in.features"], golden["in.coords"], golden)
    assert set(found) == {name for name in golden if name.startswith("out.")}
    for name, value in found.items():
        torch.testing.assert_close(value, golden[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compat", [None, "published"])
@pytest.mark.parametrize("kind", [Span, SpanUNet])
@pytest.mark.parametrize("cells", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_any_shape_of_tissue_has_an_answer_that_packing_does_not_change(cells, kind, compat):
    module = made(kind, compat=compat)
    bags = [bag_of(cells), bag_of(GEOMETRIES["a full square"], seed=1), bag_of(cells, seed=2)]
    with torch.no_grad():
        packed = module.forward_packed(BagBatch.pack(bags))
        singles = [module(bag) for bag in bags]
    for field, join in (("slide", torch.stack), ("instances", torch.cat), ("scores", torch.cat)):
        if getattr(packed, field) is not None:
            alone = join([getattr(single, field) for single in singles])
            torch.testing.assert_close(getattr(packed, field), alone, rtol=1e-4, atol=1e-5)
            assert bool(torch.isfinite(alone).all())


def test_by_default_pads_are_no_tokens():
    module, published = made(Span), made(Span, compat="published")
    published.load_state_dict(module.state_dict())
    bag = bag_of([[3, 4]])
    with torch.no_grad():
        one = module(bag)
        # a lone patch hears itself and the global token at every stage, and those only
        features, globals_ = module.encoder.stages[0].slot.block(bag.features, None), None
        assert len(features) == 1
        assert globals_ is None
        torch.testing.assert_close(one.scores, torch.ones(1))
        assert not torch.allclose(one.slide, published(bag).slide)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pooling": "last"},
        {"pooling": "multiattn"},
        {"pooling": "addition"},
        {"layers": "101", "compat": "published"},
        {"kernel": 3, "pooling": "concat"},
        {"down": "identity"},
    ],
    ids=str,
)
def test_scores_are_shares_of_the_slide(options):
    module = made(Span, **options)
    bag = bag_of(GEOMETRIES["a full square"])
    scores = module(bag).scores
    assert scores.shape == (144,)
    assert bool((scores >= 0).all())
    torch.testing.assert_close(scores.sum(), torch.tensor(1.0))
    assert not scores.requires_grad


def test_scores_follow_the_attention_of_the_global_tokens():
    module = made(Span, layers="1", positions="none")
    layer = module.encoder.stages[0].layers[0]
    bag = bag_of(GEOMETRIES["a line"])
    with torch.no_grad():
        tokens = module.encoder.stages[0].slot.block(bag.features, None)
        first = module.encoder.stages[0].slot.of_globals(module.encoder.tokens.learnable[None])
        keys = layer.k2(layer.norm1(torch.cat([tokens, first[0]]))).view(-1, 2, 4)
        query = layer.q2(layer.norm1(first[0])).view(2, 4)
        paid = torch.softmax((keys * query).sum(-1) / 2, 0).mean(1)[:-1]
    torch.testing.assert_close(module(bag).scores, paid / paid.sum())


def test_the_patches_under_a_cell_have_its_score():
    module = made(Span, layers="01", pooling="last")
    # nine rows of cells get one before them, so that these four end up under one kernel
    alone, four = [[0, 0]], [[7, 7], [7, 8], [8, 7], [8, 8]]
    scores = module(bag_of(alone + four)).scores
    torch.testing.assert_close(scores[1:], scores[1].expand(4))


@pytest.mark.parametrize("layers", ["11", "111"])
def test_a_patch_alone_under_its_cell_is_as_bright_as_many(layers):
    module = made(Span, layers=layers, positions="none")
    cells = GEOMETRIES["a full square"] + [[12, i] for i in range(0, 12, 4)]  # at its border
    bag = bag_of(cells)
    bag = bag.replace(features=bag.features[:1].expand(len(bag), -1))  # all the same
    scores = module(bag).scores * len(bag)
    assert float(scores.max() / scores.min()) < 1.5


@pytest.mark.parametrize("token", [0, "0.0", "fix0", "lrn0"])
def test_a_global_token_may_begin_as_zeros(token):
    module = made(Span, tokens=[token])
    start = module.encoder.tokens
    (drawn,) = [x for x in (start.random, start.fixed, start.learnable) if x is not None]
    assert not drawn.any()
    assert module(bag_of(GEOMETRIES["a line"])).slide.isfinite().all()


@pytest.mark.parametrize("kernel", [(3, 2, 1), (3, 3, 1), (2, 2, 2)])
def test_a_published_decoder_has_its_own_kernel_where_the_encoder_merges(kernel):
    options = dict(zip(("kernel", "stride", "dilation"), kernel, strict=True))
    module = made(SpanUNet, **options, down="patchmerge", up="patchinvs", compat="published")
    bag = bag_of(GEOMETRIES["a full square"])
    pyramid = build([bag.grid()], module.settings.plan)
    with torch.no_grad():
        encoded = module.encoder(bag.features, pyramid)
        coarse, fine = encoded[2], encoded[1]
        slot = module.decoder.stages[0].slot
        wanted, seen = [], []
        hook = slot.register_forward_hook(lambda _, given, out: seen.append(out[0]))
        instances = module(bag).instances
        hook.remove()
        size, stride, dilation = kernel
        rows = {tuple(cell): i for i, cell in enumerate(coarse.level.cells.tolist())}
        for a, b in fine.level.cells.tolist():
            total = torch.zeros(slot.block.weight.shape[1])
            for (x, y), i in rows.items():
                at = a - x * stride, b - y * stride
                if all(0 <= d < size * dilation and d % dilation == 0 for d in at):
                    part = slot.block.weight[:, :, at[0] // dilation, at[1] // dilation]
                    total = total + coarse.tokens[i] @ part
            wanted.append(total)
    assert instances.shape == (144, module.instance_dim)
    torch.testing.assert_close(seen[0], slot.block.norm(torch.stack(wanted)))


def test_global_tokens_that_hear_nothing_have_no_scores():
    module = made(Span, attention="swin", tokens=["mean"])
    assert module(bag_of(GEOMETRIES["a line"])).scores is None


def test_heads_see_a_slide_vector_of_the_stated_width():
    assert made(Span, pooling="concat").out_dim == 24
    assert made(Span, pooling="concat", widening=2).out_dim == 8 + 16 + 32
    assert made(SpanUNet).instance_dim == 16
    assert made(SpanUNet, skip="add").instance_dim == 8


def test_half_precision_features_are_read_in_the_precision_of_the_weights():
    module, bag = made(Span), bag_of(GEOMETRIES["a line"])
    for dtype in (torch.float16, torch.bfloat16):
        low = bag.replace(features=bag.features.to(dtype))
        exact = bag.replace(features=bag.features.to(dtype).float())
        torch.testing.assert_close(module(low).slide, module(exact).slide)


@pytest.mark.parametrize("kind", [Span, SpanUNet])
def test_bags_that_cannot_be_read_say_why(kind):
    module, bag = made(kind), bag_of(GEOMETRIES["a line"])
    broken = bag.features.clone()
    broken[[3, 7]] = torch.nan
    whose = module.settings.whose
    cases = {
        "slide 'S1': 2 of 25 patches have NaN or infinite features, first patch 3": {
            "features": broken
        },
        rf"S1: features are \(25, 23\), {whose} reads \(N, 24\)": {"features": broken[:, 1:]},
        "S1 has no coords, so no grid": {"coords": None},
        "S1 has no spacing, so no grid": {"spacing": None, "footprint": None},
    }
    for message, changes in cases.items():
        with pytest.raises(BagError, match=message):
            module(bag.replace(**changes))
    with pytest.raises(BagError, match="S1 has no patches: nothing to build a grid of"):
        module(bag.subset(torch.empty(0, dtype=torch.int64)))
    with pytest.raises(BagError, match=r"1 patches share a grid cell with another, first patches"):
        module(bag_of([[0, 0], [1, 2], [0, 0]]))


@pytest.mark.parametrize("far", [[10**12, 0], [-(10**12), 5], [3, 10**12]])
def test_patches_on_no_slide_are_refused(far):
    message = r"S1: patches span \S+ cells of 224 px in x, \S+ in y; .* patch 2 lies at \("
    with pytest.raises(BagError, match=message + r".*wsizoo inspect FILE"):
        made(Span)(bag_of([[0, 0], [0, 1], far, [1, 1]]))


def test_a_slide_among_others_is_named():
    module = made(Span)
    bags = [bag_of(GEOMETRIES["a line"], slide_id=name) for name in ("A", "B")]
    bags[1].features[4] = torch.inf
    with pytest.raises(BagError, match="slide 'B': 1 of 25 patches have NaN or infinite features"):
        module.forward_packed(BagBatch.pack(bags))


def test_patches_off_the_grid_are_refused_wherever_the_grid_begins():
    module, bag = made(Span), bag_of(GEOMETRIES["a full square"])
    moved = bag.replace(coords=bag.coords + torch.tensor([100, 30]))
    torch.testing.assert_close(module(moved).slide, module(bag).slide)
    off = bag.coords.clone()
    off[5, 0] += 90
    off[80, 1] -= 80
    with pytest.raises(BagError, match=r"2 of 144 patches lie off the grid.*first patch 5 at"):
        module(bag.replace(coords=off))


@pytest.fixture(scope="module")
def registry():
    from types import SimpleNamespace

    from wsizoo.plugins import discover
    from wsizoo.registry import Registry

    point = SimpleNamespace(name="span", value=hooks.__name__, dist=None, load=lambda: hooks)
    return Registry.of(discover([point]))


@pytest.mark.parametrize(
    ("name", "overrides", "field"),
    [
        ("span-mil-uni", ["head.classes=[normal,tumour]"], "logits"),
        ("span-mil-resnet50", ["head.classes=[normal,tumour]"], "logits"),
        ("span-surv-uni", [], "hazards"),
        ("span-unet-uni", ["head.classes=[normal,tumour]"], "instance_logits"),
        ("span-unet-resnet50", ["head.classes=[normal,tumour]"], "instance_logits"),
    ],
)
def test_its_models_build_by_name(name, overrides, field, registry):
    model = wsizoo.build(name, *overrides, registry=registry)
    with torch.no_grad():
        output = model(bag_of(GEOMETRIES["a line"], dim=model.in_dim))
    assert getattr(output, field) is not None


def record():
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(70, 24, generator=generator)
    cells = torch.randperm(14 * 15, generator=generator)[:70]
    coords = torch.stack([cells // 15, cells % 15], 1) * 224
    found, weights = golden_outputs(features, coords)
    save_file({**weights, "in.features": features, "in.coords": coords, **found}, GOLDEN)


def test_features_that_overflow_are_an_error_that_says_so():
    model = wsizoo.build("span-mil-uni", "head.classes=[a,b]", seed=0).eval()
    cells = torch.arange(6)[:, None] * torch.tensor([1, 0])
    features = torch.full((6, 1024), 3e38)
    with pytest.raises(BagError, match=r"S1: span's result is not finite although.*3e\+38"):
        model(wsizoo.Bag(features, cells * 224, spacing=224.0, slide_id="S1"))


def test_rotary_angles_tell_far_cells_apart_in_half_precision():
    cells = torch.tensor([[1000, 2001], [1001, 2001], [10**6, 3]])
    exact, half = (rotary_turns(cells, 64, dtype) for dtype in (torch.float64, torch.bfloat16))
    for a, b in zip(exact, half, strict=True):
        assert (a - b).abs().max() < 0.01


if __name__ == "__main__":
    record()


def test_a_head_of_the_slide_is_refused_where_there_are_only_patches():
    with pytest.raises(
        SpecError, match=r"reads one vector a slide, which .*'span-unet' of .* does"
    ):
        wsizoo.build("span-unet-uni", "head={name: classification, classes: [a, b]}")
