"""Pixel-Mamba: a 3000 x 3000 px tissue, time and memory; what Region Fusion saves; the plan.

Each run is a process of its own. Memory is the most that it holds beyond what it held when the
network was built, by the system (VmHWM), against the planner's estimate of the same.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from wsizoo_plugin_pixelmamba.counting import multiply_adds, parameters, tokens_of
from wsizoo_plugin_pixelmamba.memory import BYTES, peak_bytes, process_bytes
from wsizoo_plugin_pixelmamba.network import Network
from wsizoo_plugin_pixelmamba.settings import Settings

from benchmarks._measure import load_now
from wsizoo.ops import selective_scan

REGIONS = 180  # of 224 x 224 px: 3000 x 3000 px of tissue
EDGE = 224
GOALS = {False: 8.0, True: 16.0}  # GB, forward and with backward
ALPHAS = (0.0, 0.4, 0.8)
FUSED = (
    60  # regions of the slide on which fusion is measured: at 24, both alphas fuse one pair a layer
)


def run() -> None:
    willing = [b.name for b in selective_scan.backends() if selective_scan.why_not(b) is None]
    print(f"  {load_now()}; scans by {(willing or ['reference'])[0]}")
    for size in ("6m", "21m"):
        settings = Settings(size=size)
        counted = multiply_adds(settings)
        print(
            f"  {size}: {parameters(settings):,} parameters without a head; one image of 224 x 224 "
            f"{counted.published / 1e9:.2f} G multiply-adds by the paper's rule, "
            f"{counted.complete / 1e9:.2f} G in all"
        )
    for training, goal in GOALS.items():
        whole_slide(REGIONS, training, goal)
    for alpha in ALPHAS:
        fusion(FUSED, alpha)


def whole_slide(regions: int, training: bool, goal: float) -> None:
    """Time and memory of one slide."""
    seconds, _, held = _fresh(regions, training, 0.8)
    slide = Settings(), regions, (EDGE, EDGE), training
    tensors, planned = peak_bytes(*slide), process_bytes(*slide)
    planned -= 2 * BYTES * parameters(Settings()) if training else 0  # AdamW's, which is not here
    what = "forward + backward" if training else "forward"
    print(
        f"  6m, {regions} regions, {what}: {seconds / 60:.1f} min, {held / 1e9:.2f} GB held (goal "
        f"{goal:g}), {planned / 1e9:.2f} GB planned ({held / planned - 1:+.0%}), of which "
        f"{tensors / 1e9:.2f} GB for tensors"
    )


def fusion(regions: int, alpha: float) -> None:
    """Tokens and seconds of the layers for one alpha."""
    seconds, layers, _ = _fresh(regions, False, alpha)
    tokens = tokens_of(Settings(alpha=alpha), regions, (EDGE, EDGE))
    told = ", ".join(f"{i + 1}: {tokens[i]:,} in {layers[i]:.2f} s" for i in (0, 1, 3, 7, 13, 23))
    print(
        f"  alpha {alpha:g}, {regions} regions: {sum(tokens):,} tokens in all, forward "
        f"{seconds:.1f} s; tokens and time of layers {told}"
    )


def _fresh(regions: int, training: bool, alpha: float) -> tuple[float, list[float], float]:
    """Seconds, seconds of each layer, and bytes, in a new process."""
    given = [str(regions), str(EDGE), str(int(training)), str(alpha)]
    command = [sys.executable, "-m", "benchmarks.pixelmamba", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    told = json.loads(done.stdout.splitlines()[-1])
    return told["seconds"], told["layers"], told["bytes"]


def _one(regions: int, edge: int, training: bool, alpha: float) -> None:
    """Run one slide and print what it took."""
    torch.manual_seed(0)
    network = Network(Settings(alpha=alpha))
    before = _resident("VmRSS")
    network(torch.randn(1, 1, 3, 32, 32)).slide.sum().backward()  # compiles, and makes gradients
    pixels = torch.randint(0, 256, (1, regions, 3, edge, edge), dtype=torch.uint8)
    start, marks = time.perf_counter(), []
    for layer in network.layers:
        layer.mix = _timed(layer.mix, marks)
    with torch.set_grad_enabled(training):
        slide = network(pixels.float() / 128 - 1).slide
        end = time.perf_counter()
        if training:
            slide.sum().backward()
    took = time.perf_counter() - start
    layers = [b - a for a, b in zip(marks, [*marks[1:], end], strict=True)]
    print(json.dumps({"seconds": took, "layers": layers, "bytes": _resident("VmHWM") - before}))


def _timed(function: Callable[..., Tensor], marks: list[float]) -> Callable[..., Tensor]:
    def timed(*args: Tensor) -> Tensor:
        marks.append(time.perf_counter())
        return function(*args)

    return timed


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


if __name__ == "__main__":
    _one(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1", float(sys.argv[4]))
