"""SPAN: a training step against the matrix products of the published model; memory; its grids.

The published model's multiply-adds are done as plain float32 `torch.mm` into memory that is there,
in turn with the step. Whether windows shift depends on the grid (compat="published" leaves the
shift out where a grid is a multiple of the window), so it is printed.
"""

import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from wsizoo_plugin_span import fused
from wsizoo_plugin_span.cells import cells_of
from wsizoo_plugin_span.pyramid import Pyramid, build
from wsizoo_plugin_span.settings import UNetSettings

import wsizoo
from benchmarks._measure import interleaved, load_now, report

DIM, DENSITY = 1024, 0.5
SLIDES = {1_000: 1.0, 4_000: 0.95, 10_000: 0.9, 20_000: 0.95}  # patches: goal
SEGMENTED, SEGMENTATION_GOAL = 4_000, 0.95
MEMORY = (1_000, 4_000, 10_000, 20_000)
MEMORY_GOAL = 330  # MB at 10,000
Product = tuple[int, int, int]  # rows, width in, width out


def run() -> None:
    torch.set_num_threads(2)
    print(f"  {load_now()}")
    for n, goal in SLIDES.items():
        _compare("span-mil-uni", n, goal)
    _compare("span-mil-uni", 10_000, None, "aggregator.compat=null")
    _compare("span-unet-uni", SEGMENTED, SEGMENTATION_GOAL)
    _backends(10_000)
    for n in MEMORY:
        goal = f", goal {MEMORY_GOAL}" if n == 10_000 else ""
        print(f"  memory of a step at {n}: {_fresh(n):.0f} MB over model, input, gradients{goal}")


def model_of(name: str, *overrides: str) -> wsizoo.SlideModel:
    """The named model as published, random weights, in training mode."""
    task = "head.classes=[a,b]"
    return wsizoo.build(name, task, "aggregator.compat=published", *overrides, seed=0).train()


def slide(n: int, seed: int = 0) -> wsizoo.Bag:
    """n patches in smooth blobs that cover half of a square."""
    generator = torch.Generator().manual_seed(seed)
    edge = round((n / DENSITY) ** 0.5)
    noise = torch.randn(1, 1, 8, 8, generator=generator)
    smooth = F.interpolate(noise, size=(edge, edge), mode="bicubic")[0, 0]
    at = smooth.flatten().topk(n).indices.sort().values
    cells = torch.stack([at // edge, at % edge], 1)
    target = {"label": 1, "instances": (at % 3 == 0).long()}
    features = torch.randn(n, DIM, generator=generator)
    return wsizoo.Bag(features, cells * 256, spacing=256.0, target=target)


def step_of(model: wsizoo.SlideModel, bag: wsizoo.Bag, anew: bool = True) -> Callable[[], None]:
    """Forward, loss and backward, as the trainer does them.

    Args:
        anew: the last step's gradients go first; else they are added to.
    """

    def step() -> None:
        if anew:
            model.zero_grad(set_to_none=True)
        torch.stack(list(model.losses(model(bag), bag).values())).sum().backward()

    return step


def _compare(name: str, n: int, goal: float | None, *overrides: str) -> None:
    model, bag = model_of(name, *overrides), slide(n)
    pyramid = pyramid_of(model, bag)
    products = published_products(model, pyramid)
    macs = sum(rows * a * b for rows, a, b in products)
    rounds = 40 if n <= 1_000 else 9
    mine, plain = interleaved(step_of(model, bag), Products(products).run, rounds=rounds, warmup=3)
    shifted = "+" if len(pyramid.levels[0].neighbourhood("union").blocks) > 1 else "-"
    tokens = ", ".join(str(len(level)) for level in pyramid.levels)
    what = f"{name} {' '.join(overrides)}, {n} patches ({tokens}; shift {shifted})"
    report(what, mine, plain, f"{macs / 1e9:.1f} GMAC and their gradients", goal)
    building = statistics.median(_time_grids(model, bag) for _ in range(9))
    share = building / statistics.median(mine)
    print(f"    grids and windows {building * 1e3:.1f} ms, {share:.1%} of the step, goal 1 %")


def pyramid_of(model: wsizoo.SlideModel, bag: wsizoo.Bag) -> Pyramid:
    """The grids that the model builds for a slide, all of their windows included."""
    pyramid = build([cells_of(bag)], model.aggregator.settings.plan)
    for level in pyramid.levels:
        assert level.neighbourhood("union").blocks
    return pyramid


def _time_grids(model: wsizoo.SlideModel, bag: wsizoo.Bag) -> float:
    fresh = bag.replace(features=bag.features)  # a bag keeps its cells
    start = time.perf_counter()
    pyramid_of(model, fresh)
    return time.perf_counter() - start


def published_products(model: wsizoo.SlideModel, pyramid: Pyramid) -> list[Product]:
    """Forward products of the published code, the input projection first.

    A layer: q, k, v, q2, k2, v2, out and two of the feed-forward part, on tokens and global tokens.
    """
    s = model.aggregator.settings
    m, levels = s.n_tokens, [len(level) for level in pyramid.levels]
    products = [(levels[0], s.in_dim, s.width(0))]
    stages = list(enumerate(s.encoder))
    ways = [(i, s.width(i)) for i, count in stages for _ in range(count)]
    if isinstance(s, UNetSettings):
        up = range(s.stages - 2, -1, -1)
        ways += [
            (i, s.width(i)) for i, count in zip(up, s.decoder, strict=True) for _ in range(count)
        ]
        for a, b in itertools.pairwise(range(s.stages)):
            products.append((levels[b], 4 * s.width(a), s.width(b)))
        for (dim, out), i in zip(s.decoder_widths, up, strict=True):
            products.append((levels[i + 1], dim, 4 * out))
    for i, width in ways:
        rows, hidden = levels[i] + m, int(width * s.ff_ratio)
        products += [(rows, width, width)] * 7 + [(rows, width, hidden), (rows, hidden, width)]
    return products


class Products:
    """Matrix products with their two gradients; the first one's input needs none."""

    def __init__(self, products: list[Product]) -> None:
        self.products = products
        self.left = {(rows, a) for rows, a, _ in products} | {(rows, b) for rows, _, b in products}
        self.rows = {shape: torch.randn(shape) for shape in self.left}
        self.out = {shape: torch.empty(shape) for shape in self.left}
        self.weights = {(a, b): torch.randn(b, a) for _, a, b in products}
        self.slopes = {shape: torch.empty_like(weight) for shape, weight in self.weights.items()}

    def run(self) -> None:
        for rows, a, b in self.products:
            torch.mm(self.rows[rows, a], self.weights[a, b].t(), out=self.out[rows, b])
        for i, (rows, a, b) in enumerate(self.products):
            given = self.rows[rows, b]
            torch.mm(given.t(), self.rows[rows, a], out=self.slopes[a, b])
            if i:
                torch.mm(given, self.weights[a, b], out=self.out[rows, a])


def _backends(n: int) -> None:
    """The step on the fused path against the core's ops one by one."""
    model, bag = model_of("span-mil-uni"), slide(n)
    step = step_of(model, bag)

    def one_by_one() -> None:
        with patch.object(fused, "fits", return_value=False):
            step()

    mine, other = interleaved(step, one_by_one, rounds=5)
    report(f"fused step at {n}", mine, other, "the ops one by one, on their fast backends")


def _fresh(n: int) -> float:
    """MB that a fresh process gains in its first step of this size."""
    command = [sys.executable, "-m", "benchmarks.span", str(n)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _gain(n: int) -> float:
    """Rise of the peak resident size over model, input and gradients, after a small warm-up."""
    torch.set_num_threads(2)
    model, bag = model_of("span-mil-uni"), slide(n)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    step_of(model, slide(300), anew=False)()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmHWM")
    step_of(model, bag, anew=False)()
    return _status("VmHWM") - before


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024 / 1e6


if __name__ == "__main__":
    print(_gain(int(sys.argv[1])))
