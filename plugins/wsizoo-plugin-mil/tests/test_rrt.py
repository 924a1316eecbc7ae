"""RRT-MIL: what parity does not cover."""

import pytest
import torch
import torch.nn.functional as F
from wsizoo_plugin_mil.mil_lab_format import MILLab
from wsizoo_plugin_mil.region_attention import AcrossRegions, GroupAttention
from wsizoo_plugin_mil.rrt import RRT
from wsizoo_plugin_mil.rrt_format import RRTOfficial

import wsizoo
from wsizoo.errors import SpecError, StrictnessError
from wsizoo.weight_formats import fill

NARROW = ["encoder.dim=24", "aggregator.dim=16", "head.classes=[a,b,c]"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "nystrom"}, "^RRT's variant is 'nystrom', expected one of rrt, mil-lab$"),
        ({"embed_activation": "tanh"}, "^RRT's embed_activation is 'tanh', expected .* relu, gelu"),
    ],
)
def test_unknown_words_are_refused_alone(options, message):
    with pytest.raises(SpecError, match=message):
        RRT(20, dim=16, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, r"RRT's dim is 16, expected a multiple of its heads \(3\)"),
        ({"cross_heads": 5}, r"RRT's dim is 16, expected a multiple of its cross_heads \(5\)"),
        ({"dim": 2, "slot_mlp": True}, "RRT's dim is 2, expected a whole number from 4 on"),
        ({"epeg": 4}, "RRT's epeg is 4, expected an odd number, or 0 for none"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        RRT(20, **{"dim": 16, **options})


def test_epeg_of_queries_is_that_of_scores_bias_and_all():
    """As published: the scores themselves are convolved along the queries, with a bias."""
    layer = GroupAttention(16, 4, 0.0, epeg=5)
    groups = torch.randn(3, 9, 16)
    q, k, v = layer.qkv(groups).unflatten(2, (3, 4, 4)).permute(2, 0, 3, 1, 4)
    scores = q @ k.mT / 2
    scores = scores + F.conv2d(scores, layer.epeg.weight, torch.randn(4), padding=(2, 0), groups=4)
    expected = layer.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(groups), expected)


def test_a_layer_across_regions_gives_nothing_to_single_tokens():
    layer = AcrossRegions(16, 4, 0.0, slots=3, mlp=False)
    assert not layer(torch.randn(64, 16)).any()
    assert layer(torch.randn(65, 16)).any()


def test_scores_of_regions_are_drawn_as_published():
    phi = RRT(20, dim=64, slots=4).layers[-1].attention.phi
    assert 0.4 < phi.abs().max() <= 0.5


def test_files_of_rrt_tell_of_their_configuration():
    given = ["aggregator.slot_mlp=true", "aggregator.ffn=true", "aggregator.gated=true"]
    tensors = RRTOfficial().write(wsizoo.build("rrt-uni", *NARROW, *given, "aggregator.epeg=9"))
    message = (
        r"tells: 'aggregator.epeg=9' 'aggregator.slot_mlp=true' 'aggregator.ffn=true' "
        "'aggregator.gated=true'"
    )
    with pytest.raises(StrictnessError, match=message):
        fill(wsizoo.build("rrt-uni", *NARROW), tensors, RRTOfficial(), "it")


def test_each_layout_is_of_its_own_rrt():
    with pytest.raises(SpecError, match=r"is not the authors' RRT. Add aggregator.variant=rrt"):
        RRTOfficial().write(wsizoo.build("rrt-uni", *NARROW, "aggregator.variant=mil-lab"))
    with pytest.raises(SpecError, match=r"differs from MIL-Lab's rrt.*variant=mil-lab"):
        MILLab().write(wsizoo.build("rrt-uni", *NARROW))
