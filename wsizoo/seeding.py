"""Initial weights: seeded, or left out where trained ones take their place."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class Published(Protocol):
    """A module that says what of it is published."""

    def parameters(self) -> Iterator[nn.Parameter]: ...
    def buffers(self) -> Iterator[Tensor]: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def inference_state(self) -> dict[str, Tensor]: ...


Model = TypeVar("Model", bound=Published)

READ = "wsizoo_read_from_file"
_here = threading.local()
FILLS = frozenset(
    getattr(where, name)
    for where, names in {
        torch.Tensor: "uniform_ normal_ log_normal_ bernoulli_ exponential_ cauchy_ geometric_ "
        "random_ erfinv_",
        nn.init: "uniform_ normal_ trunc_normal_ xavier_uniform_ xavier_normal_ kaiming_uniform_ "
        "kaiming_normal_",
    }.items()
    for name in names.split()
)
_one_at_a_time = threading.RLock()  # the generator is the process's, not the thread's


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of the CPU follow this seed inside, one thread at a time; nothing outside."""
    with _one_at_a_time, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs
        yield


def made_blank(make: Callable[[], Model], seed: int) -> Model | None:
    """What `make` makes, its parameters not filled; None where that could be noticed.

    It could unless the caller, who overwrites `inference_state()`, overwrites every parameter and
    buffer, and nothing else drew random numbers. Those of a module with an attribute `READ` need
    not be overwritten: whoever made it has read them from a file.

    Cost: filling 1 GB takes seconds, which `load` would throw away.
    """
    with seeded(seed):
        before = torch.random.get_rng_state()
        _here.blank = True
        try:
            with _NoFills() as fills:
                model = make()
        except _MustBeFilledError:
            return None
        finally:
            _here.blank = False
        drew = not torch.equal(before, torch.random.get_rng_state())
    read = [m for m in model.modules() if getattr(m, READ, False)]
    from_file = [t for m in read for t in (*m.parameters(), *m.buffers())]
    filled = _places([*model.inference_state().values(), *from_file])
    own = _places([*model.parameters(), *model.buffers()])
    left_out = _places(fills.left_out) - _places(model.inference_state().values())
    return None if drew or own - filled or left_out else model


def refuse_blank(part: Published) -> None:
    """Let `made_blank` give up now, before something slow is made, if this part is to be filled."""
    own = _places([*part.parameters(), *part.buffers()])
    if getattr(_here, "blank", False) and own - _places(part.inference_state().values()):
        raise _MustBeFilledError


class _MustBeFilledError(Exception):
    """What is being made holds more than is published of it."""


def _places(tensors: Iterable[Tensor]) -> set[tuple[int, int]]:
    return {(t.data_ptr(), t.numel()) for t in tensors}


class _NoFills(TorchFunctionMode):
    """Random fills of parameters, in place, do nothing in this thread."""

    def __init__(self) -> None:
        super().__init__()
        self.left_out: list[Tensor] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in FILLS:
            tensor = args[0] if args else kwargs["tensor"]
            if isinstance(tensor, nn.Parameter):
                if not tensor.is_meta:  # it holds no numbers
                    self.left_out.append(tensor)
                return tensor
        return func(*args, **kwargs)
