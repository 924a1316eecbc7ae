"""ILRA-MIL: what parity does not cover."""

import pytest
import torch
from wsizoo_plugin_mil.ilra import ILRA
from wsizoo_plugin_mil.ilra_format import ILRAOfficial
from wsizoo_plugin_mil.mil_lab_format import MILLab

import wsizoo
from wsizoo.errors import SpecError, StrictnessError
from wsizoo.weight_formats import fill

NARROW = ["encoder.dim=24", "aggregator.dim=16", "head.classes=[a,b,c]"]


def test_an_unknown_variant_is_refused():
    with pytest.raises(SpecError, match="ILRA's variant is 'x', expected one of ilra, mil-lab"):
        ILRA(20, variant="x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, r"ILRA's dim is 16, expected a multiple of its heads \(3\)"),
        ({"variant": "mil-lab", "norm": False}, "norm is false, but MIL-Lab's variant always has"),
    ],
    ids=str,
)
def test_what_it_cannot_be_is_refused(options, message):
    with pytest.raises(SpecError, match=message):
        ILRA(20, dim=16, **options)


def test_it_begins_as_published():
    drawn = ILRA(64, dim=64, rank=8)
    latent, inner = drawn.layers[0].latent, drawn.pool.attention
    bound = (6 / (8 * 64 + 64)) ** 0.5
    assert 0.9 * bound < latent.abs().max() <= bound
    assert not inner.qkv.bias.any()
    assert not inner.out.bias.any()
    assert drawn.pool.key.bias.any()
    assert not ILRA(64, dim=64, variant="mil-lab").pool.key.bias.any()
    assert ILRA(64, dim=64, variant="mil-lab").layers[0].latent.shape == (1, 64, 64)


def test_files_of_ilra_tell_of_their_configuration():
    given = ["aggregator.rank=3", "aggregator.norm=false"]
    tensors = ILRAOfficial().write(wsizoo.build("ilra-uni", *NARROW, *given))
    with pytest.raises(StrictnessError, match=r"tells: 'aggregator.rank=3' 'aggregator.norm=false"):
        fill(wsizoo.build("ilra-uni", *NARROW), tensors, ILRAOfficial(), "it")


def test_mil_lab_s_names_are_of_its_variant():
    with pytest.raises(SpecError, match=r"differs from MIL-Lab's ilra.*variant=mil-lab"):
        MILLab().write(wsizoo.build("ilra-uni", *NARROW))


def test_two_layers_in_a_row_are_one_product():
    layer = ILRA(24, dim=16, rank=2).layers[0].collect
    inner, asked = layer.attention.qkv, torch.randn(7, 24)
    with torch.no_grad():
        inner.bias.normal_()
        ((_, keys),) = layer(torch.randn(2, 16), asked, [2], [7])[1]
        expected = layer.key(asked) @ inner.weight[16:32].t() + inner.bias[16:32]
    torch.testing.assert_close(keys, expected)
