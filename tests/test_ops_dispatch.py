import sys
import threading
import types
from typing import Any

import pytest
import torch
from torch import Tensor

import wsizoo
from wsizoo.errors import BackendError, PluginError
from wsizoo.hookspecs import OpBackend
from wsizoo.ops import Op, _dispatch, listening, ops, segment_sum, use_backend

ME = "test_ops_backends"


def double(x: Tensor) -> Tensor:
    """Twice the input."""
    return x * 2


def named(name: str, why_not: str = "willing", priority: int = 0, op: str = "double") -> OpBackend:
    return OpBackend(op, name, f"{ME}:{name}", f"{ME}:{why_not}", priority)


@pytest.fixture(autouse=True)
def backends(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A module of backends that record their calls, and a process without a wish of its own."""
    ran: list[str] = []
    module = types.ModuleType(ME)

    def add(name: str) -> None:
        def run(x: Tensor) -> Tensor:
            ran.append(name)
            return x * 2

        setattr(module, name, run)

    for name in ("slow", "fast", "picky"):
        add(name)
    module.willing = lambda *args: None  # type: ignore[attr-defined]
    module.never = lambda *args: "no GPU here"  # type: ignore[attr-defined]
    module.short_only = lambda *args: (  # type: ignore[attr-defined]
        "longer than 3" if args and len(args[0]) > 3 else None
    )
    monkeypatch.setitem(sys.modules, ME, module)
    monkeypatch.delenv("WSIZOO_BACKEND", raising=False)
    monkeypatch.setattr(_dispatch, "_ops", dict(_dispatch._ops))
    return ran


def op(*found: OpBackend) -> Op:
    """The op `double` with these backends, known to the process."""
    made = Op(double, list(found))
    _dispatch._ops["double"] = made
    return made


X = torch.ones(3)


def test_without_backends_the_reference_runs(backends: list[str]) -> None:
    assert torch.equal(op()(X), X * 2)
    assert backends == []


def test_auto_takes_the_willing_backend_of_highest_priority(backends: list[str]) -> None:
    made = op(named("slow"), named("fast", "never", 9), named("picky", "short_only", 5))
    assert [b.name for b in made.backends()] == ["fast", "picky", "slow"]
    made(X)
    made(torch.ones(4))
    assert backends == ["picky", "slow"]


def test_auto_falls_back_to_the_reference(backends: list[str]) -> None:
    assert torch.equal(op(named("fast", "never"))(X), X * 2)
    assert backends == []


def test_the_nearest_wish_wins(backends: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made = op(named("fast", priority=3), named("slow"), named("picky"))
    made(X)
    monkeypatch.setenv("WSIZOO_BACKEND", "slow")
    made(X)
    with use_backend("picky"):
        made(X)
        made.on("fast")(X)
        with use_backend("auto"):
            made(X)
        with use_backend("reference"):
            made(X)
        made(X)
    made(X)
    assert backends == ["fast", "slow", "picky", "fast", "fast", "picky", "slow"]


def test_a_wish_ends_with_its_block_even_when_it_raises(backends: list[str]) -> None:
    made = op(named("fast"), named("slow", priority=1))
    with pytest.raises(ZeroDivisionError), use_backend("fast"):
        raise ZeroDivisionError
    made(X)
    assert backends == ["slow"]


@pytest.mark.parametrize("wish", ["reference", "auto", ""])
def test_reference_and_auto_are_wishes_of_every_op(
    wish: str, backends: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = op(named("fast"))
    monkeypatch.setenv("WSIZOO_BACKEND", wish)
    made(X)
    assert backends == ([] if wish == "reference" else ["fast"])
    made.on("reference")(X)
    made.on("auto")(X)
    assert backends.count("fast") == (1 if wish == "reference" else 2)


def test_an_op_without_the_wished_backend_chooses_freely(backends: list[str]) -> None:
    op(named("slow"))
    other = Op(double, [named("fast")])
    with use_backend("slow"):
        other(X)
    assert backends == ["fast"]


def test_a_wished_backend_that_refuses_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    made = op(named("picky", "short_only"))
    message = (
        r"double cannot run on 'picky': longer than 3\. Leave the choice .*=auto\), or see: ws"
    )
    with pytest.raises(BackendError, match=message):
        made.on("picky")(torch.ones(4))
    with pytest.raises(BackendError, match=message), use_backend("picky"):
        made(torch.ones(4))
    monkeypatch.setenv("WSIZOO_BACKEND", "picky")
    with pytest.raises(BackendError, match=message):
        made(torch.ones(4))


def test_a_backend_that_this_op_does_not_have_is_named() -> None:
    with pytest.raises(
        BackendError, match=r"double has no backend 'fasst'\. Did you mean 'fast'\?"
    ):
        op(named("fast")).on("fasst")(X)
    with pytest.raises(BackendError, match=r"Known: auto, fast, reference\."):
        op(named("fast")).on("zzzz")(X)


def test_a_backend_that_no_op_has_is_an_error_at_once() -> None:
    op(named("triton"))
    with (
        pytest.raises(
            BackendError, match=r"^No op has a backend 'tritton'\. Did you mean 'triton'\?"
        ),
        use_backend("tritton"),
    ):
        raise AssertionError("the block must not run")


def test_a_variable_that_names_no_backend_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    made = op(named("fast"))
    monkeypatch.setenv("WSIZOO_BACKEND", "quick")
    with pytest.raises(
        BackendError, match=r"WSIZOO_BACKEND=quick: No op has a backend 'quick'\. Known: auto"
    ):
        made(X)
    with pytest.raises(BackendError, match="WSIZOO_BACKEND=quick"):
        segment_sum(X, torch.tensor([0, 3]))


def test_why_not_is_asked_with_and_without_arguments() -> None:
    picky, never = named("picky", "short_only"), named("fast", "never")
    made = op(picky, never)
    assert made.why_not(picky) is None
    assert made.why_not(picky, torch.ones(4)) == "longer than 3"
    assert made.why_not(never) == "no GPU here"


def test_a_backend_that_is_not_there_names_itself() -> None:
    gone = OpBackend("double", "gone", f"{ME}:gone", f"{ME}:willing")
    with pytest.raises(PluginError, match=r"backend 'gone' of double: .* holds no 'gone'"):
        op(gone)(X)


def test_backends_of_other_ops_are_left_alone() -> None:
    assert op(named("fast", op="triple")).backends() == []


def test_an_op_looks_like_its_reference() -> None:
    made = op()
    assert (made.name, vars(made)["__name__"], made.__doc__) == (
        "double",
        "double",
        "Twice the input.",
    )
    assert made.reference is double


def test_the_core_s_ops_are_listed() -> None:
    names = [
        *("attention", "causal_conv1d", "grid_attention", "hard_topk"),
        *("patch_merge", "pixel_shuffle", "pixel_shuffle_linear"),
        *("segment_max", "segment_mean", "segment_pool", "segment_softmax", "segment_sum"),
        *("selective_scan", "soft_topk", "sparse_conv2d", "sparse_conv_transpose2d"),
    ]
    assert sorted(ops()) == names
    assert wsizoo.use_backend is use_backend
    ops().clear()
    assert sorted(ops()) == names


def test_under_compile_the_reference_is_traced(backends: list[str]) -> None:
    made = op(named("fast"))
    graphs: list[Any] = []

    def capture(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(
        lambda x: made(x) + made.on("fast")(x), backend=capture, fullgraph=True
    )
    assert torch.equal(compiled(X), X * 4)
    assert backends == [] and len(graphs) == 1


@pytest.mark.parametrize("name", ["segment_max", "segment_mean", "segment_softmax", "segment_sum"])
def test_each_op_of_the_core_compiles_in_one_piece(name: str) -> None:
    run, offsets, values = ops()[name], torch.tensor([0, 2, 2, 5]), torch.randn(5, 3)
    compiled = torch.compile(lambda v: run(v, offsets), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(values), run(values, offsets))


def scaled(x: Tensor, by: float = 2.0) -> Tensor:
    """A multiple of the input."""
    return x * by


def test_a_listener_hears_the_arguments_of_every_call_by_name(backends: list[str]) -> None:
    made, other = Op(scaled, []), op(named("fast"))
    with listening(made) as calls, listening(other) as others:
        assert torch.equal(made(X, 3.0), X * 3)
        made(by=5.0, x=X)
        made.on("reference")(X)
        with use_backend("reference"):
            made(X, 7.0)
        other(X)
    made(X)
    assert [call["by"] for call in calls] == [3.0, 5.0, 2.0, 7.0]
    assert all(call["x"] is X for call in calls)
    assert len(others) == 1 and backends == ["fast"]


def test_each_of_several_listeners_hears_what_happens_within_its_block() -> None:
    made = Op(scaled, [])
    with listening(made) as outer:
        made(X)
        with listening(made) as inner:
            made(X)
        with pytest.raises(ZeroDivisionError), listening(made):
            raise ZeroDivisionError
        made(X)
    assert (len(outer), len(inner)) == (3, 1)


def test_another_thread_is_not_heard() -> None:
    made = Op(scaled, [])
    with listening(made) as calls:
        thread = threading.Thread(target=made, args=(X,))
        thread.start()
        thread.join()
    assert calls == []


def test_what_is_compiled_in_one_piece_is_not_heard() -> None:
    made = Op(scaled, [])
    compiled = torch.compile(lambda x: made(x, 2.0), backend="eager", fullgraph=True)
    with listening(made) as calls:
        assert torch.equal(compiled(X), X * 2)
    assert calls == []
