"""Survival with the methods that rank patches or average predictions: bins count together."""

import pytest
import torch
from wsizoo_plugin_mil.mhim_encoders import likeliest
from wsizoo_plugin_mil.survival import mean_hazards, risk

import wsizoo
from wsizoo import Bag
from wsizoo.mil.heads import SurvivalHead

SURVIVAL = ["encoder.dim=6", "aggregator.dim=8", "head=survival", "head.bins=4"]


def test_risk_is_that_of_the_head():
    logits = 3 * torch.randn(5, 4)
    torch.testing.assert_close(risk(logits), SurvivalHead(None, bins=4).outputs(logits)["risk"])
    assert torch.equal(risk(logits[:, :1]), logits[:, 0])


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_hazards_of_several_are_those_of_the_mean_curve(scale):
    each = scale * torch.randn(3, 4, dtype=torch.float64)
    mean = (1 - each.sigmoid()).cumprod(1).mean(0)
    expected = 1 - mean / torch.cat([mean.new_ones(1), mean[:-1]])
    torch.testing.assert_close(mean_hazards(each).sigmoid(), expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(mean_hazards(each[:1]), each[0])
    assert torch.isfinite(mean_hazards(each.float() - 80)).all()


def test_dtfd_hands_on_the_patches_of_the_highest_risk():
    given = "dtfd-uni", *SURVIVAL, "aggregator.distill=maxs"
    module = wsizoo.build(*given).aggregator
    rows, paid = torch.rand(20, 8), torch.rand(20)
    parts = paid[:, None] * (rows @ module.judge.weight.t())
    torch.testing.assert_close(module.surest(rows, paid), risk(parts))
    by_class = wsizoo.build(*given, "head={name: classification, classes: [a,b,c,d]}").aggregator
    last = (paid[:, None] * (rows @ by_class.judge.weight.t())).softmax(1)[:, -1]
    torch.testing.assert_close(by_class.surest(rows, paid), last)


def test_dtfd_averages_curves_of_survival():
    model = wsizoo.build("dtfd-uni", *SURVIVAL, "aggregator.shuffles=3")
    found = []
    average = model.aggregator.mean_of
    model.aggregator.mean_of = lambda logits: found.extend(logits) or average(logits)
    output = model(Bag(torch.randn(9, 6)))
    curves = torch.stack([(1 - each.sigmoid()).cumprod(0) for each in found])
    assert len(found) == 3
    torch.testing.assert_close((1 - output.hazards).cumprod(0), curves.mean(0))


@pytest.mark.parametrize("name", ["mhim-abmil-uni", "mhim-dsmil-uni", "mhim-transmil-uni"])
def test_mhim_masks_the_patches_of_the_highest_risk(name, monkeypatch):
    model, bag = wsizoo.build(name, *SURVIVAL), Bag(torch.randn(20, 6))
    (taught,) = model.aggregator.taught(bag.features, [bag])
    asked = []
    monkeypatch.setattr(
        "wsizoo_plugin_mil.mhim_encoders.risk", lambda logits: asked.append(logits) or risk(logits)
    )
    found = taught.hardness(model.aggregator.by_class)
    assert (found.shape, asked[0].shape) == ((1, 20), (20, 4))
    torch.testing.assert_close(found[0], risk(asked[0]))


def test_a_class_is_ranked_by_the_likeliest_and_bins_by_their_risk():
    logits = torch.tensor([[0.0, 3.0], [2.0, -9.0]])
    torch.testing.assert_close(likeliest(logits, None), logits.softmax(1).amax(1))
    assert torch.equal(likeliest(logits, "survival"), risk(logits))


@pytest.mark.parametrize("head", ["cox", "survival"])
def test_the_one_patch_of_survival_is_that_of_the_highest_risk(head):
    given = "max-instance-uni", "encoder.dim=6", "aggregator.dim=8", "aggregator.pool=one-patch"
    model = wsizoo.build(*given, f"head={head}")
    output = model(Bag(torch.randn(20, 6, generator=torch.Generator().manual_seed(0))))
    best = risk(output.instance_logits).argmax()
    assert int(best) > 0
    torch.testing.assert_close(output.logits, output.instance_logits[best])


@pytest.mark.parametrize(
    "name", ["dsmil-uni", "dtfd-uni", "acmil-ga-uni", "acmil-mha-uni", "mhim-dsmil-uni"]
)
def test_cox_compares_further_predictions_with_one_another(name):
    more = ["aggregator.version=v1"] if name.startswith("mhim") else ["aggregator.dim=8"]
    model = wsizoo.build(name, "encoder.dim=6", *more, "head=cox").train()
    slides = [Bag(torch.randn(9, 6), target={"time": t, "event": 1}) for t in (1.0, 2.0, 3.0)]
    batch = wsizoo.BagBatch.pack(slides)
    output = model.forward_packed(batch)
    terms = model.losses(output, batch)
    names = [name for name in terms if "/" in name]
    assert (len(output.predictions), len(names)) == (3, 1)
    assert float(terms[names[0]].detach()) > 0.1


def test_knn_votes_on_what_the_head_reads():
    for head, target in {"cox": "time", "regression": "value", "null": "label"}.items():
        assert wsizoo.build("knn-uni", f"head={head}").aggregator.target == target
