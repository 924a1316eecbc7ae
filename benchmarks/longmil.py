"""LongMIL: its local and its global layer against torch's attention over all pairs; memory.

A step is forward and backward of one layer's attention, dim 384, one head. Patches cover half of a
square, in smooth blobs or scattered. A patch's own pairs are those within the radius: 2 products of
the forward pass and 5 of the backward pass, which makes the scores again.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import wsizoo
from benchmarks._measure import interleaved, load_now, report_speed
from benchmarks.span import DENSITY, slide
from wsizoo.ops import Disk, Everywhere, Neighbourhood, OffsetBias, chunks, grid_attention, product

DIM, RADIUS, PRODUCTS = 384, 10, 7
LOCAL = {1_000: None, 2_000: None, 5_000: None, 10_000: 12.0, 20_000: 24.0}  # patches: goal
INDEX_GOAL = 0.05  # of a step
GLOBAL = (2_500, 5_000)  # pooled patches
MEMORY = (1_000, 5_000, 20_000, 80_000)
WHOLE, WHOLE_GOAL = 50_000, 6.0  # patches of a slide at 40x; GB
EDGE = 2_048  # of the product that gives the peak
SLOPE = 2.0**-8  # of ALiBi with one head


def run() -> None:
    torch.set_num_threads(2)
    peak = _peak()
    print(f"  {load_now()}; float32 products: {peak / 1e9:.0f} G multiply-adds a second")
    for n, goal in LOCAL.items():
        _local(n, goal, peak)
    for n in GLOBAL:
        _global(n)
    for n in MEMORY:
        gain = _fresh("layer", n)
        print(f"  a local layer's step at {n}: {gain / n:.0f} bytes a patch over inputs, gradients")
    model = _fresh("model", WHOLE) / 1e9
    print(f"  longmil-uni, a training step at {WHOLE}: {model:.2f} GB in all, goal {WHOLE_GOAL:g}")


def blobs(n: int) -> Tensor:
    """(n, 2) cells of smooth blobs."""
    coords = slide(n).coords
    assert coords is not None
    return coords // 256


def scattered(n: int) -> Tensor:
    """(n, 2) cells of a square, each there with the same chance."""
    edge = round((n / DENSITY) ** 0.5)
    at = torch.randperm(edge * edge, generator=torch.Generator().manual_seed(0))[:n].sort().values
    return torch.stack([at // edge, at % edge], 1)


def step_of(near: Neighbourhood, bias: OffsetBias | None = None) -> Callable[[], None]:
    """Forward and backward of a layer's attention."""
    *leaves, cotangent = _inputs(len(near))

    def step() -> None:
        grid_attention(*leaves, near, bias).backward(cotangent)

    return step


def _inputs(n: int) -> list[Tensor]:
    """q, k, v, and a gradient of the output, (n, 1, DIM)."""
    generator = torch.Generator().manual_seed(n)
    inputs = [torch.randn(n, 1, DIM, generator=generator) for _ in range(4)]
    for leaf in inputs[:3]:
        leaf.requires_grad_().grad = torch.zeros_like(leaf)
    return inputs


def _all_pairs(n: int, bias: Callable[[], Tensor] | None = None) -> Callable[[], None]:
    """The same by torch's scaled_dot_product_attention."""
    inputs = [x.detach().view(1, 1, n, DIM) for x in _inputs(n)]
    leaves = [x.requires_grad_() for x in inputs[:3]]

    def step() -> None:
        mask = None if bias is None else bias()
        F.scaled_dot_product_attention(*leaves, attn_mask=mask).backward(inputs[3])

    return step


def _local(n: int, goal: float | None, peak: float) -> None:
    other, rounds = _all_pairs(n), 3 if n > 5_000 else 7
    for kind, cells in (("in blobs", blobs(n)), ("scattered", scattered(n))):
        near = Disk(cells, RADIUS)
        assert near.strips
        mine, plain = interleaved(step_of(near), other, rounds=rounds)
        what = f"local layer, {n} patches {kind}"
        report_speed(what, mine, plain, "scaled_dot_product_attention over all pairs", goal)
        building = statistics.median(_building(cells) for _ in range(9))
        step, pairs = statistics.median(mine), _pairs(cells)
        rate = PRODUCTS * pairs * DIM / step
        print(
            f"    index {building * 1e3:.1f} ms, {building / step:.1%} of the step, goal "
            f"{INDEX_GOAL:.0%}; {pairs / n:.0f} pairs a patch, {rate / peak:.0%} of the peak rate"
        )


def _building(cells: Tensor) -> float:
    start = time.perf_counter()
    assert Disk(cells, RADIUS).strips
    return time.perf_counter() - start


def _pairs(cells: Tensor) -> int:
    """Pairs within the radius."""
    apart = ((part[:, None] - cells).square().sum(-1) for part in cells.split(500))
    return sum(int((distance <= RADIUS**2).sum()) for distance in apart)


def _global(n: int) -> None:
    """All pairs with ALiBi, which torch takes as a dense table."""
    cells = blobs(n)
    dense = cells[None] - cells[:, None]
    other = _all_pairs(n, lambda: _alibi(dense)[None])
    near = Everywhere(cells, torch.tensor([0, n]))
    mine, plain = interleaved(step_of(near, _alibi), other, rounds=3)
    report_speed(f"global layer with ALiBi, {n} tokens", mine, plain, "torch with a dense bias")


def _alibi(offset: Tensor) -> Tensor:
    """(..., 2) -> (1, ...)."""
    return -SLOPE * offset.float().square().sum(-1).sqrt()[None]


def _peak() -> float:
    """Multiply-adds a second of large float32 products, by the faster of torch's libraries."""
    left, right = torch.randn(EDGE, EDGE), torch.randn(EDGE, EDGE)

    def by_chunks() -> None:
        for _, rows in chunks(0, EDGE):
            product(left[rows], right)

    times = interleaved(by_chunks, lambda: torch.mm(left, right), rounds=9)
    return EDGE**3 / min(map(min, times))


def _fresh(what: str, n: int) -> float:
    """What a fresh process says of itself."""
    command = [sys.executable, "-m", "benchmarks.longmil", what, str(n)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _gain(n: int) -> float:
    """Bytes that the first step at n adds to inputs and gradients, after a small one."""
    step_of(Disk(scattered(2_000), RADIUS))()
    step = step_of(Disk(scattered(n), RADIUS))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _peak_bytes()
    step()
    return _peak_bytes() - before


def _whole(n: int) -> float:
    """Bytes of this process after a training step, optimizer included."""
    model = wsizoo.build("longmil-uni", "head.classes=[a,b]", seed=0).train()
    optimizer = torch.optim.AdamW(model.parameters())
    bag = slide(n)
    torch.stack(list(model.losses(model(bag), bag).values())).sum().backward()
    optimizer.step()
    return _peak_bytes()


def _peak_bytes() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


if __name__ == "__main__":
    torch.set_num_threads(2)
    print({"layer": _gain, "model": _whole}[sys.argv[1]](int(sys.argv[2])))
