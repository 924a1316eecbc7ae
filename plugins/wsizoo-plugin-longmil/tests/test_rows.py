"""Linear maps of rows and a block's hidden layer: numbers, all gradients, when to stand back."""

import pytest
import torch
from torch import nn
from wsizoo_plugin_longmil import blocks
from wsizoo_plugin_longmil.blocks import Block, Where
from wsizoo_plugin_longmil.places import packed
from wsizoo_plugin_longmil.rows import fits, linear

from wsizoo.ops import use_backend


def both(function, x, module):
    """What a function gives and all its gradients, by either way of computing it."""
    found = []
    for backend in ("auto", "reference"):
        given = x.detach().clone().requires_grad_()
        module.zero_grad()
        with use_backend(backend):
            out = function(given)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        found.append([out.detach(), given.grad, *(p.grad for p in module.parameters())])
    return zip(*found, strict=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n", [1, 700, 2100])
def test_linear_maps(n, bias):
    part = nn.Linear(12, 36, bias=bias).double()
    for fast, plain in both(lambda x: linear(x, part), torch.randn(n, 12).double(), part):
        torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_features(dtype):
    part, x = nn.Linear(20, 12), torch.randn(1300, 20).to(dtype)
    for fast, plain in both(lambda x: linear(x, part), x, part):
        assert fast.dtype == plain.dtype
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("n", [1, 40])
@pytest.mark.parametrize("mlp_ratio", [0, 2.5])
def test_a_hidden_layer_that_is_computed_again_gives_the_same(n, mlp_ratio, monkeypatch):
    monkeypatch.setattr(blocks, "HIDDEN", 0)
    monkeypatch.setattr(blocks, "CHUNK", 16)
    block = Block(12, 2, mlp_ratio, 0.0).double()
    where = Where(packed([torch.randint(9, (n, 2))]).everywhere)
    for fast, plain in both(lambda x: block(x, where)[0], torch.randn(n, 12).double(), block):
        torch.testing.assert_close(fast, plain, rtol=1e-11, atol=1e-11)


def test_frozen_weights_get_no_gradient():
    part, x = nn.Linear(8, 8), torch.randn(5, 8)
    part.weight.requires_grad_(False)
    linear(x, part).sum().backward()
    assert part.weight.grad is None
    assert part.bias.grad is not None
    assert x.grad is None


def test_parts_that_somebody_watches_are_called():
    part, x, seen = nn.Linear(16, 16), torch.randn(3, 16), []
    assert fits(x, part)
    part.register_forward_hook(lambda *_: seen.append("called"))
    linear(x, part)
    assert seen == ["called"]
    other = nn.Linear(16, 16)
    other.forward = torch.zeros_like
    assert not linear(x, other).any()
    assert not fits(x, nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)))


def test_autocast_runs_the_plain_functions():
    part, x = nn.Linear(8, 8), torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert not fits(x, part)
        assert linear(x, part).dtype == torch.bfloat16
