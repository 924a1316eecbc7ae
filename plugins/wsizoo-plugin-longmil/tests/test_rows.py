"""The fused row functions against plain ones: numbers, all gradients, and when to stand back."""

import pytest
import torch
from torch import nn
from wsizoo_plugin_longmil import rows
from wsizoo_plugin_longmil.blocks import Block

from wsizoo.ops import use_backend


def parts(dim=12, hidden=20, dtype=torch.float64):
    torch.manual_seed(0)
    made = nn.Linear(dim, dim), nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.Linear(hidden, dim)
    for module in made:
        module.to(dtype)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
    return made


def both(function, inputs, modules):
    """What a function gives and all its gradients, fused and plain."""
    found = []
    for backend in ("auto", "reference"):
        given = [x.detach().clone().requires_grad_() for x in inputs]
        for module in modules:
            module.zero_grad()
        with use_backend(backend):
            out = function(*given)
        torch.manual_seed(1)
        (out * torch.randn_like(out)).sum().backward()
        weights = [p.grad for module in modules for p in module.parameters()]
        found.append([out.detach(), *(x.grad for x in given), *weights])
    fused, plain = found
    assert len(fused) == len(plain)
    return zip(fused, plain, strict=True)


@pytest.mark.parametrize("kept", [0, 1 << 24])
@pytest.mark.parametrize("n", [1, 700, 2100])
@pytest.mark.parametrize("feeds", [True, False])
def test_after_attention(n, feeds, kept, monkeypatch):
    monkeypatch.setattr(rows, "KEPT", kept)
    proj, *feed = parts()
    feed = feed if feeds else []
    x, attended = torch.randn(2, n, 12, dtype=torch.float64).unbind(0)
    pairs = both(lambda a, b: rows.finish(a, b, proj, feed), (x, attended), (proj, *feed))
    for fused, plain in pairs:
        torch.testing.assert_close(fused, plain, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("n", [1, 700, 2100])
def test_before_attention(n):
    norm, linear = nn.LayerNorm(12).double(), nn.Linear(12, 36, bias=False).double()
    x = torch.randn(n, 12, dtype=torch.float64)
    for fused, plain in both(lambda a: rows.project(a, norm, linear), (x,), (norm, linear)):
        torch.testing.assert_close(fused, plain, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_features(dtype):
    linear, x = nn.Linear(20, 12), torch.randn(1300, 20).to(dtype)
    for fused, plain in both(lambda a: rows.embed(a, linear), (x,), (linear,)):
        assert fused.dtype == plain.dtype
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)


def test_frozen_weights_get_no_gradient():
    proj, norm, fc1, fc2 = parts()
    for frozen in (proj.weight, fc1.bias, norm.weight):
        frozen.requires_grad_(False)
    x = torch.randn(5, 12, dtype=torch.float64)
    rows.finish(x, x.clone(), proj, (norm, fc1, fc2)).sum().backward()
    assert proj.weight.grad is None
    assert fc1.bias.grad is None
    assert norm.weight.grad is None
    assert fc1.weight.grad is not None


def test_parts_that_somebody_watches_are_called():
    block, seen = Block(16, 2, 2.0, 0.0), []
    x = torch.randn(3, 16)
    assert rows.fits(x, x, block.proj)
    block.fc1.register_forward_hook(lambda *_: seen.append("fc1"))
    rows.finish(x, x, block.proj, (block.norm2, block.fc1, block.fc2))
    assert seen == ["fc1"]
    assert not rows.fits(x, x, nn.utils.parametrizations.weight_norm(block.proj))


def test_autocast_runs_the_plain_functions():
    linear, x = nn.Linear(8, 8), torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert not rows.fits(x, x, linear)
