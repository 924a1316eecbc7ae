"""The selective scan on a GPU: each backend's time and memory, a Mamba block's step on each.

Times are of forward and backward to every input, the device's work included, taken in turn. Memory
is what they take over inputs, for comparison with the states of all steps.
"""

import functools
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks._measure import interleaved
from wsizoo.errors import BackendError
from wsizoo.mamba import MambaBlock
from wsizoo.ops import selective_scan, use_backend

STATES = 16
BACKENDS = ("chunked", "triton", "mamba-ssm")  # the reference takes a launch a step
# sequences, steps of each, channels: the two ends of Pixel-Mamba, a region batch, one long walk
SIZES = ((180, 3_137, 24), (180, 197, 768), (1, 65_536, 384), (1, 1_000_000, 12))
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
BLOCK = (20_000, 192)  # tokens, width
ROUNDS = 7
Step = Callable[[], object]


def run() -> None:
    if not torch.cuda.is_available():
        print("  left out: no CUDA device is here")
        return
    print(f"  {torch.cuda.get_device_name()}, torch {torch.__version__}")
    compare("cuda", SIZES, BLOCK)


def compare(device: str, sizes: tuple[tuple[int, int, int], ...], block: tuple[int, int]) -> None:
    for name, dtype in DTYPES.items():
        for count, steps, channels in sizes:
            args, slope = _inputs(device, dtype, count * steps, channels)
            offsets = torch.arange(count + 1, device=device) * steps
            what = f"{count} x {steps:,} steps, D = {channels}, {name}"
            naive = count * steps * channels * STATES * 4 / 1e6
            step = functools.partial(_both, args, offsets, slope)
            _by_backend(device, f"{what} ({naive:.0f} MB of states)", step)
        tokens, width = block
        layer = MambaBlock(width).to(device)
        x = torch.randn(tokens, width, device=device, requires_grad=True)
        step = functools.partial(_layer, device, layer, x, dtype)
        _by_backend(device, f"MambaBlock({width}), {tokens:,} tokens, {name}", step)


def _inputs(
    device: str, dtype: torch.dtype, steps: int, channels: int
) -> tuple[list[Tensor], Tensor]:
    """u, delta, A, B, C, D, z and delta's bias, to be differentiated; y's cotangent."""
    draw = functools.partial(torch.randn, device=device, dtype=dtype)
    u, delta, z, slope = (draw(steps, channels) for _ in range(4))
    a = -torch.arange(1.0, STATES + 1, device=device).repeat(channels, 1)
    d, bias = torch.ones(channels, device=device), torch.rand(channels, device=device) - 4
    args = [u, delta, a, draw(steps, STATES), draw(steps, STATES), d, z, bias]
    return [x.requires_grad_() for x in args], slope


def _both(args: list[Tensor], offsets: Tensor, slope: Tensor) -> None:
    torch.autograd.grad(selective_scan(*args, True, offsets)[0], args, slope)


def _layer(device: str, layer: MambaBlock, x: Tensor, dtype: torch.dtype) -> None:
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        total = layer(x).float().sum()
    torch.autograd.grad(total, x)


def _by_backend(device: str, what: str, step: Step) -> None:
    """Print time and memory of a step on each backend that runs it, timed in turn."""
    runs: dict[str, Step] = {}
    for backend in BACKENDS:
        on = functools.partial(_on, device, backend, step)
        try:
            on()
        except BackendError as error:
            print(f"  {what}: {error}")
        else:
            runs[backend] = on
    for backend, seconds in zip(runs, interleaved(*runs.values(), rounds=ROUNDS), strict=True):
        memory = _memory(device, runs[backend])
        print(f"  {what}: {backend} {statistics.median(seconds) * 1e3:.2f} ms, {memory:.0f} MB")


def _on(device: str, backend: str, step: Step) -> None:
    with use_backend(backend):
        step()
    if device == "cuda":
        torch.cuda.synchronize()


def _memory(device: str, step: Step) -> float:
    """MB of the device over what lies there before."""
    if device != "cuda":
        return float("nan")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 1e6
