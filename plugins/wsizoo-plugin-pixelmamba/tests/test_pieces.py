"""A block run in pieces against the same block run at once."""

import pytest
import torch
from torch import nn
from wsizoo_plugin_pixelmamba.pieces import in_groups, scan_from, swept

from wsizoo.mamba import VimBlock
from wsizoo.ops import selective_scan

LENGTH, WIDTH = 37, 6
BLOCKS = {
    "default": {},
    "shared convolution, halved": {"share_conv": True, "divide_out": True},
    "scaled": {"layer_scale": 0.3},
    "short convolution": {"d_conv": 1},
    "few states, wide": {"d_state": 3, "expand": 3},
}


def made(dtype=torch.float64, **options):
    torch.manual_seed(0)
    norm, block = nn.RMSNorm(WIDTH), VimBlock(WIDTH, **options)
    with torch.no_grad():
        for parameter in (*norm.parameters(), *block.parameters()):
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(LENGTH, WIDTH, dtype=dtype, requires_grad=True)
    return norm.to(dtype), block.to(dtype), x


def slopes(y, norm, block, x):
    leaves = [x, *(p for p in (*norm.parameters(), *block.parameters()) if p.requires_grad)]
    return torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), leaves)


@pytest.mark.parametrize("piece", [1, 2, 8, 36, 37, 100])
@pytest.mark.parametrize("options", BLOCKS.values(), ids=BLOCKS)
def test_pieces_give_the_values_and_gradients_of_the_whole(options, piece):
    norm, block, x = made(**options)
    whole, pieces = x + block(norm(x)), swept(x, norm, block, piece)
    torch.testing.assert_close(pieces, whole, rtol=1e-8, atol=1e-8)
    wanted, got = (slopes(y, norm, block, x) for y in (whole, pieces))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


def test_single_precision_is_as_good_in_pieces():
    norm, block, x = made(torch.float32)
    whole = x + block(norm(x))
    pieces = swept(x, norm, block, 5)
    torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-5)
    wanted, got = (slopes(y, norm, block, x) for y in (whole, pieces))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_what_is_frozen_stays_without_a_gradient_and_the_rest_is_right():
    norm, block, x = made()
    block.in_proj.requires_grad_(False)
    block.A_log.requires_grad_(False)
    swept(x, norm, block, 8).square().sum().backward()
    assert block.in_proj.weight.grad is None
    assert block.A_log.grad is None
    found = block.out_proj.weight.grad.clone()
    block.zero_grad()
    (x + block(norm(x))).square().sum().backward()
    torch.testing.assert_close(found, block.out_proj.weight.grad, rtol=1e-7, atol=1e-7)


def test_the_way_back_is_computed_in_the_precision_of_the_way_there():
    norm, block, x = made(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        whole, pieces = x + block(norm(x)), swept(x, norm, block, 8)
    wanted, got = (slopes(y, norm, block, x) for y in (whole, pieces))
    exact = slopes(x + block(norm(x)), norm, block, x)
    off = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, exact, strict=True))
    assert off > 1e-4, "it is not bfloat16"
    for a, b in zip(got, wanted, strict=True):
        assert float((a - b).abs().max()) < 0.1 * float(b.abs().max())


def test_a_scan_goes_on_from_a_state():
    torch.manual_seed(1)
    e, n, t = 4, 5, 12
    u, delta = torch.randn(t, e).double(), torch.rand(t, e).double()
    a, b, c = -torch.rand(e, n).double() - 0.1, torch.randn(t, n).double(), torch.randn(t, n)
    d = torch.randn(e).double()
    y, last = selective_scan(u, delta, a, b, c.double(), d)
    first, state = scan_from(torch.zeros(e, n).double(), u[:7], delta[:7], a, b[:7], c[:7], d)
    second, state = scan_from(state, u[7:], delta[7:], a, b[7:], c[7:], d)
    torch.testing.assert_close(torch.cat([first, second]), y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state, last[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("together", [1, 2, 3, 5, 9])
def test_a_linear_function_in_groups_of_regions_is_that_of_all(together):
    x = torch.randn(2, 5, 4, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 5, 2, 6, dtype=torch.float64)

    def pairs(part):
        return part.unflatten(2, (2, 2)).flatten(-2) * 3

    whole, parts = pairs(x), in_groups(pairs, x, together)
    assert parts.equal(whole)
    wanted, got = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (whole, parts))
    assert got.equal(wanted)
