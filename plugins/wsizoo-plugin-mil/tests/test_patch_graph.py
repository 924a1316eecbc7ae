"""Our GCN and GAT against a dense adjacency in float64; per-patch heads."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from wsizoo_plugin_mil.gat import GAT, GraphAttention
from wsizoo_plugin_mil.gcn import GCN, GraphConvolution
from wsizoo_plugin_mil.patch_graph import graph_of

import wsizoo
from wsizoo import Bag, BagBatch
from wsizoo.errors import BagError, DataError, SpecError

CLASSES = "head.classes=[normal,tumour]"
SEGMENTS = {  # models whose head reads patches -> overrides that make them small
    "gcn-uni": ["aggregator.dim=8"],
    "gat-uni": ["aggregator.dim=8"],
    "abmil-seg-uni": ["aggregator.dim=8", "aggregator.attention=6"],
    "transmil-seg-uni": ["aggregator.dim=16"],
    "rrt-seg-uni": ["aggregator.dim=16", "aggregator.regions=2"],
}
occupied = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20, unique=True
)


def bag_of(cells, seed=0, dim=5, name="S"):
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(len(cells), dim, generator=random, dtype=torch.float64)
    return Bag(features, coords=torch.tensor(cells) * 100, spacing=100.0, slide_id=name)


def adjacency(cells):
    """(N, N) bool [who receives, who gives]: cells at most 1 apart along both axes."""
    cells = torch.tensor(cells)
    return (cells[:, None] - cells[None]).abs().amax(-1) <= 1


def dense_gcn(layer, h, near):
    a = near.to(h.dtype)
    root = a.sum(1).rsqrt().diag()
    return root @ a @ root @ h @ layer.linear.weight.T + layer.linear.bias


def dense_gat(layer, h, near):
    values = (h @ layer.linear.weight.T).unflatten(1, (layer.heads, -1))
    heads = []
    for own, gives, takes in zip(values.unbind(1), layer.gives, layer.takes, strict=True):
        scores = F.leaky_relu((own @ takes)[:, None] + (own @ gives)[None], 0.2)
        heads.append(torch.softmax(scores.masked_fill(~near, -torch.inf), 1) @ own)
    joined = torch.stack(heads).mean(0) if layer.average else torch.cat(heads, 1)
    return joined + layer.bias


DENSE = {GraphConvolution: dense_gcn, GraphAttention: dense_gat}


def dense(model, bag, near):
    h = F.relu(bag.features @ model.embed[0].weight.T + model.embed[0].bias)
    for i, layer in enumerate(model.layers):
        h = DENSE[type(layer)](layer, F.relu(h) if i else h, near)
    return h


def test_every_patch_receives_from_the_cells_around_it_and_itself():
    cells = [(0, 0), (0, 1), (1, 2), (5, 5), (2, 2)]
    graph = graph_of([bag_of(cells)])
    received = [s.tolist() for s in graph.sources.tensor_split(graph.offsets[1:-1])]
    assert list(map(sorted, received)) == [[0, 1], [0, 1, 2], [1, 2, 4], [3], [2, 4]]
    assert graph.degrees.tolist() == [2, 3, 3, 1, 2]
    assert graph.targets.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 3, 4, 4]


@settings(deadline=None, max_examples=25)
@given(cells=occupied, seed=st.integers(0, 99))
@pytest.mark.parametrize("make", [GCN, GAT])
def test_a_network_is_that_of_the_dense_adjacency_with_its_gradients(make, cells, seed):
    torch.manual_seed(seed)
    model, bag = make(5, dim=8).double().eval(), bag_of(cells, seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    leaf = bag.features.requires_grad_()
    own, want = model(bag), dense(model, bag, adjacency(cells))
    torch.testing.assert_close(own.instances, want)
    torch.testing.assert_close(own.slide, want.mean(0))
    wanted = [leaf, *model.parameters()]
    cotangent = torch.randn_like(want)
    ours, theirs = (
        torch.autograd.grad((found * cotangent).sum(), wanted) for found in (own.instances, want)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("make", [GCN, GAT])
def test_slides_in_one_pass_do_not_reach_into_each_other(make):
    model = make(5, dim=8).double().eval()
    slides = [bag_of([(0, 0), (1, 1)], 1), bag_of([(1, 0), (1, 1), (2, 2)], 2)]
    together = model.forward_packed(BagBatch.pack(slides))
    alone = [model(slide) for slide in slides]
    torch.testing.assert_close(together.instances, torch.cat([a.instances for a in alone]))
    torch.testing.assert_close(together.scores, torch.cat([a.scores for a in alone]))


@pytest.mark.parametrize("make", [GCN, GAT])
def test_a_lone_patch_has_itself(make):
    model, bag = make(5, dim=8).double().eval(), bag_of([(3, 4)])
    torch.testing.assert_close(model(bag).instances, dense(model, bag, torch.ones(1, 1) > 0))


def test_what_cannot_be_is_refused():
    with pytest.raises(SpecError, match=r"GAT's dim is 10, expected a multiple of its heads \(4"):
        GAT(5, dim=10)
    twice = bag_of([(0, 0), (0, 0)], name="S7")
    with pytest.raises(BagError, match=r"S7: 1 patches share a grid cell"):
        GCN(5, dim=8).double()(twice)


@pytest.mark.parametrize("name", SEGMENTS)
def test_a_logit_a_patch_is_trained_with_cross_entropy_and_dice(name):
    model = wsizoo.build(name, "encoder.dim=5", *SEGMENTS[name], CLASSES, seed=0).train()
    cells = [(a, b) for a in range(3) for b in range(4)]
    share = torch.from_numpy(np.linspace(0, 1, 12, dtype=np.float32))
    bag = bag_of(cells).to(dtype=torch.float32).replace(target={"instances": share})
    output = model(bag)
    assert output.instance_logits.shape == (12, 1)
    assert output.logits is None
    sum(model.losses(output, bag).values()).backward()
    assert all(bool(p.grad.any()) for p in model.head.parameters())
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.aggregator.parameters())
    wrong = bag.replace(target={"instances": share + 1})
    with pytest.raises(DataError, match="expected the share of a patch"):
        model.losses(model(wrong), wrong)
