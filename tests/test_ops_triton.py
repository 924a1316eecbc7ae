"""The selective scan's kernels in Triton: on a CPU under its interpreter, which has to be asked for
before triton is imported, so in a process of its own; and compiled for a GPU that need not be here.
"""

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from wsizoo.errors import BackendError
from wsizoo.ops import causal_conv1d, conv_triton, scan_triton, selective_scan
from wsizoo.testing import check_op_backend

HERE = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_triton = pytest.mark.skipif(not HERE, reason="triton is not installed")
interpreted = pytest.mark.skipif(not (HERE and INTERPRETED), reason="without TRITON_INTERPRET=1")
compiled = pytest.mark.skipif(INTERPRETED, reason="under TRITON_INTERPRET=1")
# numpy computes both sides of a where
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
WAYS = {"STEPS": 64, "BE": 32, "BN": 16, "SOFTPLUS": True, "REVERSE": True}
TAPS = {"TAPS": 4, "BR": 64, "BE": 32, "REVERSE": True, "SILU": True}


def inputs(
    lengths: Sequence[int], e: int, n: int, reverse: bool = False, plain: bool = False
) -> list[Any]:
    """Arguments of the op; `plain`: one sequence, and nothing that may be left out."""
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(e))
    t = sum(lengths)
    u, delta, a, b, c = draw(t, e), draw(t, e), -draw(e, n).exp(), draw(t, n), draw(t, n)
    if plain:
        return [u, delta.abs(), a, b, c, {"reverse": reverse}]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return [u, delta, a, b, c, draw(e), draw(t, e), draw(e), True, offsets, reverse]


def conv_inputs(
    lengths: Sequence[int], e: int, silu: bool, reverse: bool, plain: bool = False
) -> list[Any]:
    """Arguments of the convolution; `plain`: one sequence without a bias."""
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(e))
    x, weight, activation = draw(sum(lengths), e), draw(e, 4), "silu" if silu else "none"
    if plain:
        return [x, weight, {"activation": activation, "reverse": reverse}]
    return [x, weight, draw(e), activation, torch.tensor([0, *lengths]).cumsum(0), reverse]


SMALL = [
    functools.partial(inputs, [0], 2, 3),
    functools.partial(inputs, [1], 1, 1),
    functools.partial(inputs, [9], 3, 2, plain=True),
    functools.partial(inputs, [9], 3, 2, True, plain=True),
    functools.partial(inputs, [0, 1, 5, 0, 11, 1], 5, 3),
    functools.partial(inputs, [0, 1, 5, 0, 11, 1], 5, 3, True),
]
LARGE = [
    functools.partial(inputs, [70], 5, 3, plain=True),
    functools.partial(inputs, [0, 1, 9, 0, 130, 1, 1], 6, 16),
    functools.partial(inputs, [300, 215, 3], 133, 20, True),
    functools.partial(inputs, [40_000, 1, 100_001], 24, 16, True),
]


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, blocks of channels, and turns of the backward pass in few steps."""
    monkeypatch.setattr(scan_triton, "STEPS", (2, 4))
    monkeypatch.setattr(scan_triton, "MOST_CHUNKS", 4)
    monkeypatch.setattr(scan_triton, "CHANNELS", 4)
    monkeypatch.setattr(scan_triton, "AGAIN", 4 * 5 * 3 * 2)
    monkeypatch.setattr(scan_triton, "CHAINED", 4)


@needs_triton
@compiled
def test_it_passes_under_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    found = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[1],
    )
    assert found.returncode == 0, found.stdout[-4000:]
    assert "passed" in found.stdout


@interpreted
@pytest.mark.usefixtures("chunks")
def test_chunks_compute_what_the_definition_computes() -> None:
    kinds = [torch.float32, torch.bfloat16]
    check_op_backend(selective_scan, "triton", *SMALL, dtypes=kinds)


@interpreted
def test_one_chunk_computes_what_the_definition_computes() -> None:
    check_op_backend(selective_scan, "triton", SMALL[-1], dtypes=[torch.float16])


@interpreted
@pytest.mark.parametrize("silu", [False, True])
def test_convolutions_compute_what_the_definition_computes(
    silu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv_triton, "ROWS", 4)
    monkeypatch.setattr(conv_triton, "CHANNELS", 2)
    sizes = [functools.partial(conv_inputs, x, 3, silu, silu) for x in ([0], [1], [0, 6, 1, 9])]
    plain = functools.partial(conv_inputs, [11], 2, not silu, silu, plain=True)
    kinds = [torch.float32, torch.bfloat16]
    check_op_backend(causal_conv1d, "triton", *sizes, plain, dtypes=kinds)


@interpreted
def test_a_nan_of_a_convolution_stays_in_its_sequence() -> None:
    args = conv_inputs([9, 9], 3, True, False)
    args[0][8, 0] = torch.nan
    found = causal_conv1d.on("triton")(*args)
    assert torch.isnan(found).nonzero().tolist() == [[8, 0]]


@interpreted
@pytest.mark.usefixtures("chunks")
def test_a_nan_stays_in_its_sequence() -> None:
    args = inputs([6, 7], 2, 2)
    args[0][3, 0] = torch.nan
    args[0].requires_grad_()
    y, last = selective_scan.on("triton")(*args)
    assert torch.isnan(y[:, 0]).nonzero()[:, 0].tolist() == [3, 4, 5]
    assert torch.isfinite(last[1]).all()
    (slope,) = torch.autograd.grad(y[6:].sum(), [args[0]])
    assert torch.isfinite(slope[6:]).all()


@interpreted
@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("scale", [60.0, 1e30])
def test_extreme_steps_stay_finite(scale: float) -> None:
    args = inputs([9], 3, 2)
    args[1] = torch.where(args[1] > 0, scale, -scale)
    args[0] = args[0] / scale
    leaves = [x.requires_grad_() for x in args if isinstance(x, Tensor) and x.is_floating_point()]
    y, last = selective_scan.on("triton")(*args)
    for found in (y, last, *torch.autograd.grad(y.sum(), leaves)):
        assert torch.isfinite(found).all()


@interpreted
def test_backward_keeps_few_of_the_states() -> None:
    args, kept = inputs([128], 4, 16), {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    leaves = [x.requires_grad_() for x in args if isinstance(x, Tensor) and x.is_floating_point()]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        y, _ = selective_scan.on("triton")(*args)
    for x in (*leaves, args[9]):
        del kept[x.untyped_storage().data_ptr()]
    assert 0 < sum(kept.values()) < 0.1 * y.nbytes * 16


@pytest.mark.gpu
def test_it_equals_the_reference_on_cuda() -> None:
    kinds = [torch.float32, torch.bfloat16, torch.float16]
    check_op_backend(selective_scan, "triton", *SMALL, *LARGE[:3], dtypes=kinds, device="cuda")
    convs = [functools.partial(conv_inputs, [0, 700, 1, 90], 133, True, x) for x in (False, True)]
    check_op_backend(causal_conv1d, "triton", *convs, dtypes=kinds, device="cuda")


@pytest.mark.gpu
def test_long_sequences_equal_the_chunked_scan_on_cuda() -> None:
    args = [x.cuda() if isinstance(x, Tensor) else x for x in LARGE[3]()]
    leaves = [x.requires_grad_() for x in args if isinstance(x, Tensor) and x.is_floating_point()]
    found = []
    for name in ("triton", "chunked"):
        y, last = selective_scan.on(name)(*args)
        found.append([y, last, *torch.autograd.grad(y.sin().sum(), leaves)])
    for mine, theirs in zip(*found, strict=True):
        assert (mine - theirs).abs().max() < 1e-3 * theirs.abs().max()


@needs_triton
@compiled
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("kernel", "ways"),
    [
        ("hand_on", WAYS),
        ("carry", {"BLOCK": 128, "BACK": True}),
        ("forward", {**WAYS, "GATED": True}),
        ("hand_back", {**WAYS, "GATED": True}),
        ("again", WAYS),
        ("backward", {**WAYS, "GATED": True}),
        ("conv.forward", TAPS),
        ("conv.of_parameters", TAPS),
        ("conv.of_rows", {name: TAPS[name] for name in TAPS if name != "SILU"}),
        ("backward", {**WAYS, "GATED": False, "SOFTPLUS": False, "REVERSE": False, "BE": 1}),
    ],
)
def test_kernels_compile_for_a_gpu(
    kernel: str, ways: dict[str, Any], half: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from triton import compile as compile_for
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from wsizoo.ops import _triton_conv_kernels, _triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    where = _triton_conv_kernels if "." in kernel else _triton_kernels
    function = getattr(where, kernel.rsplit(".", maxsplit=1)[-1])
    kinds = dict.fromkeys(function.arg_names, "*fp32") | dict.fromkeys(ways, "constexpr")
    numbers = ("T", "E", "N", "START", "ROWS", "chunks")
    rows = ("x", "u", "delta", "b", "c", "z", "y", "slope", "of_u", "of_delta", "of_z", "of_x")
    kinds |= dict.fromkeys(numbers, "i32") | {
        "begins": "*i32",
        "cut": "*i32",
        "ends": "*i64",
        "place": "*i64",
    }
    kinds |= dict.fromkeys(rows, "*bf16" if half else "*fp32")
    signature = {name: kinds[name] for name in function.arg_names}
    built = compile_for(ASTSource(function, signature, ways), target=GPUTarget("cuda", 90, 32))
    assert built.asm["cubin"]


def test_it_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_triton, "_installed", lambda: False)
    with pytest.raises(BackendError, match="cannot run on 'triton': triton is not installed"):
        selective_scan.on("triton")(*SMALL[-1]())
    monkeypatch.setattr(scan_triton, "_installed", lambda: True)
    monkeypatch.setattr(scan_triton, "_interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert scan_triton.why_not() == "there is no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert scan_triton.why_not() is None
    assert "tensors are on cpu, the kernels run on cuda" in str(scan_triton.why_not(*SMALL[-1]()))
    monkeypatch.setattr(scan_triton, "_interpreted", lambda: True)
    assert scan_triton.why_not(*SMALL[-1]()) is None
    assert "tensors are float64" in str(scan_triton.why_not(torch.zeros(4, 5).double()))
    told: list[str | None] = []

    def asked(x: Tensor) -> Tensor:
        told.append(scan_triton.why_not(x))
        return x

    torch.func.vmap(asked)(torch.zeros(4, 5))
    assert told == ["torch.func runs the reference only"]
