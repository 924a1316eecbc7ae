"""The published kernels need a GPU. That tensors reach them in their layout, and come back in ours,
is shown with stand-ins which compute as `selective_scan_ref` and `causal_conv1d_ref` do."""

import functools
import importlib.util
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from wsizoo_plugin_pixelmamba import hooks, mamba_ssm_backend

from wsizoo.errors import BackendError, DataError
from wsizoo.ops import Op, causal_conv1d, selective_scan
from wsizoo.testing import check_op_backend

SCAN, CONV = BACKENDS = list(hooks.wsizoo_op_backends())
scan = Op(selective_scan.reference, BACKENDS)
conv = Op(causal_conv1d.reference, BACKENDS)
LENGTHS = ([7], [0], [1], [5, 5, 0, 0, 3, 5, 5, 1])


def scan_inputs(lengths, reverse=False, plain=False, e=6, n=4):
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
    t = sum(lengths)
    u, delta, a, b, c = draw(t, e), draw(t, e), -draw(e, n).exp(), draw(t, n), draw(t, n)
    if plain:
        return [u, delta.abs(), a, b, c]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return [u, delta, a, b, c, draw(e), draw(t, e), draw(e), True, offsets, reverse]


def conv_inputs(lengths, reverse=False, activation="silu", e=6, taps=4):
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return [draw(sum(lengths), e), draw(e, taps), draw(e), activation, offsets, reverse]


def published_scan(
    u,
    delta,
    A,  # noqa: N803
    B,  # noqa: N803
    C,  # noqa: N803
    D=None,  # noqa: N803
    z=None,
    delta_bias=None,
    delta_softplus=False,
    return_last_state=False,
):
    """(B, E, L) rows, (B, N, L) B and C; dtypes and strides as the kernels ask for them."""
    assert all(x.dtype == u.dtype and x.is_contiguous() for x in (u, delta, B, C))
    assert z is None or z.dtype == u.dtype
    assert all(x is None or x.dtype == torch.float32 for x in (A, D, delta_bias))
    x, dt = u.float(), delta.float()
    dt = dt if delta_bias is None else dt + delta_bias[:, None]
    dt = F.softplus(dt) if delta_softplus else dt
    state, steps = x.new_zeros(len(u), *A.shape), []
    for i in range(u.shape[2]):
        grown = torch.einsum("be,bn->ben", (dt * x)[..., i], B.float()[..., i])
        state = torch.exp(dt[..., i, None] * A) * state + grown
        steps.append(torch.einsum("ben,bn->be", state, C.float()[..., i]))
    y = torch.stack(steps, 2)
    y = y if D is None else y + D[:, None] * x
    y = (y if z is None else y * F.silu(z.float())).to(u.dtype)
    return (y, state) if return_last_state else y


def published_conv(x, weight, bias=None, activation=None):
    """(B, E, L)."""
    assert activation in (None, "silu", "swish")
    assert weight.dtype == bias.dtype
    wide = F.pad(x.float(), (weight.shape[1] - 1, 0))
    y = F.conv1d(wide, weight.float()[:, None], bias.float(), groups=len(weight))
    return (F.silu(y) if activation else y).to(x.dtype)


@pytest.fixture
def calls(monkeypatch):
    """Stand-ins in the packages' places, and the shapes that reach them."""
    found = []

    def heard(function):
        def run(x, *args, **kwargs):
            found.append(tuple(x.shape))
            return function(x, *args, **kwargs)

        return run

    interface = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = heard(published_scan)
    package = types.ModuleType("causal_conv1d")
    package.causal_conv1d_fn = heard(published_conv)
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for module in (interface, package):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(mamba_ssm_backend, "_lacking", lambda module: None)
    monkeypatch.setattr(mamba_ssm_backend, "DEVICE", "cpu")
    return found


DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("reverse", [False, True])
def test_scans_reach_the_kernels_in_their_layout(calls, reverse):
    sizes = [functools.partial(scan_inputs, lengths, reverse) for lengths in LENGTHS]
    plain = functools.partial(scan_inputs, [9], plain=True)
    check_op_backend(scan, "mamba-ssm", *sizes, plain, dtypes=DTYPES)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("activation", ["silu", "none"])
def test_convolutions_reach_the_kernels_in_their_layout(calls, reverse, activation):
    sizes = [functools.partial(conv_inputs, lengths, reverse, activation) for lengths in LENGTHS]
    check_op_backend(conv, "mamba-ssm", *sizes, dtypes=DTYPES)


def test_neighbours_of_one_length_are_one_call(calls):
    scan.on("mamba-ssm")(*scan_inputs([5, 5, 0, 3]))
    conv.on("mamba-ssm")(*conv_inputs([5, 5, 0, 3]))
    assert calls == [(2, 6, 5), (1, 6, 3)] * 2


def test_arguments_that_do_not_fit_are_errors(calls):
    args = scan_inputs([5])
    with pytest.raises(DataError, match=r"selective_scan got delta \(4, 6\)"):
        scan.on("mamba-ssm")(args[0], args[1][1:], *args[2:])
    x, weight, bias = conv_inputs([5])[:3]
    with pytest.raises(DataError, match=r"causal_conv1d got bias \(5,\)"):
        conv.on("mamba-ssm")(x, weight, bias[1:])


def test_it_refuses_what_the_kernels_cannot_do(calls):
    args = scan_inputs([5])
    assert scan.why_not(SCAN, *args) is None
    assert "one dtype" in scan.why_not(SCAN, args[0].bfloat16(), *args[1:])
    assert "there are 300 states" in scan.why_not(SCAN, *scan_inputs([5], n=300))
    double = [x.double() for x in scan_inputs([5], plain=True)]
    assert "tensors are float64" in scan.why_not(SCAN, *double)
    assert scan.why_not(SCAN, *(x.to("meta") for x in args[:5])) == "tensors are on meta"
    assert conv.why_not(CONV, *conv_inputs([5])) is None
    assert "there are 5 taps" in conv.why_not(CONV, *conv_inputs([5], taps=5))
    x, weight, bias = conv_inputs([5])[:3]
    assert conv.why_not(CONV, x.bfloat16(), weight, bias) is None  # as under autocast
    assert "one dtype" in conv.why_not(CONV, x, weight.bfloat16(), bias)


def test_it_says_what_it_lacks_here(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    lacks = r"is not installed: pip install 'wsizoo-plugin-pixelmamba\[mamba-ssm\]'"
    with pytest.raises(BackendError, match=f"mamba-ssm {lacks}"):
        scan.on("mamba-ssm")(*scan_inputs([5]))
    with pytest.raises(BackendError, match=f"causal-conv1d {lacks}"):
        conv.on("mamba-ssm")(*conv_inputs([5]))
    assert torch.isfinite(scan(*scan_inputs([5]))[0]).all()  # auto goes on without it
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert scan.why_not(SCAN) == conv.why_not(CONV) == "there is no CUDA device"


@pytest.mark.gpu
def test_it_equals_the_reference_on_cuda():
    scans = [functools.partial(scan_inputs, x, True, e=16, n=16) for x in ([7], [5, 5, 0, 70])]
    convs = [functools.partial(conv_inputs, x, True, e=16) for x in ([7], [5, 5, 0, 70])]
    check_op_backend(scan, "mamba-ssm", *scans, dtypes=DTYPES, device="cuda")
    check_op_backend(conv, "mamba-ssm", *convs, dtypes=DTYPES, device="cuda")
