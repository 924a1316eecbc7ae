"""How many patches the built-in encoder does a second, and what it spends its time on."""

import cProfile
import multiprocessing
import pstats
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks._measure import interleaved
from wsizoo.demo.cohort import draw
from wsizoo.encoders import handcrafted

PATCH, BATCH, GOAL = 224, 64, 600
BLOCKS = {  # what takes the time: the function that does it
    "blobs and ridges": "_blobs",
    "gradients": "_structure",
    "bands": "_level_features",
    "histograms of stains": "_colour_histogram",
    "joint histogram": "_joint_histogram",
    "nuclear masks": "_nuclei",
    "binary patterns": "_patterns",
    "finest band": "_finest_band",
    "moments": "_stain_statistics",
    "glass": "_paleness",
    "unmixing": "_unmix",
}


def run(scratch: Path) -> None:
    del scratch
    batch = patches()
    threads = torch.get_num_threads()
    print(f"  handcrafted-he, batches of {BATCH} patches of {PATCH} px")
    for count, goal in ((1, ""), (2, f", goal {GOAL}")):
        torch.set_num_threads(count)
        (seconds,) = interleaved(lambda: handcrafted.encode(batch), rounds=20, warmup=3)
        usual, best = BATCH / statistics.median(seconds), BATCH / min(seconds)
        print(f"  one process, {_threads(count)}: {usual:.0f} patches/s, best {best:.0f}{goal}")
    together = in_processes(2, rounds=20)
    print(f"  two processes of one thread each: {together:.0f} patches/s together")
    torch.set_num_threads(1)
    print(f"  of one thread's time: {', '.join(shares(batch))}")
    torch.set_num_threads(threads)


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def patches(count: int = BATCH) -> torch.Tensor:
    """(count, 3, 224, 224) uint8 of the middle of a synthetic slide, its memory as patches come."""
    image = torch.from_numpy(draw(1).image)
    edge = 8 * PATCH
    begin = (image.shape[0] - edge) // 2
    middle = image[begin : begin + edge, begin : begin + edge]
    cut = middle.unflatten(0, (8, PATCH)).unflatten(2, (8, PATCH)).transpose(1, 2).flatten(0, 1)
    return cut.contiguous()[:count].permute(0, 3, 1, 2)  # (64, 3, 224, 224)


def in_processes(count: int, rounds: int) -> float:
    """Patches a second of so many processes, which begin together."""
    context = multiprocessing.get_context("spawn")
    begin = context.Barrier(count)
    with context.Pool(count, _begin, (begin,)) as pool:
        return sum(pool.map(_encode_again, [rounds] * count, chunksize=1))


def _begin(barrier: Any) -> None:
    global _barrier  # noqa: PLW0603
    _barrier = barrier
    torch.set_num_threads(1)


def _encode_again(rounds: int) -> float:
    batch = patches()
    handcrafted.encode(batch)
    _barrier.wait()  # each process has exactly one of the calls
    start = time.perf_counter()
    for _ in range(rounds):
        handcrafted.encode(batch)
    return rounds * BATCH / (time.perf_counter() - start)


_barrier: Any = None


def shares(batch: torch.Tensor, rounds: int = 10) -> list[str]:
    """Per cent of its time that the encoder spends on each block of features."""
    handcrafted.encode(batch)
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(rounds):
        handcrafted.encode(batch)
    profile.disable()
    entries = pstats.Stats(profile).get_stats_profile().func_profiles
    spent = {what: entries[name].cumtime for what, name in BLOCKS.items()}
    spent["bands"] -= spent["blobs and ridges"] + spent["gradients"]  # these are called by it
    whole = entries["encode"].cumtime
    spent["density, 2 x 2 sums and the rest"] = whole - sum(spent.values())
    blocks = sorted(spent.items(), key=lambda item: -item[1])
    return [f"{what} {seconds / whole:.0%}" for what, seconds in blocks]
