"""Op equality: a backend must compute what the reference computes, in value and in every gradient.

from wsizoo.testing import check_op_backend

def test_triton_softmax():
    check_op_backend(segment_softmax, "triton", *[functools.partial(inputs, n) for n in SIZES])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from wsizoo.errors import NotFoundError
from wsizoo.hookspecs import OpBackend
from wsizoo.names import suggest
from wsizoo.ops import Op
from wsizoo.targets import load_target

# Of the largest reference value, the same for every op and backend: (outputs, gradients).
TOLERANCES = {
    torch.float64: (1e-10, 1e-10),
    torch.float32: (1e-5, 1e-4),
    torch.float16: (2e-2, 2e-2),
    torch.bfloat16: (2e-2, 2e-2),
}
SMALLEST = 1e-3  # of the tolerance, as an absolute one: references that are zero
READERS = frozenset(
    (
        *("item", "tolist", "numpy", "equal", "allclose"),
        *("__bool__", "__int__", "__float__", "__index__", "__array__", "__contains__"),
    )
)

Inputs = Callable[[], Sequence[Any]]
Call = tuple[list[Any], Mapping[str, Any]]


def check_op_backend(
    op: Op,
    backend: str,
    *make_inputs: Inputs,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    device: torch.device | str = "cpu",
    gradients: bool = True,
) -> None:
    """Run a backend and the reference on the same inputs, and compare.

    Each set of inputs is tried in each dtype, contiguous and (unless `why_not` refuses) strided. In
    half precision the reference runs in float32 on the rounded inputs. Outputs and the gradients of
    all float inputs must agree within `TOLERANCES`, of the largest reference value.

    Args:
        op: e.g. `wsizoo.ops.segment_softmax`. backend: name of a backend of it.
        make_inputs: one function for each awkward size; it returns the op's positional arguments,
            of which a dict at the end is taken for keyword arguments.
        dtypes: what float inputs are cast to. device: where both run.
        gradients: compare gradients too; False only for an op that has none.

    Where `why_not()` says that this machine lacks something, the running pytest test is skipped
    with that reason; nothing else is skipped.

    Raises:
        AssertionError: values, gradients, shapes or dtypes off; inputs written to; a `why_not` that
            reads values, or that refuses these inputs.
        NotFoundError: the op has no such backend.
    """
    found = _backend(op, backend)
    lacking = op.why_not(found)
    if lacking is not None:
        import pytest

        pytest.skip(f"{op.name} on '{backend}': {lacking}")
    if not make_inputs:
        raise AssertionError("check_op_backend needs functions that make inputs, one a size")
    for number, make in enumerate(make_inputs):
        for dtype in dtypes:
            where = f"{op.name} on '{backend}', inputs {number}, {dtype}"
            call = _cast(make(), dtype, device)
            refused = _why_not(op, found, call, where)
            if refused is not None:
                raise AssertionError(f"{where}: refused: {refused}; leave such inputs out")
            _check_equal(op, found, call, dtype, gradients, where)
            strided = _strided(call)
            if _why_not(op, found, strided, where) is None:
                _check_equal(op, found, strided, dtype, gradients, f"{where}, not contiguous")


def _backend(op: Op, name: str) -> OpBackend:
    found = {backend.name: backend for backend in op.backends()}
    if name not in found:
        raise NotFoundError(f"{op.name} has no backend '{name}'. {suggest(name, found, 'Known: ')}")
    return found[name]


def _cast(values: Sequence[Any], dtype: torch.dtype, device: torch.device | str) -> Call:
    """Arguments on the device, float tensors in this dtype; a last dict becomes keywords."""
    args = list(values)
    kwargs = args.pop() if args and isinstance(args[-1], dict) else {}

    def place(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, dtype if value.is_floating_point() else None).contiguous()

    return [place(value) for value in args], {name: place(value) for name, value in kwargs.items()}


def _strided(call: Call) -> Call:
    """The same values, each float tensor with gaps in memory."""

    def spread(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim == 0:
            return value
        return torch.stack([value, value], -1)[..., 0]

    return [spread(value) for value in call[0]], {name: spread(v) for name, v in call[1].items()}


class _NoReading(TorchFunctionMode):
    """Inside, whatever brings a tensor's values to Python raises."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in READERS:
            raise AssertionError(
                f"why_not reads values (Tensor.{name}); only shapes, dtypes, devices"
            )
        return func(*args, **(kwargs or {}))


def _why_not(op: Op, backend: OpBackend, call: Call, where: str) -> str | None:
    """Why the backend refuses these inputs; it must find out without their values."""
    try:
        with _NoReading():
            return op.why_not(backend, *call[0], **call[1])
    except AssertionError as error:
        raise AssertionError(f"{where}: {error}") from error


def _check_equal(
    op: Op, backend: OpBackend, call: Call, dtype: torch.dtype, gradients: bool, where: str
) -> None:
    run = load_target(backend.target, f"backend '{backend.name}' of {op.name}")
    exact = dtype in (torch.float64, torch.float32)
    reference_call = call if exact else _wider(call)
    kinds = [out.dtype for out in _run(op.reference, call, False)[0]]
    expected, slopes = _run(op.reference, reference_call, gradients)
    before = [t.clone() for t in _tensors(call)]
    got, got_slopes = _run(run, call, gradients)
    for then, now in zip(before, _tensors(call), strict=True):
        if not torch.equal(then, now):
            raise AssertionError(f"{where}: the backend writes into its inputs")
    if len(got) != len(expected):
        raise AssertionError(f"{where}: {len(got)} outputs, the reference has {len(expected)}")
    tolerance = TOLERANCES[dtype]
    for i, (mine, theirs, kind) in enumerate(zip(got, expected, kinds, strict=True)):
        if mine.dtype != kind:
            raise AssertionError(f"{where}: output {i} is {mine.dtype}, the reference's is {kind}")
        _close(mine, theirs, tolerance[0], f"{where}: output {i}")
    for i, (mine, theirs) in enumerate(zip(got_slopes, slopes, strict=True)):
        _close(mine, theirs, tolerance[1], f"{where}: gradient of float input {i}")


def _wider(call: Call) -> Call:
    """The rounded inputs in float32."""

    def widen(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

    return [widen(value) for value in call[0]], {name: widen(v) for name, v in call[1].items()}


def _tensors(call: Call) -> list[Tensor]:
    return [value for value in (*call[0], *call[1].values()) if isinstance(value, Tensor)]


def _run(
    function: Callable[..., Any], call: Call, gradients: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and the gradient of each float input for fixed cotangents (zeros where unused)."""
    leaves: list[Tensor] = []

    def leaf(value: Any) -> Any:
        if not (gradients and isinstance(value, Tensor) and value.is_floating_point()):
            return value
        leaves.append(value.detach().requires_grad_())
        return leaves[-1]

    args, kwargs = [leaf(v) for v in call[0]], {name: leaf(v) for name, v in call[1].items()}
    result = function(*args, **kwargs)
    outputs = [
        o for o in (result if isinstance(result, tuple | list) else [result]) if o is not None
    ]
    live = [o for o in outputs if o.requires_grad]
    if not gradients or not live:
        return outputs, [torch.zeros_like(leaf) for leaf in leaves]
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(o.shape, generator=generator).to(o) for o in live]
    slopes = torch.autograd.grad(live, leaves, cotangents, allow_unused=True)
    pairs = zip(slopes, leaves, strict=True)
    return outputs, [torch.zeros_like(leaf) if s is None else s for s, leaf in pairs]


def _close(got: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    if got.shape != expected.shape:
        raise AssertionError(
            f"{what} is {tuple(got.shape)}, the reference's {tuple(expected.shape)}"
        )
    if not got.numel():
        return
    if not expected.is_floating_point():
        if not torch.equal(got, expected.to(got.dtype)):
            raise AssertionError(f"{what} differs from the reference, which is {expected.dtype}")
        return
    mine, theirs = got.detach().double(), expected.detach().double()
    size = torch.where(torch.isfinite(theirs), theirs, 0.0).abs().max()
    limit = tolerance * (float(size) + SMALLEST)
    off = torch.where(mine == theirs, 0.0, torch.nan_to_num((mine - theirs).abs(), nan=torch.inf))
    off = torch.where(torch.isnan(mine) & torch.isnan(theirs), 0.0, off)
    if float(off.max()) > limit:
        raise AssertionError(f"{what} is off by {float(off.max()):.3g}, allowed {limit:.3g}")
