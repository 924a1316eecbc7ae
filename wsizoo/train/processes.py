"""The processes of a training: one, or those that torchrun started, on Lightning Fabric.

Gradients are summed here and not by DistributedDataParallel: a process may have no slide left in
the last step of an epoch, and a method may leave parameters out of a step.
"""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wsizoo.errors import NotFoundError, SpecError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def start_processes(device: str, precision: str, key: str = "train.device") -> Fabric:
    """This process joined with its like, and where and how exactly it computes.

    Args:
        device: as `TrainSettings.device`; with several processes each has the GPU of its rank.
        key: under which the user stated it.

    Raises:
        NotFoundError: Lightning Fabric is not installed, or there is no such device.
        SpecError: a device that has no meaning, 16-mixed without a GPU.
    """
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise NotFoundError(
            "Training needs Lightning Fabric, which is not installed: pip install 'wsizoo[train]'"
        ) from error
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise SpecError(f"{key} is '{device}', expected auto, cpu, mps, cuda or cuda:0")
    kind, _, number = found_device(device).partition(":")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise NotFoundError(f"There is no device '{device}' here; {key}=cpu is always there")
    if precision == "16-mixed" and kind == "cpu":
        raise SpecError(
            "train.precision=16-mixed needs a GPU; a CPU has train.precision=bf16-mixed"
        )
    world = int(os.environ.get("WORLD_SIZE", "1"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    fabric = Fabric(
        accelerator=kind,
        devices=[int(number)] if number and world == 1 else here,
        num_nodes=world // here,
        strategy="ddp" if world > 1 else "auto",
        precision=precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    if world > 1:
        atexit.register(_leave)
    return fabric


def _leave() -> None:
    """End this process's part in the group: threads of gloo that outlive Python abort it."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def found_device(device: str) -> str:
    """The device that is meant: of "auto" the GPU, where there is one."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def alike_everywhere(fabric: Fabric, module: nn.Module, buffers_only: bool = False) -> None:
    """Every process gets the tensors of the first."""
    if fabric.world_size > 1:
        tensors = [] if buffers_only else list(module.parameters())
        for tensor in [*tensors, *module.buffers()]:
            torch.distributed.broadcast(tensor.detach(), 0)


def sum_gradients(fabric: Fabric, parameters: Iterable[nn.Parameter]) -> None:
    """Gradients become their sum over all processes; one that none has stays None."""
    if fabric.world_size == 1:
        return
    every = list(parameters)
    has = torch.tensor([float(p.grad is not None) for p in every], device=fabric.device)
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in every]
    flat = torch.cat([has, *(part.flatten() for part in parts)])
    torch.distributed.all_reduce(flat)
    counts = flat[: len(every)].tolist()
    pieces = torch.split(flat[len(every) :], [p.numel() for p in every])
    for p, any_has, summed in zip(every, counts, pieces, strict=True):
        p.grad = summed.view_as(p).to(p.dtype) if any_has else None


def sums(fabric: Fabric, values: Sequence[float]) -> list[float]:
    """Each number summed over all processes."""
    if fabric.world_size == 1:
        return list(values)
    summed = torch.tensor(values, dtype=torch.float64, device=fabric.device)
    torch.distributed.all_reduce(summed)
    return [float(value) for value in summed]


def gathered(fabric: Fabric, value: Any) -> list[Any]:
    """What each process has, by rank; plain data."""
    if fabric.world_size == 1:
        return [value]
    found: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(found, value)
    return found


def any_true(fabric: Fabric, value: bool) -> bool:
    """Whether it is true in any process."""
    return sums(fabric, [float(value)])[0] > 0
