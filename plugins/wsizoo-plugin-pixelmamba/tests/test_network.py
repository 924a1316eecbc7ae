"""The network: whatever saves memory changes no number; the map back to the original regions."""

import pytest
import torch
from wsizoo_plugin_pixelmamba.fusion import fuse
from wsizoo_plugin_pixelmamba.network import Network
from wsizoo_plugin_pixelmamba.serialise import region_tokens
from wsizoo_plugin_pixelmamba.settings import Settings

from wsizoo.errors import BagError

LAYERS = ("h-cat", "v-avg", "")


def made(**options):
    torch.manual_seed(0)
    network = Network(Settings(**{"layers": LAYERS, "d_state": 3, **options})).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def regions(slides=1, n=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(slides, n, 3, 4, 4, generator=generator).double()


def slopes(network, given):
    slide = network(given).slide
    weights = torch.linspace(-1, 1, slide.numel(), dtype=slide.dtype).view_as(slide)
    return slide, torch.autograd.grad((slide * weights).sum(), list(network.parameters()))


@pytest.mark.parametrize("piece", [None, 5, 40, 200])
@pytest.mark.parametrize(("slides", "n"), [(1, 5), (3, 1), (2, 3)])
@pytest.mark.parametrize("cls_mode", ["repeat", "linear"])
def test_what_saves_memory_changes_no_number(monkeypatch, piece, slides, n, cls_mode):
    given = regions(slides, n)
    whole = slopes(made(cls_mode=cls_mode), given)
    if piece:
        monkeypatch.setattr("wsizoo_plugin_pixelmamba.network.piece_of", lambda *_: piece)
    pieced = slopes(made(recompute=piece is not None, cls_mode=cls_mode), given)
    torch.testing.assert_close(pieced[0], whole[0], rtol=1e-7, atol=1e-7)
    for a, b in zip(pieced[1], whole[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_the_less_memory_the_shorter_the_pieces(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "wsizoo_plugin_pixelmamba.network.swept", lambda x, *rest: (seen.append(rest[-1]), x)[1]
    )
    lengths = []
    for working_mb in (1, 2, 512):
        seen.clear()
        made(working_mb=working_mb, alpha=0.0)(regions(n=400))
        lengths.append(max(seen, default=None))
    assert lengths[0] < lengths[1] < 400 * 17
    assert lengths[1] // 2 in (lengths[0], lengths[0] + 1)
    assert lengths[2] is None  # all at once


def test_several_slides_are_those_one_by_one():
    network, given = made(), regions(slides=3, n=6)
    together = network(given)
    for i, slide in enumerate(given):
        alone = network(slide[None])
        torch.testing.assert_close(together.slide[i], alone.slide[0])
        assert torch.equal(together.region_of[i], alone.region_of[0])


def test_the_map_leads_each_region_to_the_one_it_became():
    network, given = made(alpha=0.3), regions(n=9)
    tokens = region_tokens(given, network.cls_token)
    members = [[i] for i in range(9)]
    for step in network.steps(tokens, (4, 4)):
        merged = step.fused[0].merged_into.tolist()
        after = [[] for _ in range(step.tokens.shape[1])]
        for place, into in enumerate(merged):
            after[into] += members[place]
        members = after
    expected = [next(j for j, own in enumerate(members) if i in own) for i in range(9)]
    found = network(given)
    assert found.region_of[0].tolist() == expected
    assert found.regions.shape[1] == len(members) == 6
    torch.testing.assert_close(found.slide, found.regions.mean(1))


def test_k_follows_the_input_or_what_is_left():
    counts = {}
    for count in ("input", "current"):
        network = made(count=count, alpha=1.0)
        tokens = region_tokens(regions(n=30), network.cls_token)
        counts[count] = [step.tokens.shape[1] for step in network.steps(tokens, (4, 4))]
    assert counts == {"input": [20, 10, 5], "current": [20, 13, 8]}


def test_a_learned_cls_starts_as_the_repeated_one():
    same = [made().layers[0], made(cls_mode="linear").layers[0]]
    learned = Network(Settings(layers=LAYERS, cls_mode="linear")).layers[0]
    assert same[0].cls_weight is None
    tokens = torch.randn(1, 2, 17, 3)
    plain = Network(Settings(layers=LAYERS)).layers[0]
    torch.testing.assert_close(learned.expand(tokens, (4, 4)), plain.expand(tokens, (4, 4)))


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (2, 1)])
def test_regions_that_cannot_be_halved_are_refused(shape):
    with pytest.raises(
        BagError, match=f"regions are {shape[0]} x {shape[1]} px .* tokens of 2 x 2"
    ):
        made()(torch.zeros(1, 2, 3, *shape).double())


def test_fusion_reads_the_residual_stream():
    network, given = made(alpha=0.3), regions(n=8)
    tokens = region_tokens(given, network.cls_token)
    layer = network.layers[0]
    step = next(network.steps(tokens, (4, 4)))
    assert torch.equal(step.fused[0].merged_into, fuse(layer.mix(tokens)[0], 1).merged_into)


@pytest.mark.parametrize("piece", [None, 10])
def test_under_bfloat16_it_trains_to_about_the_same_slopes(monkeypatch, piece):
    if piece:
        monkeypatch.setattr("wsizoo_plugin_pixelmamba.network.piece_of", lambda *_: piece)
    network, given = made(alpha=0.0).float(), regions(n=4).float()
    slide, exact = slopes(network, given)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, found = slopes(network, given)
    assert not torch.equal(rounded, slide), "it is not bfloat16"
    torch.testing.assert_close(rounded, slide, rtol=0.05, atol=0.05)
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == torch.float32
        assert float((a - b).norm()) < 0.2 * float(b.norm()) + 1e-3
