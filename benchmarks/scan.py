"""The selective scan on a CPU: each backend against the reference, its memory, the first call.

The reference costs the same for every step and keeps all states for backward, so it runs over the
first steps of a sequence, and its seconds are taken times the length (at full length it is slower
still: every page of its states is a new one). Seconds are the processor's,
all threads together, which a busy machine changes less: with free cores, two threads are up to
twice as fast as that. Memory is that of forward and backward in a fresh process, over inputs,
outputs and gradients.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks._measure import interleaved, load_now, report_speed
from wsizoo.mamba import MambaBlock
from wsizoo.ops import selective_scan, use_backend

STATES = 16
SIZES = {(65_536, 384): 16.0, (262_144, 24): 170.0, (1_000_000, 12): None}  # L, D: goal
REFERENCE_STEPS = 4_096
MEMORY_GOAL = 0.1  # of the states (L, D, N)
BLOCK = (20_000, 192)  # tokens, width
THREADS = {
    "numba": 2
}  # others: 1; their calls are so short that a busy machine's threads only wait


def run() -> None:
    print(f"  {load_now()}")
    print(f"  threads: {THREADS}, others 1")
    for name in backends():
        for (steps, channels), goal in SIZES.items():
            _compare(name, steps, channels, goal if name == "numba" else None)
            _memory(name, steps, channels)
    _first_calls()
    _block()


def backends() -> list[str]:
    """Those that can run here."""
    return [b.name for b in selective_scan.backends() if selective_scan.why_not(b) is None]


def inputs(steps: int, channels: int) -> list[Tensor]:
    """u, delta, A, B, C, D, z and delta's bias, to be differentiated, and y's cotangent."""
    torch.manual_seed(0)
    a = -torch.arange(1.0, STATES + 1).repeat(channels, 1)
    rows = [torch.randn(steps, width) for width in (channels, channels, STATES, STATES, channels)]
    u, delta, b, c, z = rows
    given = [u, delta, a, b, c, torch.ones(channels), z, torch.rand(channels) - 4]
    return [*(x.requires_grad_() for x in given), torch.randn(steps, channels)]


def passes(name: str, args: list[Tensor]) -> tuple[Callable[[], None], Callable[[], None]]:
    """The forward pass alone, and with the backward pass to every input."""
    scan, given, threads = selective_scan.on(name), args[:8], THREADS.get(name, 1)

    @torch.no_grad()
    def forward() -> None:
        torch.set_num_threads(threads)
        scan(*given, True)

    def both() -> None:
        torch.set_num_threads(threads)
        torch.autograd.grad(scan(*given, True)[0], given, args[8])

    return forward, both


def _compare(name: str, steps: int, channels: int, goal: float | None) -> None:
    short = REFERENCE_STEPS
    mine = passes(name, inputs(steps, channels))
    reference = passes("reference", inputs(short, channels))
    for what, ours, theirs, least in zip(
        ("forward", "forward + backward"), mine, reference, (None, goal), strict=True
    ):
        seconds, few = interleaved(ours, theirs, rounds=3, clock=time.process_time)
        many = [second * steps / short for second in few]
        title = f"{name}, D = {channels}, L = {steps:,}, {what}"
        report_speed(title, seconds, many, f"the reference ({short:,} steps, scaled)", least)


def _memory(name: str, steps: int, channels: int) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.scan", "memory", name, str(steps), str(channels)],
        check=True,
        capture_output=True,
        text=True,
    )
    more, naive = float(found.stdout), steps * channels * STATES * 4 / 1e6
    goal = f", goal {MEMORY_GOAL:.0%}" if name == "numba" else ""
    print(f"    memory {more:.0f} MB, {more / naive:.1%} of the {naive:.0f} MB of all states{goal}")


def _gain(name: str, steps: int, channels: int) -> float:
    """MB at the peak of forward and backward over inputs, outputs and gradients."""
    passes(name, inputs(600, channels))[1]()
    args = inputs(steps, channels)
    results = 2 * args[8].nbytes + sum(x.nbytes for x in args[1:8])  # y, and a gradient an input
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmHWM")
    passes(name, args)[1]()
    return _status("VmHWM") - before - results / 1e6


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024 / 1e6


def _first_calls() -> None:
    """Seconds of the first forward and backward of a process, without numba's cache and with it."""
    if "numba" not in backends():
        return
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "benchmarks.scan", "first"]
        environment = os.environ | {"NUMBA_CACHE_DIR": cache}
        told = [
            subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            for _ in range(2)
        ]
    without, again = (found.stdout.strip() for found in told)
    print(f"  first call of numba's kernels: {without}; of the next process: {again}")


def _first() -> str:
    _, both = passes("numba", inputs(16, 1))
    wall, cpu = time.perf_counter(), time.process_time()
    both()
    return f"{time.perf_counter() - wall:.1f} s ({time.process_time() - cpu:.1f} s of processor)"


def _block() -> None:
    """A Mamba block's step, for what a scan is of it."""
    tokens, width = BLOCK
    torch.manual_seed(0)
    block, x = MambaBlock(width), torch.randn(tokens, width, requires_grad=True)

    def step_on(name: str) -> Callable[[], None]:
        def step() -> None:
            torch.set_num_threads(THREADS.get(name, 1))
            with use_backend(name):
                block(x).sum().backward()

        return step

    names = backends()
    found = interleaved(*map(step_on, names), rounds=3, clock=time.process_time)
    for name, seconds in zip(names, found, strict=True):
        median = sorted(seconds)[1]
        print(f"  MambaBlock({width}), {tokens:,} tokens, step on {name}: {median:.2f} s")


if __name__ == "__main__":
    if sys.argv[1] == "first":
        print(_first())
    else:
        print(_gain(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
