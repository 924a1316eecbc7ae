"""The plain Transformer: what parity does not cover."""

import pytest
import torch
from torch import nn
from wsizoo_plugin_mil import multihead
from wsizoo_plugin_mil.transformer import Transformer

from wsizoo import Bag
from wsizoo.errors import SpecError


@pytest.mark.parametrize("options", [{"heads": 3}, {"layers": 0}, {"compat": "published"}], ids=str)
def test_what_it_cannot_be_is_refused(options):
    with pytest.raises(SpecError, match="expected a multiple of heads, a layer or more, and null"):
        Transformer(20, dim=16, **options)


@pytest.mark.parametrize("at_once", [1, 200, 2**23])
def test_dropout_of_attention_is_that_of_torch_in_value_and_gradient(at_once, monkeypatch):
    """Rows at a time draw as all at once do when there is one block; several draw their own."""
    monkeypatch.setattr(multihead, "AT_ONCE", at_once)
    q, k, v = (torch.randn(7, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))

    def plain():
        few = max(1, at_once // (2 * 7))
        heads = [x.view(7, 2, 4).transpose(0, 1)[None] for x in (q, k, v)]
        rows = [
            nn.functional.dropout((part @ heads[1].mT / 2).softmax(-1), 0.5) @ heads[2]
            for part in heads[0].split(few, 2)
        ]
        return torch.cat(rows, 2)[0].transpose(0, 1).flatten(1)

    found = []
    for one in (lambda: multihead.attend(q, k, v, 2, 0.5), plain):
        torch.manual_seed(1)
        y = one()
        found.append((y, *torch.autograd.grad(y.square().sum(), (q, k, v))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_dropout_of_attention_keeps_the_mean():
    q, k, v = torch.randn(3, 8), torch.randn(5, 8), torch.randn(5, 8)
    torch.manual_seed(0)
    drawn = torch.stack([multihead.attend(q, k, v, 2, 0.25) for _ in range(2000)])
    assert drawn.std(0).max() > 0.05
    torch.testing.assert_close(drawn.mean(0), multihead.attend(q, k, v, 2), rtol=0, atol=0.1)


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
