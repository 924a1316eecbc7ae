"""SparseLearn: needles found and classes told by 32 of 4,096 patches; cost of op and selector.

`python -m benchmarks.sparselearn needles 0 1 2` or `cost` for one half; seeds default to 0 to 4.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

import wsizoo
from benchmarks._measure import interleaved, load_now, report
from benchmarks._needles import Found, Size, best_rates, run_of
from benchmarks.mil_sets import mapping
from benchmarks.span import slide
from wsizoo.measures.compare import paired_bootstrap
from wsizoo.measures.weighted import mean_of
from wsizoo.ops import soft_topk

SEEDS = (0, 1, 2, 3, 4)
RATES, TUNING_SEED = (3e-3, 1e-2), 9  # tried for each selector that learns; of none of the runs
ROWS, GATED = 100_000, 32
TEMPERATURES = (2.0, 0.5, 0.1, 0.01)
OP_GOAL, SELECTOR_GOAL = 3.0, 1.2
WIDTH, HIDDEN = 1024, 256
AFTER = (("span-mil-uni", (4_096, 16_384)), ("full-attention-uni", (2_048, 4_096)))
KEPT = (32, 512)
CLOCK = time.process_time  # of one thread: what else runs here counts little


def run(jobs: int = 1) -> None:
    needles(SEEDS, jobs=jobs)
    cost()


def needles(seeds: Sequence[int], size: Size | None = None, jobs: int = 1) -> None:
    """All selectors on the needles, over several seeds, with paired intervals."""
    size, start = size or Size(), time.perf_counter()
    rates = best_rates(RATES, TUNING_SEED, size)
    told = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
    print(f"  {load_now()}; learning rates of {RATES}, chosen with seed {TUNING_SEED}: {told}")
    with mapping(jobs) as each:
        runs: list[Mapping[str, Found]] = list(each(partial(run_of, rates=rates, size=size), seeds))
    print(f"  seeds {', '.join(map(str, seeds))}; {size.tests} test bags; {minutes(start)}")
    table(runs)


def table(runs: Sequence[Mapping[str, Found]]) -> None:
    """All selectors of some runs, seed by seed, and what SparseLearn is ahead of each."""
    print("  | selector | recall@k | recall@8 | soft | hard | overlap |")
    columns = ("recall", "recall_8", "soft", "hard", "overlap")
    for name in runs[0]:
        found = [each[name] for each in runs]
        print(f"  | {name} | " + " | ".join(per_seed(found, c) for c in columns) + " |")
    ours = [each["sparselearn"] for each in runs]
    gap = differ([f.hard for f in ours], [f.soft for f in ours])
    print(f"  in points, 95 %: hard minus soft of sparselearn {gap}")
    for name in runs[0]:
        if name != "sparselearn":
            print(f"  sparselearn minus {name}: {against(ours, [each[name] for each in runs])}")


def minutes(start: float) -> str:
    return f"{(time.perf_counter() - start) / 60:.1f} min"


def per_seed(found: Sequence[Found], column: str) -> str:
    """Mean of each run, and of them all."""
    values = [float(np.mean(part)) for each in found if (part := getattr(each, column))]
    if not values:
        return "-"
    return f"{' / '.join(f'{value:.3f}' for value in values)} (mean {np.mean(values):.3f})"


def against(ours: Sequence[Found], theirs: Sequence[Found]) -> str:
    told = [f"hard {differ([f.hard for f in ours], [f.hard for f in theirs])}"]
    if theirs[0].recall:
        recall = differ([f.recall for f in ours], [f.recall for f in theirs])
        told.append(f"recall@k {recall}")
    return ", ".join(told)


def differ(ours: Sequence[list[float]], theirs: Sequence[list[float]]) -> str:
    """Difference in points with its 95 % interval, over test bags that all runs share."""
    bags, runs = len(ours[0]), len(ours)
    a, b = (mean_of(np.concatenate(rows)) for rows in (ours, theirs))
    found = paired_bootstrap(a, b, bags * runs, list(range(bags)) * runs)
    low, value, high = (100 * x for x in (found.low, found.value, found.high))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def cost() -> None:
    """The op against a sort; the selector against its matmuls; models after it."""
    torch.set_num_threads(1)
    print(f"  processor time of one thread, {load_now()}")
    for form in ("sigmoid", "laplace"):
        for temperature in TEMPERATURES:
            _op(form, temperature)
    _selector()
    print(
        "  | model | patches | kept | fewer | faster | with selector | ms | kept | with selector |"
    )
    for name, counts in AFTER:
        for n in counts:
            for k in KEPT:
                _after(name, n, k)


def _op(form: str, temperature: float) -> None:
    scores = torch.randn(ROWS, generator=torch.Generator().manual_seed(0))
    leaf, cotangent = scores.clone().requires_grad_(), torch.randn_like(scores)

    def both_ways() -> None:
        leaf.grad = None
        found = soft_topk(leaf, GATED, temperature, form=form)
        torch.autograd.backward([found.root, found.rest_root], [cotangent, cotangent])

    mine, sort = interleaved(
        both_ways, lambda: torch.sort(scores), rounds=21, warmup=3, clock=CLOCK
    )
    what = f"soft_topk, {form}, temperature {temperature:g}, both ways, {ROWS} rows"
    report(what, mine, sort, "torch.sort", OP_GOAL)


def _selector() -> None:
    """In eval: scores, the check that they are finite, the ranking, and the patches themselves."""
    from wsizoo_plugin_sparselearn.selector import SparseLearn

    torch.manual_seed(0)
    bag = wsizoo.Bag(torch.randn(ROWS, WIDTH), slide_id="large")
    selector = SparseLearn(WIDTH, GATED, hidden=HIDDEN).eval()
    first, second = torch.randn(WIDTH, HIDDEN), torch.randn(HIDDEN, 1)
    hidden, scores = torch.empty(ROWS, HIDDEN), torch.empty(ROWS, 1)

    def matmuls() -> None:
        torch.mm(bag.features, first, out=hidden)
        torch.mm(hidden, second, out=scores)

    with torch.inference_mode():
        mine, plain = interleaved(lambda: selector(bag), matmuls, rounds=9, clock=CLOCK)
    what = f"selector in eval, {ROWS} x {WIDTH}, h = {HIDDEN}"
    report(what, mine, plain, "its two matmuls", SELECTOR_GOAL)


def _after(name: str, n: int, k: int) -> None:
    """A model on all patches, on k of them, and with the selector that finds the k."""
    task, bag = "head.classes=[a,b]", slide(n)
    whole = wsizoo.build(name, task, seed=0).eval()
    chosen = wsizoo.build(name, task, f"selector={{name: sparselearn, k: {k}}}", seed=0).eval()
    few = bag.subset(torch.randperm(n)[:k].sort().values)
    calls: list[Callable[[], Any]] = [
        partial(whole, bag),
        partial(whole, few),
        partial(chosen, bag),
    ]
    with torch.inference_mode():
        all_of_it, part, both = (
            np.median(times) for times in interleaved(*calls, rounds=5, clock=CLOCK)
        )
    print(
        f"  | {name} | {n} | {k} | {n / k:.0f} | {all_of_it / part:.1f} | {all_of_it / both:.1f} | "
        f"{all_of_it * 1e3:.0f} | {part * 1e3:.1f} | {both * 1e3:.1f} |"
    )


if __name__ == "__main__":
    what, *given = sys.argv[1:] or ["needles"]
    torch.set_num_threads(1)
    if what == "cost":
        cost()
    else:
        needles([int(seed) for seed in given] or SEEDS)
