"""The plain Transformer: what parity does not cover."""

import pytest
import torch
from wsizoo_plugin_mil import multihead
from wsizoo_plugin_mil.transformer import Transformer

from wsizoo import Bag
from wsizoo.errors import SpecError


@pytest.mark.parametrize("options", [{"heads": 3}, {"layers": 0}, {"compat": "published"}], ids=str)
def test_what_it_cannot_be_is_refused(options):
    with pytest.raises(SpecError, match="expected a multiple of heads, a layer or more, and null"):
        Transformer(20, dim=16, **options)


@pytest.mark.parametrize("at_once", [1, 30, 2**23])
def test_rows_at_a_time_are_attention_with_dropout_in_value_and_gradient(at_once, monkeypatch):
    monkeypatch.setattr(multihead, "AT_ONCE", at_once)
    q, k, v = (torch.randn(7, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))

    def plain():
        drawn = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        few = [len(rows) for rows in q.split(max(1, at_once // 7))]
        mask = [multihead.kept((n, 7), 0.5, drawn) for n in (*few, *few)]
        heads = [x.view(7, 2, 4).transpose(0, 1) for x in (q, k, v)]
        weights = (heads[0] @ heads[1].mT / 2).softmax(-1) * torch.cat(mask).view(2, 7, 7)
        return (2 * weights @ heads[2]).transpose(0, 1).flatten(1)

    found = []
    for one in (lambda: multihead.attend(q, k, v, 2, 0.5), plain):
        torch.manual_seed(1)
        y = one()
        found.append((y, *torch.autograd.grad(y.square().sum(), (q, k, v))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.25, 0.9])
def test_as_many_weights_are_kept_as_asked_wherever_they_stand(dropout):
    drawn = torch.Generator().manual_seed(0)
    kept = multihead.kept((40_001, 8), dropout, drawn).double()
    deviation = (dropout * (1 - dropout) / 40_001) ** 0.5
    assert ((kept.mean(0) - (1 - dropout)).abs() <= 4 * deviation).all()
    assert (torch.corrcoef(kept.t()).fill_diagonal_(0).nan_to_num().abs() < 0.025).all()


def test_no_map_of_all_pairs_is_kept_for_the_gradient():
    model = Transformer(20, dim=16, mlp=8).train()
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        found = model(Bag(torch.randn(1500, 20)))
    assert found.slide.requires_grad
    assert max(kept) <= 1501 * 16 * 3
