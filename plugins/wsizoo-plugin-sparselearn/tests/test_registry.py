"""The names of models with a learnt selector, and what the plugin announces."""

import pytest
import torch

import wsizoo
from wsizoo.testing import check_plugin

CLASSES = "head.classes=[normal,tumour]"


@pytest.mark.parametrize(
    ("name", "overrides", "field"),
    [
        ("abmil-sparselearn-uni", [CLASSES], "logits"),
        ("abmil-sparselearn-surv-uni", [], "hazards"),
        ("span-sparselearn-uni", [CLASSES], "logits"),
        ("longmil-sparselearn-uni", [CLASSES], "logits"),
    ],
)
def test_models_build_by_name(name, overrides, field):
    if not name.startswith("abmil"):
        pytest.importorskip(f"wsizoo_plugin_{name.partition('-')[0]}")
    model = wsizoo.build(name, *overrides)
    assert model.spec.plugin == "wsizoo-plugin-sparselearn"
    coords = torch.tensor([[i // 7, i % 7] for i in range(49)]) * 224
    bag = wsizoo.Bag(torch.randn(49, model.in_dim), coords, spacing=224.0)
    with torch.no_grad():
        output = model(bag)
    assert getattr(output, field) is not None and len(output.kept) == 32


def test_the_plugin_holds_what_it_announces():
    report = check_plugin("wsizoo-plugin-sparselearn", components=False)
    assert report.failures == ()
