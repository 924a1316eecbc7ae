"""The classic MIL methods: a step at N = 10,000, its multiply-adds and memory; beside torchmil.

A step is forward, loss and backward of a slide of 10,000 patches, 1,024 wide, by 2 threads. Each
method has a process of its own; its step and a plain product take turns. Rates are of float32
products of this width by torch.matmul, and by the faster of torch's two libraries on this processor
(see wsizoo/ops/products.py). Extra memory is the most that the first step adds, gradients included.
On a machine that others use too, BUSY=1 in the environment measures processor time of one thread.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import wsizoo
from benchmarks import abmil
from benchmarks._measure import interleaved, load_now, report_speed
from wsizoo import Bag, BagBatch
from wsizoo.ops import chunks, product, use_backend
from wsizoo.registry import default

N, DIM, WIDTH, ROUNDS = 10_000, 1024, 512, 5
CORE = ("abmil", "mean", "max")  # the rest is of the plugin
DENSE, DENSE_GOAL = ("transmil", "rrt", "transformer"), 0.6
PACKED, PACKED_GOAL = ("abmil", "clam-sb", "clam-mb", "dsmil"), 3.0
BAGS, PATCHES, FEWER = 64, 500, (100, 20)
MEMORY_GOAL = 0.5  # of torchmil's
SLIDE = ("head={name: classification, classes: [normal, tumour]}",)
PATCH = ("head.classes=[normal,tumour]",)
WARM = 600  # patches of the slide that loads libraries
BUSY = bool(os.environ.get("BUSY"))
THREADS = 1 if BUSY else 2
TIMED: dict[str, Any] = {
    "rounds": ROUNDS,
    "clock": time.process_time if BUSY else time.perf_counter,
}


def run() -> None:
    torch.set_num_threads(THREADS)
    clock = "processor time" if BUSY else "time by the clock"
    print(f"  {load_now()}; {clock}, {THREADS} threads, N = {N:,}, {DIM} wide")
    for name in methods():
        print(f"  {told(name, _fresh('step', name))}", flush=True)
    abmil.run()
    for name in PACKED:
        packed(name, PATCHES, PACKED_GOAL)
        for patches in FEWER:
            packed(name, patches)
    for name in THEIRS:
        side_by_side(name)


def methods() -> list[str]:
    """Aggregators: the core's own, then those that the plugin offers."""
    offered = default().plugins.components("aggregator")
    own = [c.name for c in offered if c.target.startswith("wsizoo_plugin_mil.")]
    return [*CORE, *own]


def entry_of(aggregator: str) -> str:
    """The zoo's model with it: NAME-uni, else the first."""
    having = wsizoo.list_models(aggregator=aggregator)
    return next((name for name in having if name == f"{aggregator}-uni"), having[0])


def model_of(aggregator: str) -> Any:
    """In training, with the head of its entry: one label a slide, or one a patch."""
    entry = entry_of(aggregator)
    per_patch = wsizoo.show(entry)["head"]["name"] == "segmentation"
    given = PATCH if per_patch else SLIDE
    return wsizoo.build(entry, f"encoder.dim={DIM}", *given, seed=0).train()


def slide(n: int, seed: int = 0) -> Bag:
    """Random features on a full square, and a target for every head."""
    features = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))
    rows, edge = torch.arange(n), max(1, round(n**0.5))
    coords = torch.stack([rows // edge, rows % edge], 1) * 256
    target = {"label": 1, "instances": (rows % 2).float()}
    return Bag(features, coords=coords, spacing=256.0, target=target, slide_id=f"S{seed}")


def step_of(model: Any, bag: Bag | BagBatch) -> Callable[[], None]:
    """Forward, loss, and backward where anything is learned."""

    def step() -> None:
        model.zero_grad()
        output = model(bag) if isinstance(bag, Bag) else model.forward_packed(bag)
        total = torch.stack(list(model.losses(output, bag).values())).sum()
        if total.requires_grad:
            total.backward()

    return step


def begun(name: str, n: int) -> tuple[Any, Bag]:
    """A model whose training has begun, and a slide."""
    model, bag = model_of(name), slide(n)
    model.start_training(1000, [bag])
    return model, bag


def told(name: str, found: dict[str, Any]) -> str:
    """One line of the table."""
    seconds, adds = statistics.median(found["seconds"]), found["multiply_adds"]
    rates = [adds / seconds / rate for rate in found["rates"]]
    goal = f" (goal {DENSE_GOAL:.0%} of torch.matmul's rate)" if name in DENSE else ""
    low, high = min(found["seconds"]), max(found["seconds"])
    return (
        f"{name}: {seconds:.3f} s ({low:.3f} to {high:.3f}), {adds / 1e9:.1f} G multiply-adds, "
        f"{rates[0]:.0%} of torch.matmul's rate{goal}, {rates[1]:.0%} of the faster library's; "
        f"{found['extra'] / 1e6:.0f} MB extra, {found['peak'] / 1e6:.0f} MB in all"
    )


def measured(name: str, n: int) -> dict[str, Any]:
    """What a process finds of one method."""
    model, bag = begun(name, n)
    step_of(model, slide(WARM, 1))()
    model.zero_grad(set_to_none=True)
    step = step_of(model, bag)
    extra = gain(step)
    peak = _resident("VmHWM")
    seconds, plain, fast = interleaved(step, *products(n), **TIMED)
    rates = [n * DIM * WIDTH / statistics.median(times) for times in (plain, fast)]
    rates[1] = max(rates)
    without_dropout(model)
    return {
        "seconds": seconds,
        "multiply_adds": multiply_adds(step),
        "rates": rates,
        "extra": extra,
        "peak": peak,
    }


def products(n: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """n x 1024 by 1024 x 512, by torch.matmul and by wsizoo's products."""
    rows, weight, made = torch.randn(n, DIM), torch.randn(DIM, WIDTH), torch.empty(n, WIDTH)

    def plain() -> None:
        torch.matmul(rows, weight, out=made)

    def fast() -> None:
        for _, some in chunks(0, n):
            product(rows[some], weight, out=made[some])

    return plain, fast


def without_dropout(model: nn.Module) -> None:
    """Attention with dropout is an op that torch's counter does not see."""
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0


def multiply_adds(step: Callable[[], None]) -> float:
    """Of the products and convolutions of a step, by the reference of every op."""
    attention = torch.ops.aten
    custom = {
        attention._scaled_dot_product_flash_attention_for_cpu: _attention_adds,
        attention._scaled_dot_product_flash_attention_for_cpu_backward: _attention_adds_backward,
        attention.convolution_backward: _convolution_adds_backward,
    }
    with use_backend("reference"), FlopCounterMode(display=False, custom_mapping=custom) as count:
        step()
    return count.get_total_flops() / 2


def _attention_adds(
    q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any
) -> int:
    """q, k, v: shapes (B, H, n, d). Two products, and 2 for each multiply-add."""
    b, heads, n, d = q
    return 4 * b * heads * n * k[2] * d


def _attention_adds_backward(_: Any, *shapes: Any, **__: Any) -> int:
    """Four products; that scores are made again is not counted."""
    return 2 * _attention_adds(*shapes[:3])


def _convolution_adds_backward(
    slope: Sequence[int], _: Any, weight: Sequence[int], *__: Any, **___: Any
) -> int:
    """Of the input and of the weight; torch's own count forgets that groups do not mix."""
    return 2 * 2 * math.prod(slope) * math.prod(weight[1:])


def gain(step: Callable[[], None]) -> int:
    """Bytes that a step adds at most to what the process holds."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def packed(name: str, patches: int, goal: float | None = None) -> None:
    """Slides in one pass against one after the other, and the most that any pass could gain.

    No pass takes less time than its products at the fastest rate. A training step has the
    optimiser's too: one a slide, or one for all.
    """
    model, slides = model_of(name), [slide(patches, seed) for seed in range(BAGS)]
    whole, one = step_of(model, BagBatch.pack(slides)), [step_of(model, bag) for bag in slides]
    update = torch.optim.AdamW(model.parameters(), lr=1e-4).step
    mine, theirs, plain, fast, trained, trained_each = interleaved(
        *(whole, in_turn(*one), *products(BAGS * patches)),
        *(in_turn(whole, update), in_turn(*(part for step in one for part in (step, update)))),
        **TIMED,
    )
    without_dropout(model)
    scale = multiply_adds(whole) / (BAGS * patches * DIM * WIDTH)
    limit = [scale * min(pair) for pair in zip(plain, fast, strict=True)]
    what = f"{name}, {BAGS} bags of {patches}"
    report_speed(f"{what} in one pass", mine, theirs, "one by one", goal)
    report_speed(f"{what}, its products alone", limit, theirs, "one by one: the most there is")
    report_speed(f"{what} in one pass, with AdamW", trained, trained_each, "one by one")


def in_turn(*steps: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        for step in steps:
            step()

    return run


def their_abmil() -> nn.Module:
    from torchmil.models import ABMIL  # type: ignore[import-not-found]

    embed = nn.Sequential(nn.Linear(DIM, WIDTH), nn.ReLU(), nn.Dropout(0.25))
    made: nn.Module = ABMIL((DIM,), att_dim=384, gated=True, feat_ext=embed)
    return made


def their_transmil() -> nn.Module:
    """Without our residual convolution and output layer, which it does not have."""
    from torchmil.models import TransMIL

    made: nn.Module = TransMIL((DIM,), att_dim=WIDTH, n_heads=8, dropout=0.1)
    return made


THEIRS = {"abmil": their_abmil, "transmil": their_transmil}


def their_step(name: str, n: int) -> Callable[[], None]:
    model, features, label = THEIRS[name]().train(), slide(n).features[None], torch.ones(1)

    def step() -> None:
        model.zero_grad()
        _, losses = model.compute_loss(label, features)  # type: ignore[operator]
        total: Tensor = sum(losses.values())
        total.backward()

    return step


def side_by_side(name: str) -> None:
    """Our step and torchmil's in turn; their memory in processes of their own."""
    if find_spec("torchmil") is None or find_spec("tensordict") is None:
        print(f"  {name} beside torchmil: left out: torchmil is not here, see CONTRIBUTING.md")
        return
    mine, theirs = interleaved(step_of(*begun(name, N)), their_step(name, N), **TIMED)
    report_speed(f"{name}, forward + backward", mine, theirs, "torchmil", 1.0)
    own, other = _fresh("memory", name)["extra"], _fresh("their-memory", name)["extra"]
    print(
        f"    extra memory {own / 1e6:.0f} MB, torchmil {other / 1e6:.0f} MB: {own / other:.2f} of "
        f"it, goal at most {MEMORY_GOAL:g}"
    )


def memory(name: str, n: int, theirs: bool = False) -> dict[str, Any]:
    """Of the first step, after a small one of another slide."""
    (their_step(name, WARM) if theirs else step_of(*begun(name, WARM)))()
    step = their_step(name, n) if theirs else step_of(*begun(name, n))
    return {"extra": gain(step)}


def _fresh(what: str, name: str) -> dict[str, Any]:
    """What a new process says."""
    command = [sys.executable, "-m", "benchmarks.mil", what, name, str(N)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} gave {done.returncode}:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _one(what: str, name: str, n: int) -> None:
    if what == "step":
        found = measured(name, n)
    else:
        found = memory(name, n, theirs=what == "their-memory")
    print(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    _one(sys.argv[1], sys.argv[2], int(sys.argv[3]))
