import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from wsizoo.errors import NotFoundError
from wsizoo.hookspecs import OpBackend
from wsizoo.ops import Op
from wsizoo.testing import check_op_backend

BOTH = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def gated_sum(values: Tensor, gate: Tensor, index: Tensor, scale: float = 1.0) -> Tensor:
    """Sum of the rows at `index`, each times its gate."""
    return scale * (values[index] * torch.tanh(gate[index])[:, None]).sum(0)


def good(values: Tensor, gate: Tensor, index: Tensor, scale: float = 1.0) -> Tensor:
    return scale * torch.tanh(gate[index]) @ values[index]


def wrong_value(values: Tensor, gate: Tensor, index: Tensor, scale: float = 1.0) -> Tensor:
    return good(values, gate, index, scale) * (1 + 1e-3)


def wrong_for_odd(values: Tensor, gate: Tensor, index: Tensor, scale: float = 1.0) -> Tensor:
    even = index[: len(index) // 2 * 2]
    return good(values, gate, even, scale)


def wrong_gradient(values: Tensor, gate: Tensor, index: Tensor, scale: float = 1.0) -> Tensor:
    return good(values, gate.detach(), index, scale)


def ignores_keyword(values: Tensor, gate: Tensor, index: Tensor, scale: float = 1.0) -> Tensor:
    return good(values, gate, index)


def wrong_shape(values: Tensor, gate: Tensor, index: Tensor, scale: float = 1.0) -> Tensor:
    return good(values, gate, index, scale)[None]


def wrong_dtype(values: Tensor, gate: Tensor, index: Tensor, scale: float = 1.0) -> Tensor:
    return good(values, gate, index, scale).double()


def writes_inputs(values: Tensor, gate: Tensor, index: Tensor, scale: float = 1.0) -> Tensor:
    result = good(values, gate, index, scale)
    with torch.no_grad():
        gate.zero_()
    return result


def ignores_strides(values: Tensor, gate: Tensor, index: Tensor, scale: float = 1.0) -> Tensor:
    packed = torch.as_strided(values, values.shape, (values.shape[1], 1))
    return good(packed, gate, index, scale)


def not_a_number(values: Tensor, gate: Tensor, index: Tensor, scale: float = 1.0) -> Tensor:
    return good(values, gate, index, scale) * float("nan")


def willing(*args: Any, **kwargs: Any) -> str | None:
    return None


def contiguous_only(*args: Any, **kwargs: Any) -> str | None:
    return "wants contiguous values" if args and not args[0].is_contiguous() else None


def lacks_package(*args: Any, **kwargs: Any) -> str | None:
    return "the package made-up is not installed: pip install made-up"


def refuses_inputs(*args: Any, **kwargs: Any) -> str | None:
    return "too few rows" if args and len(args[0]) < 100 else None


def reads_maximum(*args: Any, **kwargs: Any) -> str | None:
    return "index too large" if args and int(args[2].max()) > 1000 else None


def reads_truth(*args: Any, **kwargs: Any) -> str | None:
    return "negative" if args and (args[0] < -1e9).any() else None


def reads_list(*args: Any, **kwargs: Any) -> str | None:
    return "index empty" if args and not args[2].tolist() else None


def op_with(run: str, why_not: str = "willing") -> Op:
    backend = OpBackend("gated_sum", "made-up", f"{__name__}:{run}", f"{__name__}:{why_not}")
    return Op(gated_sum, [backend])


def inputs(n: int, **kwargs: Any) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(n)
    values = torch.randn(n, 5, generator=generator)
    gate = torch.randn(n, generator=generator)
    index = torch.randint(0, n, (2 * n + 1,), generator=generator)
    return values, gate, index, kwargs


SIZES = [functools.partial(inputs, n) for n in (1, 2, 63)]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backends are named as text, so this module must be importable by its name."""
    import sys

    module = type(sys)(__name__)
    module.__dict__.update(globals())
    monkeypatch.setitem(sys.modules, __name__, module)


@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_a_good_backend_passes_in_every_precision(dtype: torch.dtype) -> None:
    check_op_backend(op_with("good"), "made-up", *SIZES, dtypes=[dtype])


def test_keyword_arguments_reach_both() -> None:
    make = functools.partial(inputs, 8, scale=3.0)
    check_op_backend(op_with("good"), "made-up", make)
    with pytest.raises(AssertionError, match="output 0 is off by"):
        check_op_backend(op_with("ignores_keyword"), "made-up", make)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("wrong_value", "output 0 is off by .* allowed"),
        ("wrong_gradient", "gradient of float input 1 is off by"),
        ("wrong_for_odd", "output 0 is off by"),
        ("wrong_shape", r"output 0 is \(1, 5\), the reference's \(5,\)"),
        ("wrong_dtype", "output 0 is torch.float64, the reference's is torch.float32"),
        ("writes_inputs", "the backend writes into its inputs"),
        ("ignores_strides", "not contiguous: output 0 is off by"),
        ("not_a_number", "output 0 is off by inf"),
    ],
)
def test_a_wrong_backend_is_caught(run: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_op_backend(op_with(run), "made-up", *SIZES)


def test_a_value_off_by_a_thousandth_is_within_half_precision() -> None:
    check_op_backend(op_with("wrong_value"), "made-up", *SIZES, dtypes=[torch.bfloat16])


def test_gradients_can_be_left_out_for_an_op_without_any() -> None:
    check_op_backend(op_with("wrong_gradient"), "made-up", *SIZES, gradients=False)


def test_a_backend_may_refuse_strided_inputs() -> None:
    op = op_with("ignores_strides", "contiguous_only")
    check_op_backend(op, "made-up", *SIZES)


@pytest.mark.parametrize("why_not", ["reads_maximum", "reads_truth", "reads_list"])
def test_a_why_not_that_reads_values_is_caught(why_not: str) -> None:
    with pytest.raises(AssertionError, match="why_not reads values"):
        check_op_backend(op_with("good", why_not), "made-up", *SIZES)


def test_a_missing_package_skips_with_the_reason() -> None:
    with pytest.raises(pytest.skip.Exception, match="made-up is not installed"):
        check_op_backend(op_with("good", "lacks_package"), "made-up", *SIZES)


def test_refused_inputs_fail_instead_of_being_skipped() -> None:
    with pytest.raises(AssertionError, match="refused: too few rows; leave such inputs out"):
        check_op_backend(op_with("good", "refuses_inputs"), "made-up", *SIZES)


def test_a_check_without_inputs_fails() -> None:
    with pytest.raises(AssertionError, match="needs functions that make inputs"):
        check_op_backend(op_with("good"), "made-up")


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(NotFoundError, match=r"gated_sum has no backend 'tritn'\. Known: made-up"):
        check_op_backend(op_with("good"), "tritn", *SIZES)
