"""SPAN v1 equals its equations written as loops, and behaves as an aggregator must.

After a change of the method that is meant, record the golden file anew and say why in the commit:

    python tests/test_v1.py
"""

import functools
import math
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from wsizoo_plugin_span import hooks
from wsizoo_plugin_span.pyramid import build
from wsizoo_plugin_span.v1 import SpanV1

import wsizoo
from wsizoo import Bag, BagBatch
from wsizoo.errors import BagError, SpecError
from wsizoo.plugins import discover
from wsizoo.registry import Registry
from wsizoo.testing import conformance

GOLDEN = Path(__file__).parent / "golden_v1.safetensors"
WEIGHTS = "weights."
SMALL = {"dim": 16, "head_dim": 8, "half_window": 2}
VARIANTS = {
    "default": {},
    "alibi": {"positions": "alibi"},
    "rope": {"positions": "rope"},
    "none": {"positions": "none"},
    "not-shifted": {"shifted": False},
    "no-pyramid": {"layers": "3"},
    "two-stages": {"layers": "21"},
    "no-global-token": {"global_tokens": 0},
    "three-global-tokens": {"global_tokens": 3, "head_dim": 4, "positions": "alibi"},
    "pooled-by-global-tokens": {"pooling": "global", "global_tokens": 2, "positions": "alibi"},
    "wide-window": {"half_window": 3, "ff_ratio": 1.5},
}


@conformance(SpanV1, **SMALL)
def test_it_is_an_aggregator(check):
    check()


@conformance(SpanV1, **SMALL, positions="alibi", pooling="global", global_tokens=2)
def test_pooled_by_its_global_tokens_it_is_one_too(check):
    check()


@conformance(SpanV1, **SMALL, positions="rope", global_tokens=0, layers="12")
def test_with_rotary_positions_and_no_global_token_it_is_one_too(check):
    check()


# The paper's equations, written slowly: dense masks, loops over pairs, heads and kernel cells.


def same_window(one, other, shift, side):
    return all((one[i] + shift) // side == (other[i] + shift) // side for i in (0, 1))


def may_attend(cells, w, shifted):
    """(T, T) bool: Algorithm 1, the windows of D and, shifted, those of D'."""
    shifts = (0, w) if shifted else (0,)
    rows = [[any(same_window(t, u, s, 2 * w) for s in shifts) for u in cells] for t in cells]
    return torch.tensor(rows)


def bias(position, layer, head, heads, w, query, key):
    da, db = key[0] - query[0], key[1] - query[1]
    if position == "rpb":
        a, b = (max(-w, min(w, d)) + w for d in (da, db))
        return layer["bias.table"][head, a, b]
    if position == "alibi":
        return torch.tensor(-(2.0 ** (-8 * (head + 1) / heads)) * (abs(da) + abs(db)))
    return torch.tensor(0.0)


def turned(vector, cell):
    """Axial RoPE of one head's vector: the first half by a, the second by b, pair by pair."""
    out, half = [], len(vector) // 2
    for axis in (0, 1):
        for j in range(half // 2):
            angle = cell[axis] * 10000.0 ** (-2 * j / half)
            x, y = vector[axis * half + 2 * j], vector[axis * half + 2 * j + 1]
            out += [x * math.cos(angle) - y * math.sin(angle)]
            out += [x * math.sin(angle) + y * math.cos(angle)]
    return torch.stack(out)


def local_attention(q, k, v, cells, layer, head, method):
    w, heads = method["half_window"], method["heads"]
    if method["positions"] == "rope":
        q = torch.stack([turned(x, c) for x, c in zip(q, cells, strict=True)])
        k = torch.stack([turned(x, c) for x, c in zip(k, cells, strict=True)])
    allowed = may_attend(cells, w, method["shifted"])
    rows = []
    for t, here in enumerate(cells):
        keys = [u for u in range(len(cells)) if allowed[t, u]]
        scores = [
            q[t] @ k[u] / math.sqrt(len(q[t]))
            + bias(method["positions"], layer, head, heads, w, here, cells[u])
            for u in keys
        ]
        rows.append(torch.softmax(torch.stack(scores), 0) @ v[keys])
    return torch.stack(rows)


def one_layer(x, tokens, cells, layer, method):
    """Pre-norm transformer layer; also what the global tokens attended to, (heads, M, T)."""
    n, dim = len(x), x.shape[1]
    both = torch.cat([x, tokens])
    normed = F.layer_norm(both, (dim,), layer["norm1.weight"], layer["norm1.bias"])
    q, k, v = F.linear(normed, layer["qkv.weight"], layer["qkv.bias"]).split(dim, 1)
    out, heard = [], []
    for head in range(method["heads"]):
        width = dim // method["heads"]
        own = slice(head * width, (head + 1) * width)
        qh, kh, vh = q[:, own], k[:, own], v[:, own]
        near = local_attention(qh[:n], kh[:n], vh[:n], cells, layer, head, method)
        if len(tokens):
            down = torch.softmax(qh[:n] @ kh[n:].T / math.sqrt(width), 1)  # each patch: tokens
            up = torch.softmax(qh[n:] @ kh[:n].T / math.sqrt(width), 1)  # each token: patches
            out.append(torch.cat([near + down @ vh[n:], up @ vh[:n]]))
            heard.append(up)
        else:
            out.append(near)
    both = both + F.linear(torch.cat(out, 1), layer["out.weight"], layer["out.bias"])
    normed = F.layer_norm(both, (dim,), layer["norm2.weight"], layer["norm2.bias"])
    hidden = F.linear(normed, layer["ffn.0.weight"], layer["ffn.0.bias"]).relu()
    both = both + F.linear(hidden, layer["ffn.2.weight"], layer["ffn.2.bias"])
    return both[:n], both[n:], heard


def halved(x, cells, weight, bias):
    """Convolution of kernel 2 and stride 2 over occupied cells, and who became whose part."""
    found = sorted({(a // 2, b // 2) for a, b in cells})
    rows = [bias] * len(found)
    over = [found.index((a // 2, b // 2)) for a, b in cells]
    for i, (a, b) in enumerate(cells):
        rows[over[i]] = rows[over[i]] + weight[:, :, a % 2, b % 2] @ x[i]
    return torch.stack(rows), found, over


def under(names, prefix):
    return {name[len(prefix) :]: p for name, p in names.items() if name.startswith(prefix)}


def slowly(weights, method, features, cells):
    """Slide vector and scores of one slide, from the module's parameters by name."""
    low = cells.min(0).values
    cells = [tuple(c) for c in (cells - low).tolist()]
    x = F.linear(features, weights["embed.0.weight"], weights["embed.0.bias"])
    tokens = weights.get("tokens", x[:0])
    over = list(range(len(cells)))
    for stage, layers in enumerate(method["layers"]):
        if stage:
            conv = under(weights, f"halvings.{stage - 1}.")
            x, cells, parents = halved(x, cells, conv["weight"], conv["bias"])
            over = [parents[cell] for cell in over]
        for i in range(int(layers)):
            layer = under(weights, f"stages.{stage}.{i}.")
            x, tokens, heard = one_layer(x, tokens, cells, layer, method)
    if method["pooling"] == "global":
        slide, pooled = tokens.mean(0), torch.stack(heard).mean((0, 1))
    else:
        pooled = torch.softmax(x @ weights["score.weight"][0], 0)
        slide = pooled @ x
    return slide, pooled[over] / pooled[over].sum()


def slide(n, seed=0, dim=6, box=11):
    """n patches in any order, somewhere on a grid with holes and odd sides."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.randperm(box * (box - 2), generator=generator)[:n]
    cells = torch.stack([place % box, place // box], 1) + torch.tensor([31, 12])
    features = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    return Bag(features, cells * 224, spacing=224.0, slide_id=f"s{seed}")


def made(**changes):
    """A network with every parameter away from its start, in float64."""
    torch.manual_seed(0)
    method = SpanV1(6, **{**SMALL, **changes}).double().eval()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return method


def facts(changes):
    rest = {"layers": "111", "shifted": True, "positions": "rpb", "pooling": "attention"}
    method = {**SMALL, **rest, **changes}
    return {**method, "heads": method["dim"] // method["head_dim"]}


def gradients(value, weights, features):
    factors = torch.linspace(0.5, 1.5, len(value), dtype=value.dtype)
    total = (factors * value).sum()
    return torch.autograd.grad(total, [features, *weights.values()])


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("n", [1, 2, 40])
def test_it_equals_the_equations_and_their_gradients(changes, n):
    method, bag = made(**changes), slide(n)
    weights = dict(method.named_parameters())
    features = bag.features.requires_grad_()
    output = method(bag)
    expected, scores = slowly(weights, facts(changes), features, bag.grid())
    torch.testing.assert_close(output.slide, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(output.scores, scores.detach(), rtol=1e-10, atol=1e-12)
    pairs = zip(
        ["features", *weights],
        gradients(output.slide, weights, features),
        gradients(expected, weights, features),
        strict=True,
    )
    for name, got, wanted in pairs:
        torch.testing.assert_close(
            got, wanted, rtol=1e-9, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_packed_slides_give_the_same_as_one_by_one(changes):
    method = made(**changes)
    bags = [slide(n, seed=n) for n in (1, 40, 13)]
    far = bags[2].replace(coords=bags[2].coords + 224 * 70_001)
    batch = BagBatch.pack([bags[0], far, bags[1]])
    weights, batch_features = dict(method.named_parameters()), batch.features.requires_grad_()
    packed = method.forward_packed(batch)
    singles = [method(bag.replace(features=part)) for bag, part in separate(batch, batch_features)]
    torch.testing.assert_close(packed.slide, torch.stack([s.slide for s in singles]))
    torch.testing.assert_close(packed.scores, torch.cat([s.scores for s in singles]))
    got = gradients(packed.slide.flatten(), weights, batch_features)
    wanted = gradients(torch.cat([s.slide for s in singles]), weights, batch_features)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def separate(batch, features):
    return zip(batch.bags, features.split(batch.lengths.tolist()), strict=True)


@pytest.mark.parametrize("positions", ["rpb", "alibi", "rope", "none"])
@pytest.mark.parametrize("cells", [(1, 0), (0, 1), (5, 3), (70_000, -8)])
def test_where_the_slide_lies_on_its_grid_changes_nothing(positions, cells):
    method, bag = made(positions=positions), slide(40)
    moved = bag.replace(coords=bag.coords + 224 * torch.tensor(cells))
    torch.testing.assert_close(method(moved).slide, method(bag).slide)


@pytest.mark.parametrize("positions", ["rpb", "alibi", "rope"])
def test_position_terms_see_the_arrangement_inside_a_window(positions):
    """Two patches of one window and one top cell each way: only their offset can tell."""
    method = made(positions=positions, layers="1")
    features = slide(2).features
    beside, below = (
        Bag(features, torch.tensor([[0, 0], cell]) * 224, spacing=224.0)
        for cell in ((0, 1), (1, 0))
    )
    far = Bag(features, torch.tensor([[0, 0], [3, 3]]) * 224, spacing=224.0)
    blind = made(positions="none", layers="1")
    torch.testing.assert_close(blind(beside).slide, blind(far).slide)
    assert (method(beside).slide - method(far).slide).abs().max() > 1e-4
    same = torch.allclose(method(beside).slide, method(below).slide)
    assert same == (positions == "alibi")  # which knows no direction


def reached(method, n):
    """Which of n patches in a line the top's fourth cell depends on."""
    cells = torch.stack([torch.arange(n), torch.zeros(n, dtype=torch.int64)], 1)
    features = slide(n).features.requires_grad_()
    bag = Bag(features, cells * 224, spacing=224.0)
    tokens, _, _ = method.refined(method.embed(features), build([bag.grid()], method.plan))
    (gradient,) = torch.autograd.grad(tokens[3].sum(), features)
    return torch.nonzero(gradient.abs().sum(1) > 1e-12)[:, 0].tolist()


def test_shifted_windows_join_neighbouring_windows():
    alone = {"layers": "1", "global_tokens": 0}
    assert reached(made(**alone, shifted=False), 11) == [0, 1, 2, 3]
    assert reached(made(**alone), 11) == [0, 1, 2, 3, 4, 5]


def test_a_global_token_joins_all_patches():
    assert reached(made(layers="2", shifted=False), 11) == list(range(11))


def test_the_odd_last_row_is_not_dropped():
    bag = Bag(slide(3).features, torch.tensor([[0, 0], [1, 0], [2, 0]]) * 224, spacing=224.0)
    features = bag.features.requires_grad_()
    (gradient,) = torch.autograd.grad(made(global_tokens=0)(bag).slide.sum(), features)
    assert (gradient.abs().sum(1) > 1e-9).all()


def test_the_patches_under_a_cell_have_its_score():
    bag = slide(40)
    scores = made()(bag).scores
    torch.testing.assert_close(scores.sum(), torch.tensor(1.0, dtype=torch.float64))
    above = (bag.grid() - bag.grid().min(0).values) // 4
    for cell in above.unique(dim=0):
        under_it = scores[(above == cell).all(1)]
        assert (under_it == under_it[0]).all()


def test_dropout_acts_in_training_only():
    method, bag = made(attention_dropout=0.5), slide(40)
    torch.testing.assert_close(method(bag).slide, method(bag).slide, rtol=0, atol=0)
    method.train()
    assert not torch.allclose(method(bag).slide, method(bag).slide)


@functools.cache
def registry():
    """The core's registry with this plugin, installed or not."""
    dist = types.SimpleNamespace(name="wsizoo-plugin-span", version="0")
    point = types.SimpleNamespace(name="span", value=hooks.__name__, dist=dist, load=lambda: hooks)
    return Registry.of(discover([point]))


def built(*changes):
    classes = "head.classes=[normal,tumour]"
    return wsizoo.build("span-v1-resnet50", classes, *changes, registry=registry())


def test_its_model_has_as_many_parameters_as_the_paper_states():
    """Table 1: 2.37 M, with the two classes of CAMELYON16."""
    model = built()
    assert isinstance(model.aggregator, SpanV1)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == 2_371_566
    assert round(count / 1e6, 2) == 2.37


def test_parameters_come_from_the_entry_and_overrides():
    changes = "layers=12", "positions=rope", "half_window=3", "dim=128"
    model = built(*(f"aggregator.{change}" for change in changes))
    method = model.aggregator
    assert [len(stage) for stage in method.stages] == [1, 2]
    assert (method.plan.half_window, method.out_dim) == (3, 128)
    assert method.stages[0][0].rotary
    output = model(wide(slide(40, dim=1024)))
    assert (output.logits.shape, output.scores.shape) == ((2,), (40,))


def wide(bag):
    return bag.to(dtype=torch.float32)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_patch_and_a_line_of_patches_have_an_answer(n):
    model = built()
    cells = torch.stack([torch.zeros(n, dtype=torch.int64), torch.arange(n)], 1)
    bag = Bag(torch.randn(n, 1024), cells * 224, spacing=224.0)
    assert model(bag).logits.isfinite().all()
    assert model(bag.to(dtype=torch.float16)).logits.isfinite().all()


def test_bad_slides_are_refused():
    model = built()
    good = wide(slide(5, dim=1024))
    with pytest.raises(BagError, match="'s0' has no patches"):
        model(good.subset(torch.empty(0, dtype=torch.int64)))
    with pytest.raises(BagError, match="of width 1024; those of slide 's0' have width 6"):
        model(wide(slide(5)))
    with pytest.raises(BagError, match="1 of 5 patches have NaN"):
        model(good.replace(features=good.features.index_fill(0, torch.tensor(2), math.nan)))
    with pytest.raises(BagError, match="uses coordinates, slide 's0' has no coords"):
        model(good.replace(coords=None))
    twice = good.coords[[0, 1, 2, 3, 0]]
    with pytest.raises(
        BagError, match=r"1 patches share a grid cell.*patches 0 and 4.*--collisions"
    ):
        model(good.replace(coords=twice))
    with pytest.raises(BagError, match="lie off the grid of spacing"):
        model(good.replace(coords=good.coords + torch.tensor([[100], [0], [0], [0], [0]])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "ape"}, "span-v1's positions is 'ape', expected one of rpb, alibi, rope"),
        ({"pooling": "max"}, "span-v1's pooling is 'max', expected one of attention, global"),
        ({"layers": ""}, "span-v1's layers is '', expected a digit from 1 a stage"),
        ({"layers": "10"}, "span-v1's layers is '10'"),
        ({"layers": "11-1"}, "span-v1's layers is '11-1'"),
        ({"head_dim": 3}, r"span-v1's dim is 16, expected a multiple of head_dim \(3\)"),
        ({"dim": 0}, "span-v1's dim is 0, expected a whole number from 1"),
        ({"head_dim": 2, "positions": "rope"}, "head_dim is 2, expected a multiple of 4 for pos"),
        ({"half_window": 0}, "span-v1's half_window is 0, expected a whole number from 1 to 16"),
        ({"half_window": 2.5}, "span-v1's half_window is 2.5, expected a whole number from 1"),
        ({"dim": 16.0}, "span-v1's dim is 16.0, expected a whole number from 1"),
        ({"head_dim": 0}, "span-v1's head_dim is 0, expected a whole number from 1"),
        ({"ff_ratio": 0}, r"span-v1's ff_ratio is 0, expected at least 1 / dim \(16\)"),
        ({"ff_ratio": "two"}, "span-v1's ff_ratio is 'two', expected a number from 0"),
        ({"shifted": "nope"}, "span-v1's shifted is 'nope', expected true or false"),
        ({"attention_dropout": 2}, "span-v1's attention_dropout is 2, expected a share from 0"),
        ({"input_dropout": 1}, "span-v1's input_dropout is 1, expected a share from 0 to below 1"),
        ({"global_tokens": 1.5}, "span-v1's global_tokens is 1.5, expected a whole number from 0"),
        ({"global_tokens": -1}, "span-v1's global_tokens is -1, expected a whole number from 0"),
        ({"global_tokens": 0, "pooling": "global"}, "is 0, expected at least 1 for pooling=global"),
    ],
)
def test_arguments_that_make_no_network_are_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        SpanV1(6, **{**SMALL, **changes})


def test_called_directly_it_reads_and_refuses_as_span_does():
    method, good = made().float(), wide(slide(5))
    half = good.to(dtype=torch.float16)
    torch.testing.assert_close(method(half).slide, method(wide(half)).slide)
    with pytest.raises(BagError, match=r"s0: features are \(5, 3\), span-v1 reads \(N, 6\)"):
        method(wide(slide(5, dim=3)))
    bad = good.replace(features=good.features.index_fill(0, torch.tensor(2), math.inf))
    message = "slide 's0': 1 of 5 patches have NaN or infinite features, first patch 2"
    with pytest.raises(BagError, match=message):
        method(bad)
    with pytest.raises(BagError, match=message):
        method.forward_packed(BagBatch.pack([wide(slide(7, seed=1)), bad]))


def test_weights_that_overflow_are_told_from_features_that_do():
    method = made().float()
    method.embed[0].weight.data.fill_(1e38)
    with pytest.raises(BagError, match="s0: span-v1's result is not finite although its features"):
        method(wide(slide(5)))


def test_it_still_computes_the_recorded_embedding():
    golden = load_file(GOLDEN)
    method = SpanV1(6, **SMALL).eval()
    method.load_state_dict(under(golden, WEIGHTS))
    with torch.no_grad():
        output = method(Bag(golden["in.features"], golden["in.coords"], spacing=224.0))
    torch.testing.assert_close(output.slide, golden["out.slide"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.scores, golden["out.scores"], rtol=1e-4, atol=1e-5)


def record():
    method, bag = made().float(), wide(slide(40))
    with torch.no_grad():
        output = method(bag)
    weights = {WEIGHTS + name: tensor for name, tensor in method.state_dict().items()}
    outputs = {"out.slide": output.slide, "out.scores": output.scores}
    save_file({**weights, "in.features": bag.features, "in.coords": bag.coords, **outputs}, GOLDEN)


if __name__ == "__main__":
    record()
