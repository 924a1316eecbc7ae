"""Numbers that an option cannot be: a model is built and runs, or the error is ours."""

import re
from types import UnionType
from typing import get_args, get_origin, get_type_hints

import pytest
import torch
from wsizoo_plugin_mil.mhim import MhimABMIL
from wsizoo_plugin_mil.mhim_options import Options

import wsizoo
from wsizoo import Bag
from wsizoo.errors import SpecError
from wsizoo.registry import default

LAB = "variant=mil-lab"
SMALL = {
    "abmil-uni": ["dim=8", "attention=4"],
    "mean-uni": ["dim=8"],
    "max-uni": ["dim=8"],
    "mean-instance-uni": ["dim=8"],
    "max-instance-uni": ["dim=8"],
    "clam-sb-uni": ["dim=8", "attention=4"],
    "clam-mb-uni": ["dim=8", "attention=4"],
    "dsmil-uni": ["query=4"],
    "transmil-uni": ["dim=16"],
    "attmil-retccl": ["dim=8", "attention=4"],
    "acmil-ga-uni": ["dim=8", "attention=4"],
    "acmil-mha-uni": ["dim=8", "heads=2"],
    "dtfd-uni": ["dim=8", "attention=4"],
    "gcn-uni": ["dim=8"],
    "gat-uni": ["dim=8"],
    "transformer-uni": ["dim=8", "heads=2", "mlp=8"],
    "rrt-uni": ["dim=16", "regions=2"],
    "ilra-uni": ["dim=8"],
    "wikg-uni": ["dim=8"],
    "knn-uni": ["capacity=4"],
    "mhim-abmil-uni": ["dim=8"],
    "mhim-dsmil-uni": ["dim=8"],
    "mhim-transmil-uni": ["dim=16"],
}
VARIANTS = {
    "dsmil-uni": [LAB, "dim=8"],
    "transmil-uni": [LAB],
    "dtfd-uni": [LAB, "distill=maxmins", "total=8"],
    "rrt-uni": [LAB],
    "ilra-uni": [LAB],
    "wikg-uni": [LAB],
    "mhim-abmil-uni": ["version=v1"],
}
UNBOUNDED = "alpha", "temperature"  # numbers that are no share
TRIED = [*SMALL.items(), *((name, SMALL[name] + more) for name, more in VARIANTS.items())]


def test_every_aggregator_is_tried():
    known = {
        one.name
        for one in default().plugins.components("aggregator")
        if one.target.startswith(("wsizoo.mil.", "wsizoo_plugin_mil."))
    }
    assert {default().model_spec(name).aggregator["name"] for name in SMALL} == known


def numbers_of(kind):
    """Names of a class's options that are numbers."""
    hints = get_type_hints(kind.__init__)
    if issubclass(kind, MhimABMIL):
        hints |= get_type_hints(Options)
    for name, hint in hints.items():
        kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
        if name not in ("in_dim", "n_outputs") and {int, float} & {*kinds}:
            yield name


@pytest.mark.parametrize(("name", "small"), TRIED, ids=str)
def test_numbers_that_are_none_are_refused_in_our_words(name, small):
    given = [name, "encoder.dim=6", *(f"aggregator.{one}" for one in small)]
    given.append("head={name: classification, classes: [a, b, c]}")
    tried = list(numbers_of(type(wsizoo.build(*given).aggregator)))
    assert len(tried) >= 2
    for option in tried:
        for value in (0, -1, ".nan", "text", 1.5):
            model, refusal = made(*given, f"aggregator.{option}={value}")
            if model is None:
                assert re.search(rf"\b{option}\b.*expected", refusal), refusal
                assert "cannot be made with" not in refusal
                continue
            assert value == 0 or (value == 1.5 and option in UNBOUNDED), (option, value)
            total = sum(model.losses(model(bag := slide()), bag).values())
            assert bool(total.isfinite()), (option, value)
            total.backward()


def made(*given):
    """A model in training, or why there is none."""
    try:
        return wsizoo.build(*given).train(), ""
    except SpecError as error:
        return None, str(error)


def slide():
    rows = torch.arange(12)
    coords = torch.stack([rows // 4, rows % 4], 1) * 100
    return Bag(torch.randn(12, 6), coords=coords, spacing=100.0, target={"label": 1})
