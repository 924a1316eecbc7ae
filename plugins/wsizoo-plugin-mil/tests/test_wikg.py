"""WiKG: what parity does not cover."""

import pytest
import torch
from wsizoo_plugin_mil import neighbours, wikg
from wsizoo_plugin_mil.mil_lab_format import MILLab
from wsizoo_plugin_mil.neighbours import best, most_similar
from wsizoo_plugin_mil.wikg import WiKG
from wsizoo_plugin_mil.wikg_format import WiKGOfficial

import wsizoo
from wsizoo import Bag
from wsizoo.errors import SpecError, StrictnessError
from wsizoo.weight_formats import fill

NARROW = ["encoder.dim=24", "aggregator.dim=16", "head.classes=[a,b,c]"]


@pytest.mark.parametrize("options", [{"variant": "x"}, {"mix": "sum"}, {"pool": "sum"}], ids=str)
def test_unknown_words_are_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(SpecError, match=f"^WiKG's {name} is '{value}', expected one of [^']*$"):
        WiKG(20, dim=16, **options)


def test_a_width_that_has_no_half_is_refused():
    with pytest.raises(SpecError, match="WiKG's dim is 1, expected a whole number from 2 on"):
        WiKG(20, dim=1, pool="attention")


@pytest.mark.parametrize("k", [1, 3, 9])
def test_of_equals_the_first_are_neighbours(k):
    scores = torch.randint(0, 4, (50, 9), generator=torch.Generator().manual_seed(0)).float()
    expected = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(best(scores, k), expected)


@pytest.mark.parametrize("at_once", [1, 60, 2**23])
def test_blocks_find_the_neighbours_of_the_whole_map(at_once, monkeypatch):
    monkeypatch.setattr(neighbours, "AT_ONCE", at_once)
    one, other = torch.randn(13, 8), torch.randn(20, 8)
    assert torch.equal(most_similar(one, other, 5), (one @ other.t()).topk(5, 1).indices)
    assert most_similar(one, other[:2], 5).shape == (13, 2)


@pytest.mark.parametrize("variant", ["wikg", "mil-lab"])
def test_gradients_are_those_of_the_whole_map(variant, monkeypatch):
    """Rows at a time, and without the map: as if all similarities were made and kept."""
    monkeypatch.setattr(wikg, "AT_ONCE", 200)
    model = WiKG(20, dim=16, k=3, variant=variant).double().eval()
    head, tail = (torch.randn(30, 16, dtype=torch.float64, requires_grad=True) for _ in range(2))
    ways = torch.randn(30, 16, dtype=torch.float64)

    def whole():
        values, index = (head / 4 @ tail.t()).topk(3, 1)
        p, near = values.softmax(1)[..., None], tail[index]
        own = head[:, None]
        if variant == "wikg":
            gate = torch.tanh(own + p * near + (1 - p) * own)
            weight = torch.einsum("ijkl,ijkm->ijk", near[None], gate[None])[0]
        else:
            weight = (near * torch.tanh(own + p * near)).sum(2)
        return (weight.softmax(1)[..., None] * near).sum(1)

    bag = Bag(torch.zeros(30, 20))
    found = model.gather(head, tail, model.neighbours(head, tail, [bag]))[0]
    expected = whole()
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad((found * ways).sum(), (head, tail)),
        torch.autograd.grad((expected * ways).sum(), (head, tail)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_no_map_of_all_pairs_is_kept_for_the_gradient():
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    model = WiKG(20, dim=16).train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        found = model(Bag(torch.randn(1500, 20)))
    assert found.slide.requires_grad
    assert max(kept) <= 1500 * 20


def test_a_slide_of_fewer_patches_than_neighbours_gives_all():
    model = WiKG(20, dim=16).eval()
    assert torch.isfinite(model(Bag(torch.randn(1, 20))).slide).all()


def test_scores_of_the_maximum_are_shares_of_channels():
    model = WiKG(20, dim=16, pool="max").eval()
    scores = model(Bag(torch.randn(9, 20))).scores
    torch.testing.assert_close(scores.sum(), torch.tensor(1.0))


def test_files_of_wikg_tell_of_their_configuration():
    given = ["aggregator.mix=sage", "aggregator.pool=attention"]
    tensors = WiKGOfficial().write(wsizoo.build("wikg-uni", *NARROW, *given))
    message = r"tells: 'aggregator.mix=sage' 'aggregator.pool=attention'"
    with pytest.raises(StrictnessError, match=message):
        fill(wsizoo.build("wikg-uni", *NARROW), tensors, WiKGOfficial(), "it")


def test_mil_lab_s_names_are_of_its_variant():
    with pytest.raises(SpecError, match=r"differs from MIL-Lab's wikg.*variant=mil-lab"):
        MILLab().write(wsizoo.build("wikg-uni", *NARROW))
