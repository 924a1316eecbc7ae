"""Every method, in every variant, is an aggregator. A method adds its lines to `METHODS`."""

import pytest
from wsizoo_plugin_mil.acmil import AcmilGA, AcmilMHA
from wsizoo_plugin_mil.attmil import AttMIL
from wsizoo_plugin_mil.clam import ClamMB, ClamSB
from wsizoo_plugin_mil.dsmil import DSMIL
from wsizoo_plugin_mil.dtfd import DTFD
from wsizoo_plugin_mil.gat import GAT
from wsizoo_plugin_mil.gcn import GCN
from wsizoo_plugin_mil.ilra import ILRA
from wsizoo_plugin_mil.instance_pooling import MaxInstance, MeanInstance
from wsizoo_plugin_mil.knn import KNN
from wsizoo_plugin_mil.mhim import MhimABMIL, MhimDSMIL, MhimTransMIL
from wsizoo_plugin_mil.rrt import RRT
from wsizoo_plugin_mil.transformer import Transformer
from wsizoo_plugin_mil.transmil import TransMIL
from wsizoo_plugin_mil.wikg import WiKG

from wsizoo.testing.conformance_suite import bound_checks

CLAM = {"dim": 16, "attention": 8}
METHODS = [
    (MeanInstance, {"dim": 16}),
    (MeanInstance, {"dim": 16, "activation": "gelu"}),
    (MaxInstance, {"dim": 16}),
    (MaxInstance, {"dim": 16, "pool": "one-patch"}),
    (ClamSB, CLAM),
    (ClamSB, {**CLAM, "gated": False, "subtyping": True, "instance_loss": "svm", "k": 3}),
    (ClamSB, {**CLAM, "variant": "mil-lab"}),
    (ClamMB, CLAM),
    (ClamMB, {**CLAM, "subtyping": True, "instance_loss": "svm"}),
    (DSMIL, {"query": 8}),
    (DSMIL, {"dim": 16, "query": 8, "nonlinear": False, "passing_v": True, "dropout_v": 0.2}),
    (DSMIL, {"variant": "mil-lab", "dim": 16, "query": 8}),
    (TransMIL, {"dim": 16}),
    (TransMIL, {"dim": 16, "variant": "mil-lab", "layers": 3}),
    (AttMIL, {"dim": 16, "attention": 8}),
    (AcmilGA, {"dim": 16, "attention": 8}),
    (AcmilGA, {"dim": 16, "attention": 8, "branches": 1, "masked": 0}),
    (AcmilMHA, {"dim": 16, "heads": 4, "branches": 3}),
    (AcmilMHA, {"dim": 16, "heads": 2, "branches": 1}),
    (DTFD, {"dim": 16, "attention": 8}),
    (DTFD, {"dim": 16, "attention": 8, "residuals": 1, "distill": "maxs", "shuffles": 3}),
    (DTFD, {"dim": 16, "attention": 8, "variant": "mil-lab", "distill": "maxmins", "total": 8}),
    (GCN, {"dim": 16}),
    (GAT, {"dim": 16}),
    (GAT, {"dim": 15, "heads": 3, "layers": 1}),
    (RRT, {"dim": 16, "regions": 2}),
    (RRT, {"dim": 16, "layers": 3, "regions": 2, "ffn": True, "shortcut": True, "epeg": 0}),
    (
        RRT,
        {"dim": 16, "regions": 1, "slot_mlp": True, "gated": True, "bias": True, "cross_heads": 1},
    ),
    (RRT, {"dim": 16, "variant": "mil-lab", "layers": 3, "embed_activation": "gelu"}),
    (ILRA, {"dim": 16}),
    (ILRA, {"dim": 16, "rank": 3, "norm": False, "layers": 1}),
    (ILRA, {"dim": 16, "variant": "mil-lab"}),
    (WiKG, {"dim": 16}),
    (WiKG, {"dim": 16, "mix": "sage", "pool": "max", "k": 2}),
    (WiKG, {"dim": 16, "variant": "mil-lab", "mix": "gcn"}),
    (KNN, {"capacity": 8}),
    (KNN, {"capacity": 8, "task": "survival", "k": 1}),
    (KNN, {"capacity": 8, "task": "regression"}),
    (Transformer, {"dim": 16, "mlp": 32}),
    (Transformer, {"dim": 16, "mlp": 0, "hidden": [24], "compat": "attention-requested"}),
    (MhimABMIL, {"dim": 16}),
    (MhimABMIL, {"dim": 16, "version": "v1", "rising": True, "pooling": "tanh"}),
    (MhimABMIL, {"dim": 16, "merge_test": True, "high": 0.4, "high_among": 0.5}),
    (MhimDSMIL, {"dim": 16}),
    (MhimDSMIL, {"dim": 16, "version": "v1"}),
    (MhimTransMIL, {"dim": 16}),
    (MhimTransMIL, {"dim": 16, "version": "v1", "low": 0.5}),
]
CHECKS = [
    pytest.param(check, id=f"{kind.__name__}-{i}-{check.check.name}")
    for i, (kind, options) in enumerate(METHODS)
    for check in bound_checks(kind, **options)
]


@pytest.mark.parametrize("check", CHECKS)
def test_it_is_an_aggregator(check, monkeypatch):
    monkeypatch.setattr("wsizoo_plugin_mil.rrt.LANDMARKS", 8)  # 256 of few patches only take time
    check()
