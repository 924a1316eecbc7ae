"""The plain Transformer: what parity does not cover."""

import pytest
import torch
from wsizoo_plugin_mil import multihead
from wsizoo_plugin_mil.transformer import Transformer

from wsizoo import Bag
from wsizoo.errors import SpecError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, r"Transformer's dim is 16, expected a multiple of its heads \(3\)"),
        ({"compat": "published"}, "compat is 'published', expected null or attention-requested"),
    ],
    ids=str,
)
def test_what_it_cannot_be_is_refused(options, message):
    with pytest.raises(SpecError, match=message):
        Transformer(20, dim=16, **options)


def test_gradients_are_of_the_weights_that_were_drawn():
    rows = [torch.randn(7, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def drawn(q, k, v):
        torch.manual_seed(1)
        return multihead.attend(q, k, v, 2, 0.5)

    assert not torch.equal(drawn(*rows), multihead.attend(*rows, 2))
    assert torch.autograd.gradcheck(drawn, rows)


def test_dropout_of_attention_keeps_the_mean():
    q, k, v = torch.randn(5, 8), torch.randn(5, 8), torch.randn(5, 8)
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
