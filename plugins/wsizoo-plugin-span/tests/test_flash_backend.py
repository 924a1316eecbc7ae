"""Flash attention computes what the reference does: on CUDA by the rules of every backend, and on a
CPU with a plain loop over segments in place of the kernel, which holds all that is around it."""

import functools
import importlib.util
import math
import sys
import types

import pytest
import torch
from wsizoo_plugin_span import flash_backend, hooks

from wsizoo.errors import BackendError, DataError
from wsizoo.ops import Neighbourhood, Op, Windows, grid_attention
from wsizoo.testing import check_op_backend

(BACKEND,) = (backend for backend in hooks.wsizoo_op_backends() if backend.name == "flash")
attention = Op(grid_attention.reference, [BACKEND])
flash = attention.on("flash")
DOUBLE, SINGLE, HALF = torch.float64, torch.float32, torch.bfloat16


def windows_of(n, pattern="union", half=3, alone=(), device="cpu", **kwargs):
    at = torch.randperm(256, generator=torch.Generator().manual_seed(n))[:n]
    cells = torch.stack([at // 16, at % 16], 1).to(device)
    return Windows(cells, half, pattern, without_self=torch.tensor(alone).long(), **kwargs)


def inputs(n, heads, dim, windows, bias=True):
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(n))
    edge = 2 * windows.reach + 1
    table = draw(heads, edge, edge) if bias else None
    return [*(draw(n, heads, dim) for _ in range(3)), windows, table]


def sizes(device="cpu"):
    windows = functools.partial(windows_of, device=device)
    some = torch.arange(200, device=device) < 120
    split = windows(200)
    split.cells[some] += 1000
    return [
        functools.partial(inputs, 0, 2, 8, windows(0)),
        functools.partial(inputs, 1, 1, 4, windows(1), bias=False),
        functools.partial(inputs, 2, 2, 8, windows(2, alone=[0, 1])),
        functools.partial(inputs, 97, 3, 5, windows(97, "shifted")),
        functools.partial(inputs, 97, 3, 5, windows(97), bias=False),
        functools.partial(inputs, 150, 1, 16, windows(150, "regular", half=2)),
        functools.partial(inputs, 150, 2, 8, windows(150, half=1, alone=[3])),
        functools.partial(inputs, 200, 2, 8, Windows(split.cells, 3, shifts=some)),
        functools.partial(inputs, 200, 2, 64, windows(200, alone=[0, 199])),
    ]


def segments(q, k, v, *bounds, dropout_p=0.0, softmax_scale):
    """Varlen attention as its kernels do it, with what they demand."""
    *bounds, most_queries, most_keys = bounds
    (queries, keys), lengths = (b.tolist() for b in bounds), [b.diff() for b in bounds]
    assert q.shape[1:] == k.shape[1:] == v.shape[1:]
    assert q.shape[2] % 8 == 0
    assert {x.dtype for x in bounds} == {torch.int32}
    assert (queries[0], queries[-1], keys[0], keys[-1]) == (0, len(q), 0, len(k))
    assert len(queries) == len(keys) <= flash_backend.MOST_GROUPS + 1
    assert min(map(min, lengths)) > 0
    assert lengths[0].max() <= most_queries
    assert lengths[1].max() <= most_keys
    out = []
    for i in range(len(queries) - 1):
        mine = q[queries[i] : queries[i + 1]].to(torch.promote_types(q.dtype, torch.float32))
        theirs = slice(keys[i], keys[i + 1])
        scores = torch.einsum("qhd,khd->hqk", mine, k[theirs].to(mine)) * softmax_scale
        weights = torch.dropout(scores.softmax(-1), dropout_p, True)
        out.append(torch.einsum("hqk,khd->qhd", weights, v[theirs].to(mine)))
    return torch.cat(out).to(q.dtype)


@pytest.fixture
def kernel(monkeypatch):
    """The loop in place of flash-attn, on a CPU, for all float types."""
    module = types.ModuleType("flash_attn")
    module.flash_attn_varlen_func = segments
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(flash_backend, "_torch_has_it", lambda: False)
    monkeypatch.setattr(flash_backend, "_flash_attn_is_there", lambda: True)
    monkeypatch.setattr(flash_backend, "_lacking", lambda: None)
    monkeypatch.setattr(flash_backend, "DEVICE", "cpu")
    monkeypatch.setattr(flash_backend, "DTYPES", (DOUBLE, SINGLE, HALF, torch.float16))


@pytest.mark.gpu
def test_it_equals_the_reference_on_cuda():
    check_op_backend(
        attention, "flash", *sizes("cuda"), dtypes=(HALF, torch.float16), device="cuda"
    )


@pytest.mark.gpu
def test_more_groups_than_one_call_takes_on_cuda(monkeypatch):
    monkeypatch.setattr(flash_backend, "MOST_GROUPS", 7)
    check_op_backend(attention, "flash", sizes("cuda")[-1], dtypes=(HALF,), device="cuda")


@pytest.mark.usefixtures("kernel")
def test_it_equals_the_reference_with_a_loop_for_the_kernel():
    check_op_backend(attention, "flash", *sizes(), dtypes=(DOUBLE, SINGLE))
    check_op_backend(attention, "flash", *sizes()[-2:], dtypes=(HALF, torch.float16))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("most", [1, 7])
def test_more_groups_than_one_call_takes_change_nothing(most, monkeypatch):
    monkeypatch.setattr(flash_backend, "MOST_GROUPS", most)
    check_op_backend(attention, "flash", *sizes()[2:-1], dtypes=(DOUBLE,))


@pytest.mark.usefixtures("kernel")
def test_a_bias_of_higher_precision_keeps_it():
    q, k, v, windows, bias = inputs(200, 2, 16, windows_of(200))
    q, k, v = (x.to(HALF) for x in (q, k * 0, v))
    bias = (20 + bias).requires_grad_()  # where bfloat16 is off by up to 0.06
    out, slopes = [], []
    for run in (flash, attention.on("reference")):
        wide = (x.float() if run is not flash else x for x in (q, k, v))
        out.append(run(*wide, windows, bias).float())
        slopes += torch.autograd.grad((out[-1] * v.float()).sum(), bias)
    limit = 2**-8 * out[1].abs().max()  # of the output's own type
    assert (out[0] - out[1]).abs().max() < limit
    assert torch.allclose(*slopes, atol=1e-2 * slopes[1].abs().max())
    rounded = attention.reference(q.float(), k.float(), v.float(), windows, bias.to(HALF))
    assert (rounded - out[1]).abs().max() > 2 * limit


@pytest.mark.usefixtures("kernel")
def test_an_infinite_bias_forbids_an_offset():
    q, k, v, windows, bias = inputs(150, 2, 8, windows_of(150))
    bias[:, 4, 5], bias[:, 6, 6] = -torch.inf, -1e30
    for dtype, limit in ((SINGLE, 1e-5), (torch.float16, 2e-2)):
        args = (x.to(dtype) for x in (q, k, v))
        found = flash(*args, windows, bias).float()
        assert torch.allclose(found, attention.reference(q, k, v, windows, bias), atol=limit)


@pytest.mark.usefixtures("kernel")
def test_a_token_without_a_key_gets_zero_whatever_it_holds():
    cells = torch.tensor([[0, 0], [100, 100], [100, 101]])
    for windows in (
        Windows(cells, 2, without_self=torch.tensor([0])),
        Windows(cells[:1], 2, without_self=torch.tensor([0])),
    ):
        q = torch.randn(len(windows), 1, 8)
        q[0] = torch.nan
        q.requires_grad_()
        out = flash(q, q, q, windows)
        assert torch.equal(out[0], torch.zeros(1, 8))
        assert torch.isfinite(out).all()
        (slope,) = torch.autograd.grad(out.sum(), q)
        assert torch.equal(slope[0], torch.zeros(1, 8))


@pytest.mark.usefixtures("kernel")
def test_dropout_drops_its_share_and_keeps_the_mean():
    torch.manual_seed(0)
    q, k, _, windows, bias = inputs(256, 2, 8, windows_of(256))
    out = flash(q, k, torch.ones(256, 2, 8), windows, bias, 0.3)
    assert out.mean() == pytest.approx(1, abs=0.02)
    assert out.std() > 0.05


@pytest.mark.usefixtures("kernel")
def test_shapes_that_do_not_fit_are_errors():
    q, k, v, windows, _ = inputs(9, 2, 8, windows_of(9))
    with pytest.raises(DataError, match=r"k \(8, 2, 8\).*for 9 cells"):
        flash(q, k[:8], v, windows)


def test_torchs_own_kernel_is_called_as_it_wants_to_be(monkeypatch):
    """On tensors without values: its arguments, the shapes that it gives, its backward."""
    pytest.importorskip("torch.nn.attention.varlen", reason="an older torch")
    monkeypatch.setattr(flash_backend, "_torch_has_it", lambda: True)
    q = torch.empty(6, 2, 80, device="meta", dtype=HALF, requires_grad=True)
    k, v = (torch.empty(20, 2, 80, device="meta", dtype=HALF, requires_grad=True) for _ in range(2))
    bounds = (torch.tensor([0, *ends], dtype=torch.int32).to("meta") for ends in ([2, 6], [9, 20]))
    out = flash_backend._attend(q, k, v, tuple(bounds), (4, 63), 0.125, 0.0)
    assert out.shape == q.shape
    slopes = torch.autograd.grad(out.sum(), (q, k, v))
    assert [x.shape for x in slopes] == [q.shape, k.shape, v.shape]


def test_torchs_own_kernel_is_known_by_what_it_takes(monkeypatch):
    has_it = flash_backend._torch_has_it.__wrapped__
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    assert not has_it()
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    module = types.ModuleType("torch.nn.attention.varlen")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert not has_it()
    module.varlen_attn = lambda query, key, value, is_causal=False: None  # as in torch 2.10
    assert not has_it()
    module.varlen_attn = lambda query, key, value, *, scale=None: None
    assert has_it()


def test_it_says_what_it_lacks(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert attention.why_not(BACKEND) == "there is no CUDA device"
    with pytest.raises(BackendError, match="cannot run on 'flash': there is no CUDA device"):
        flash(*inputs(5, 2, 8, windows_of(5)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "capability (7, 5), flash attention needs (8, 0)" in attention.why_not(BACKEND)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(flash_backend, "_torch_has_it", lambda: False)
    missing = r"has no varlen attention, flash-attn has: pip install 'wsizoo-plugin-span\[flash"
    with pytest.raises(BackendError, match=missing):
        flash(*inputs(5, 2, 8, windows_of(5)))
    monkeypatch.setattr(flash_backend, "_torch_has_it", lambda: True)
    assert attention.why_not(BACKEND) is None


def test_it_refuses_what_it_cannot_do(monkeypatch):
    monkeypatch.setattr(flash_backend, "_lacking", lambda: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    why_not = functools.partial(attention.why_not, BACKEND)
    windows = windows_of(5)
    *_, windows, bias = inputs(5, 2, 64, windows)
    x = torch.empty(5, 2, 64, dtype=HALF)
    assert why_not(x, x, x, windows) == "q is on cpu"
    monkeypatch.setattr(flash_backend, "DEVICE", "cpu")
    assert why_not(x, x, x, windows, bias) is None
    wide = x.float()
    assert "q, k, v are float32, float32, float32; flash" in why_not(wide, wide, wide, windows)
    assert "q, k, v are bfloat16, bfloat16, float32" in why_not(x, x, wide, windows)
    assert why_not(x, x, x, Neighbourhood(windows.cells)) == (
        "tokens of Neighbourhood do not share their keys"
    )
    assert why_not(x, x, x, windows, torch.sum) == "the bias is a function, groups take a table"
    large = Windows(windows.cells, 9)
    assert why_not(x, x, x, large) is None
    table = torch.zeros(2, 35, 35)
    assert why_not(x, x, x, large, table) == (
        "a head and its bias take 232 channels, 192 is the most"
    )
    assert why_not(x, x, x, large, table.to(HALF)) is None
    assert why_not(x, x, x, windows, None, 0.1).startswith(
        "dropout is 0.1, which torch's varlen attention has not: pip install"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert why_not(x, x, x, windows, None, 0.1) is None


def test_it_is_chosen_before_the_blocks():
    backends = grid_attention.backends()
    assert [backend.name for backend in backends] == ["flash", "blocked", "striped"]
    assert math.isclose(flash_backend.NEVER * 2**0.5, 42426, rel_tol=1e-3)  # float16 holds it
