"""spconv computes what the reference does: on CUDA by the rules of every backend, and, where its
package is installed, on a CPU too, which shows that our pairs reach it in its layout."""

import functools
import importlib.util
import sys
import types

import pytest
import torch
from wsizoo_plugin_span import hooks, spconv_backend

from wsizoo.errors import BackendError
from wsizoo.ops import Op, rulebook, sparse_conv2d, sparse_conv_transpose2d
from wsizoo.testing import check_op_backend

BACKENDS = list(hooks.wsizoo_op_backends())
conv = Op(sparse_conv2d.reference, BACKENDS)
transpose = Op(sparse_conv_transpose2d.reference, BACKENDS)
KERNELS = [(2, 2, 1), (3, 2, 1), (3, 1, 2)]
HERE = importlib.util.find_spec("spconv") is not None
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what spconv imports


def book_of(n, kernel, device="cpu"):
    generator = torch.Generator().manual_seed(n)
    flat = torch.randperm(60 * 50, generator=generator)[:n]
    return rulebook(torch.stack([flat // 50, flat % 50], 1).to(device), (60, 50), *kernel)


def conv_inputs(n, kernel, edge="none", device="cpu"):
    book = book_of(n, kernel, device)
    weight, bias = torch.randn(24, 16, kernel[0], kernel[0]), torch.randn(24)
    return [torch.randn(n, 16), weight, book, bias, {"edge": edge, "edge_eps": 0.5}]


def transpose_inputs(n, kernel, device="cpu"):
    book = book_of(n, kernel, device)
    weight, bias = torch.randn(16, 24, kernel[0], kernel[0]), torch.randn(24)
    return [torch.randn(len(book.out_cells), 16), weight, book, bias]


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("op", "inputs"), [(conv, conv_inputs), (transpose, transpose_inputs)])
def test_it_equals_the_reference_on_cuda(op, inputs, kernel):
    sizes = [functools.partial(inputs, n, kernel, device="cuda") for n in (5, 64, 1001)]
    dtypes = (torch.float32, torch.float16)
    check_op_backend(op, "spconv", *sizes, dtypes=dtypes, device="cuda")


@pytest.mark.skipif(not HERE, reason="spconv is not installed")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        (conv, conv_inputs),
        (conv, functools.partial(conv_inputs, edge="count")),
        (conv, functools.partial(conv_inputs, edge="partial")),
        (transpose, transpose_inputs),
    ],
)
def test_it_equals_the_reference_where_spconv_runs_on_a_cpu(op, inputs, kernel, monkeypatch):
    from spconv.cppconstants import CPU_ONLY_BUILD

    if CPU_ONLY_BUILD:
        pytest.skip("the CPU build of spconv 2.3.8 loses sums: its threads race")
    for name in ("why_not_conv", "why_not_transpose"):
        monkeypatch.setattr(spconv_backend, name, lambda *args, **kwargs: None)
    # its backward asks for a CUDA stream that it does not use there
    monkeypatch.setattr("spconv.pytorch.ops.get_current_stream", lambda: 0)
    sizes = [functools.partial(inputs, n, kernel) for n in (5, 64, 1001)]
    check_op_backend(op, "spconv", *sizes)


def test_it_says_what_it_lacks_here(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for op, inputs in ((conv, conv_inputs), (transpose, transpose_inputs)):
        with pytest.raises(BackendError, match=r"spconv is not installed: pip install 'wsizoo-plu"):
            op.on("spconv")(*inputs(5, (2, 2, 1))[:4])
        assert op.why_not(BACKENDS[0]) == op.why_not(BACKENDS[1])
        assert torch.isfinite(op(*inputs(5, (2, 2, 1))[:4])).all()  # auto goes on without it
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert conv.why_not(BACKENDS[0]) == "there is no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    built = types.ModuleType("spconv.cppconstants")
    for name, module in (("spconv", types.ModuleType("spconv")), (built.__name__, built)):
        monkeypatch.setitem(sys.modules, name, module)
    built.CPU_ONLY_BUILD = True
    assert conv.why_not(BACKENDS[0]).startswith("spconv is its build for CPUs: pip install")
    built.CPU_ONLY_BUILD = False
    assert conv.why_not(BACKENDS[0]) is None


def test_it_refuses_what_spconv_cannot_do(monkeypatch):
    monkeypatch.setattr(spconv_backend, "_lacking", lambda: None)
    x, weight, book, bias, _ = conv_inputs(5, (2, 2, 1))
    assert conv.why_not(BACKENDS[0], x, weight, book) == "x is on cpu"
    there = torch.empty(5, 16, device="meta")
    monkeypatch.setattr(spconv_backend, "DEVICE", "meta")
    assert conv.why_not(BACKENDS[0], there, weight, book, bias) is None
    half = there.bfloat16()
    assert "x is bfloat16" in conv.why_not(BACKENDS[0], half, weight, book)
    assert conv.why_not(BACKENDS[0], there, weight[:, :4], book) == "spconv has no groups"
    assert transpose.why_not(BACKENDS[1], there, weight, book, groups=2) == "spconv has no groups"
    assert transpose.why_not(BACKENDS[1], there, weight, book) is None
    nothing = book_of(0, (2, 2, 1))
    assert conv.why_not(BACKENDS[0], there, weight, nothing) == "no cell lies under a kernel"
