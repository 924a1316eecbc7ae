"""What methods make of the head's task: heads that read patches, survival, labels without use."""

import pytest
import torch
from wsizoo_plugin_mil.clam import ClamMB, ClamSB
from wsizoo_plugin_mil.dsmil import DSMIL
from wsizoo_plugin_mil.packed import OF_PATCHES

import wsizoo
from wsizoo import Bag
from wsizoo.errors import SpecError
from wsizoo.registry import default

SIZES = ["encoder.dim=8", "aggregator.dim=16"]
PATCHES = ["head=segmentation", "head.classes=[normal,tumour]"]
ENTRIES = {"attmil": "attmil-retccl"}  # all others are named after the method and UNI


def methods():
    components = default().plugins.components("aggregator")
    targets = "wsizoo.mil.", "wsizoo_plugin_mil."
    return sorted(one.name for one in components if one.target.startswith(targets))


@pytest.mark.parametrize("name", methods())
def test_heads_that_read_patches_fit_the_methods_that_are_named_and_no_other(name):
    given = [ENTRIES.get(name, f"{name}-uni"), *(SIZES if name != "knn" else SIZES[:1]), *PATCHES]
    if name not in OF_PATCHES:
        told = r"a segmentation head has nothing to read; expected one of slides, .* abmil, attmil"
        with pytest.raises(SpecError, match=told):
            wsizoo.build(*given)
        return
    model = wsizoo.build(*given).train()
    grid = torch.cartesian_prod(torch.arange(4), torch.arange(3)) * 256
    labels = torch.arange(12) % 2
    bag = Bag(torch.randn(12, 8), coords=grid, spacing=256.0, target={"instances": labels})
    output = model(bag)
    assert output.instance_logits.shape == (12, 2)
    loss = sum(model.losses(output, bag).values())
    loss.backward()
    assert bool(loss.isfinite())


def test_dsmil_s_best_patches_are_predictions_of_the_slide():
    bag = Bag(torch.randn(9, 8))
    assert not DSMIL(8, 2, query=4, task="segmentation").train()(bag).predictions
    assert DSMIL(8, 2, query=4, task="classification").train()(bag).predictions


@pytest.mark.parametrize("task", ["survival", "regression"])
def test_clam_s_patches_are_taught_by_labels_of_classes_alone(task):
    bag = Bag(torch.randn(20, 8), target={"time": 1, "event": 1, "value": 0.5, "label": 1})
    for told in (task, "classification"):
        found = ClamSB(8, 4, dim=8, attention=4, task=told).train()(bag)
        expected = (1.0, set()) if told == task else (0.7, {"instances"})
        assert (found.task_weight, set(found.losses)) == expected


@pytest.mark.parametrize(
    ("kind", "sizes"), [(ClamMB, {"dim": 8, "attention": 4}), (DSMIL, {"query": 4})]
)
def test_scores_of_survival_are_the_mean_over_bins_and_not_those_of_one(kind, sizes):
    torch.manual_seed(0)
    bag, of_bins = Bag(3 * torch.randn(9, 8)), kind(8, 4, task="survival", **sizes).eval()
    of_classes = kind(8, 4, task="classification", **sizes).eval()
    of_classes.load_state_dict(of_bins.state_dict())
    each = []
    for i in range(4):  # each in turn the likeliest
        with torch.no_grad():
            of_classes.classify.bias.copy_(1e3 * torch.eye(4)[i])
        each.append(of_classes(bag).scores)
    torch.testing.assert_close(of_bins(bag).scores, torch.stack(each).mean(0))
    assert not torch.allclose(each[0], each[1])
