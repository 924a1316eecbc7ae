"""What holds for every method: golden outputs, every head, packed training, late scores.

After a change of a method that is meant, record its golden file anew and say why in the commit:

    python tests/test_methods.py clam-sb ...
"""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import wsizoo
from wsizoo import Bag, BagBatch
from wsizoo.ops import products, use_backend

GOLDEN = Path(__file__).parent / "golden"
CLASSES = "head.classes=[a,b,c]"
SMALL = {  # model of the zoo -> overrides that make it small; golden files are of these
    "mean-instance-uni": ["aggregator.dim=8"],
    "max-instance-uni": ["aggregator.dim=8"],
    "clam-sb-uni": ["aggregator.dim=8", "aggregator.attention=6"],
    "clam-mb-uni": ["aggregator.dim=8", "aggregator.attention=6"],
    "dsmil-uni": ["aggregator.query=6"],
    "transmil-uni": ["aggregator.dim=16"],
    "attmil-retccl": ["aggregator.dim=8", "aggregator.attention=6"],
    "acmil-ga-uni": ["aggregator.dim=8", "aggregator.attention=6"],
    "acmil-mha-uni": ["aggregator.dim=8", "aggregator.heads=2"],
    "dtfd-uni": ["aggregator.dim=8", "aggregator.attention=6"],
    "gcn-uni": ["aggregator.dim=8", "head=classification"],
    "gat-uni": ["aggregator.dim=8", "head=classification"],
    "transformer-uni": ["aggregator.dim=16", "aggregator.mlp=24"],
    "rrt-uni": ["aggregator.dim=16", "aggregator.regions=3"],
    "ilra-uni": ["aggregator.dim=8"],
    "wikg-uni": ["aggregator.dim=8"],
    "mhim-abmil-uni": ["aggregator.dim=8"],
    "mhim-dsmil-uni": ["aggregator.dim=8"],
    "mhim-transmil-uni": ["aggregator.dim=16"],
    "knn-uni": ["aggregator.capacity=3", "aggregator.k=2"],
}
FURTHER = {  # variants, without golden files: the parity cases hold them
    "clam-mb-uni": ["aggregator.subtyping=true"],
    "dsmil-uni": ["aggregator.variant=mil-lab", "aggregator.dim=8"],
    "transmil-uni": ["aggregator.variant=mil-lab"],
    "dtfd-uni": ["aggregator.variant=mil-lab", "aggregator.distill=maxmins"],
    "rrt-uni": ["aggregator.variant=mil-lab"],
    "ilra-uni": ["aggregator.variant=mil-lab"],
    "wikg-uni": ["aggregator.variant=mil-lab"],
    "mhim-abmil-uni": ["aggregator.version=v1"],
    "mhim-dsmil-uni": ["aggregator.version=v1"],
    "mhim-transmil-uni": ["aggregator.version=v1"],
}
WITH_VARIANTS = [*SMALL.items(), *((name, SMALL[name] + more) for name, more in FURTHER.items())]
HEADS = {
    "survival": ["head=survival", "head.bins=4"],
    "cox": ["head=cox"],
    "regression": ["head=regression"],
}
TARGET = {"label": 1, "time": 1, "event": 1, "value": 0.5}


@pytest.fixture(autouse=True)
def few_landmarks(monkeypatch):
    """Of MIL-Lab's RRT: 256 of few patches only take time."""
    monkeypatch.setattr("wsizoo_plugin_mil.rrt.LANDMARKS", 8)


def made(name, *overrides, seed=0):
    return wsizoo.build(name, "encoder.dim=20", *SMALL[name], *overrides, seed=seed)


def bag_of(n, seed=0, **target):
    features = torch.randn(n, 20, generator=torch.Generator().manual_seed(seed))
    rows = torch.arange(n)
    cells = torch.stack([rows // 5, rows % 5], 1)  # five a row, the last is not full
    place = {"coords": cells * 100, "spacing": 100.0}
    return Bag(features, target=target or TARGET, slide_id=f"S{seed}", **place)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


def outputs(model, bag):
    with torch.no_grad():
        found = model(bag)
    fields = {"logits": found.logits, "embedding": found.embedding, "scores": found.scores}
    return {f"out.{name}": value for name, value in fields.items() if value is not None}


@pytest.mark.parametrize("name", SMALL)
def test_a_method_is_still_the_one_that_was_recorded(name):
    golden = load_file(GOLDEN / f"{name}.safetensors")
    model = made(name, CLASSES)
    weights = {k: v for k, v in golden.items() if not k.startswith(("in.", "out."))}
    model.load_state_dict(weights, strict=True)
    found = outputs(model, bag_of(23).replace(features=golden["in.features"]))
    assert set(found) == {k for k in golden if k.startswith("out.")}
    for key, value in found.items():
        torch.testing.assert_close(value, golden[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("name", "overrides"), WITH_VARIANTS, ids=str)
def test_every_head_fits_every_method_and_is_trained(name, overrides, head):
    model = made(name, *overrides, *HEADS[head]).train()
    batch = BagBatch.pack(
        [bag_of(12, seed, **{**TARGET, "time": seed, "value": seed}) for seed in range(3)]
    )
    model.start_training(1, batch)
    total = sum(model.losses(model.forward_packed(batch), batch).values())
    total.backward()
    assert torch.isfinite(total)
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.aggregator.parameters())


@pytest.mark.parametrize(("name", "overrides"), WITH_VARIANTS, ids=str)
def test_several_slides_at_once_train_as_one_after_the_other(name, overrides):
    if name.startswith("attmil"):
        pytest.skip("its batch norm is over the slides of a step, by definition")
    one, many = (without_dropout(made(name, *overrides, CLASSES)).double() for _ in range(2))
    slides = [bag_of(n, n, label=i) for i, n in enumerate((3, 12, 9))]
    torch.manual_seed(0)  # a method draws slide by slide, so in both ways the same
    one.start_training(1, slides)
    many.start_training(1, slides)
    for slide in slides:
        (sum(one.losses(one(slide), slide).values()) / len(slides)).backward()
    batch = BagBatch.pack(slides)
    torch.manual_seed(0)
    sum(many.losses(many.forward_packed(batch), batch).values()).backward()
    theirs = dict(many.named_parameters())
    for key, parameter in one.named_parameters():
        torch.testing.assert_close(theirs[key].grad, parameter.grad, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("name", SMALL)
def test_scores_are_made_when_somebody_asks(name):
    model = made(name, CLASSES)
    for output in (model(bag_of(9)), model.forward_packed(BagBatch.pack([bag_of(9), bag_of(4)]))):
        assert callable(output.scores_given)
        assert not output.scores.requires_grad


@pytest.mark.parametrize("name", SMALL)
def test_the_fast_products_have_the_gradients_of_the_reference(name, monkeypatch):
    monkeypatch.setattr(products, "SMALL", 0)  # they are for small bags too
    model = without_dropout(made(name, CLASSES))
    batch = BagBatch.pack([bag_of(n, seed=n, label=n % 3) for n in (30, 600, 9)])
    model.start_training(1, batch)
    before, found = {k: v.clone() for k, v in model.state_dict().items()}, {}
    for backend in ("auto", "reference"):
        model.load_state_dict(before)
        torch.manual_seed(0)
        model.zero_grad()
        with use_backend(backend):
            sum(model.losses(model.forward_packed(batch), batch).values()).backward()
        found[backend] = {k: p.grad for k, p in model.named_parameters()}
    torch.testing.assert_close(found["auto"], found["reference"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["clam-sb-uni", "clam-mb-uni"])
def test_the_patches_loss_of_clam_may_be_differentiated_alone(name):
    model, bag = made(name, CLASSES).train(), bag_of(40, label=1)
    model.losses(model(bag), bag)["instances"].backward()
    assert float(model.aggregator.embed[0].weight.grad.abs().sum()) > 0


def record(name):
    model, bag = made(name, CLASSES, seed=5), bag_of(23, 7)
    model.start_training(1, [bag_of(5, i, label=i) for i in range(3)])
    found = {**model.state_dict(), "in.features": bag.features, **outputs(model, bag)}
    GOLDEN.mkdir(exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in found.items()}, GOLDEN / f"{name}.safetensors")


if __name__ == "__main__":
    for given in sys.argv[1:]:
        record(given)
