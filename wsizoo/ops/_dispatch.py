"""How an op finds the backend that runs it.

The reference is the definition; a backend is data (`hookspecs.OpBackend`) and comes from a plugin.
Precedence: `op.on(name)`, `with use_backend(name)`, the variable `WSIZOO_BACKEND`, auto.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from wsizoo.errors import BackendError
from wsizoo.hookspecs import OpBackend
from wsizoo.names import suggest
from wsizoo.plugins import installed
from wsizoo.targets import load_target

REFERENCE, AUTO = "reference", "auto"  # every op has these
VARIABLE = "WSIZOO_BACKEND"
_chosen: contextvars.ContextVar[str | None] = contextvars.ContextVar("wsizoo_backend", default=None)
_ops: dict[str, Op] = {}
Call = dict[str, Any]
"""the arguments of a call of an op, by name, defaults included"""
_listeners: contextvars.ContextVar[tuple[tuple[Op, list[Call]], ...]] = contextvars.ContextVar(
    "wsizoo_listeners", default=()
)


class Op:
    """One op: call it, or `op.on("name")(...)` to insist on a backend.

    Args:
        reference: plain torch, any device, differentiable; its name is the op's.
        backends: instead of those of the installed plugins (tests).
    """

    def __init__(
        self, reference: Callable[..., Any], backends: list[OpBackend] | None = None
    ) -> None:
        functools.update_wrapper(self, reference)
        self.name = reference.__name__
        self.reference = reference
        self._given = backends

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.reference(*args, **kwargs)
        wish = wished_backend()
        if _chosen.get() is None:
            _check_known(wish, f"{VARIABLE}={wish}: ", self)
        return self._run(wish, False, args, kwargs)

    def on(self, backend: str) -> Callable[..., Any]:
        """This op on one backend; calling it raises BackendError where that cannot run.

        `"reference"` and `"auto"` always work; under torch.compile the reference is traced.
        """
        return lambda *args, **kwargs: self._run(backend, True, args, kwargs)

    def backends(self) -> list[OpBackend]:
        """Backends of this op, best first; the reference is not among them."""
        found = installed().backends() if self._given is None else self._given
        return sorted((b for b in found if b.op == self.name), key=lambda b: -b.priority)

    def why_not(self, backend: OpBackend, *args: Any, **kwargs: Any) -> str | None:
        """Why this backend cannot run these arguments; without arguments: this machine."""
        whose = f"backend '{backend.name}' of {self.name}"
        reason: str | None = load_target(backend.why_not, whose)(*args, **kwargs)
        return reason

    def _run(self, wish: str, insist: bool, args: Any, kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.reference(*args, **kwargs)
        for op, calls in _listeners.get():
            if op is self:
                calls.append(self._named(args, kwargs))
        if wish == REFERENCE:
            return self.reference(*args, **kwargs)
        backends = self.backends()
        named = [backend for backend in backends if backend.name == wish]
        if wish != AUTO and insist and not named:
            known = [REFERENCE, AUTO, *(backend.name for backend in backends)]
            hint = suggest(wish, known, "Known: ")
            raise BackendError(f"{self.name} has no backend '{wish}'. {hint}")
        for backend in named or backends:
            reason = self.why_not(backend, *args, **kwargs)
            if reason is None:
                run = load_target(backend.target, f"backend '{backend.name}' of {self.name}")
                return run(*args, **kwargs)
            if named:
                raise BackendError(
                    f"{self.name} cannot run on '{wish}': {reason}. Leave the choice to wsizoo "
                    f"({VARIABLE}=auto), or see: wsizoo doctor"
                )
        return self.reference(*args, **kwargs)

    def _named(self, args: Any, kwargs: Any) -> Call:
        bound = inspect.signature(self.reference).bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)


def wished_backend() -> str:
    """What `use_backend`, else WSIZOO_BACKEND, asks of ops here; "auto" where neither does.

    For layers that fuse several ops: on "reference" they run the ops one by one.
    """
    return _chosen.get() or os.environ.get(VARIABLE) or AUTO


def under_torch_func() -> bool:
    """Whether torch.func transforms what runs here; it wants autograd functions of another make."""
    return torch._C._are_functorch_transforms_active()


def why_not_under_torch_func(*args: Any, **kwargs: Any) -> str | None:
    """`why_not` of backends that are an autograd function and take all else."""
    return "torch.func runs the reference only" if under_torch_func() else None


def op(reference: Callable[..., Any]) -> Op:
    """Decorator: this function is the reference of an op of the same name."""
    made = Op(reference)
    _ops[made.name] = made
    return made


def ops() -> dict[str, Op]:
    """Every op of the core by name."""
    return dict(_ops)


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block every op that has a backend of this name runs on it; others choose freely.

    `"reference"` and `"auto"` always work.

    Raises:
        BackendError: no op has such a backend.
    """
    _check_known(name)
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


@contextlib.contextmanager
def listening(op: Op) -> Iterator[list[Call]]:
    """Within the block, the arguments of every call of this op, in order, whatever backend runs it.

    In this thread's context only. Layers that fuse several ops call none of them unless they run
    on "reference"; under torch.compile nothing is heard.
    """
    calls: list[Call] = []
    token = _listeners.set((*_listeners.get(), (op, calls)))
    try:
        yield calls
    finally:
        _listeners.reset(token)


def _check_known(name: str, where: str = "", asking: Op | None = None) -> None:
    if name in (REFERENCE, AUTO):
        return
    known = {REFERENCE, AUTO}
    for each in (*_ops.values(), *([asking] if asking else [])):
        known.update(backend.name for backend in each.backends())
    if name not in known:
        hint = suggest(name, known, "Known: ")
        raise BackendError(f"{where}No op has a backend '{name}'. {hint}")
