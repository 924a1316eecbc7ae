"""The training loop: what it adds to the bare passes and steps, and whether reading keeps up."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import wsizoo
from benchmarks._measure import interleaved, load_now, report
from benchmarks.span import slide
from wsizoo.train.trainer import TrainSettings, train_model

PATCHES, GOAL = 10_000, 1.05
MODELS = {"abmil-uni": 4, "span-mil-uni": 2}  # slides in an epoch
FILES, THREADS = 6, (0, 1, 2)


def run() -> None:
    torch.set_num_threads(1)
    print(f"  {load_now()}, 1 thread")
    for name, count in MODELS.items():
        overhead(name, count)
    with tempfile.TemporaryDirectory() as scratch:
        reading(Path(scratch))


def model_of(name: str) -> wsizoo.SlideModel:
    return wsizoo.build(name, "head.classes=[a,b]", seed=0)


def settings(workers: int = 2) -> TrainSettings:
    return TrainSettings(epochs=1, checkpoint="last", workers=workers)


def overhead(name: str, count: int, patches: int = PATCHES, rounds: int = 5) -> None:
    """Processor time of a whole call, start, checkpoint and logs included, over one epoch."""
    bags = [slide(patches).replace(slide_id=f"s{i}") for i in range(count)]
    mine, bare = model_of(name), model_of(name).train()
    optimiser = torch.optim.AdamW(bare.parameters(), lr=1e-4, weight_decay=1e-5)

    def whole() -> None:
        with tempfile.TemporaryDirectory() as folder:
            train_model(mine, bags, None, settings(), Path(folder))

    def steps() -> None:
        for bag in bags:
            optimiser.zero_grad(set_to_none=True)
            torch.stack(list(bare.losses(bare(bag), bag).values())).sum().backward()
            optimiser.step()

    loop, plain = interleaved(whole, steps, rounds=rounds, clock=time.process_time)
    what = f"{name}, an epoch of {count} slides of {patches} patches, processor time"
    report(what, loop, plain, "forward, backward and step alone", GOAL)


class Files(Sequence[wsizoo.Bag]):
    """Feature files, each read when it is asked for."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.names = [path.stem for path in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> wsizoo.Bag:
        return wsizoo.read_bag(self.paths[index]).replace(target={"label": index % 2})


def reading(scratch: Path, count: int = FILES, patches: int = PATCHES) -> None:
    """Share of an epoch that ABMIL, the quickest step, stands still for feature files."""
    paths = [scratch / f"{i}.h5" for i in range(count)]
    for i, path in enumerate(paths):
        wsizoo.write_bag(slide(patches, seed=i).replace(target=None), path)
    megabytes = paths[0].stat().st_size / 1e6
    print(f"  abmil-uni, {count} files of {patches} patches, {megabytes:.0f} MB each, cached")
    for workers in THREADS:
        with tempfile.TemporaryDirectory() as folder:
            (row,) = train_model(
                model_of("abmil-uni"), Files(paths), None, settings(workers), Path(folder)
            ).history
        share, seconds = row["waited"] / row["seconds"], row["seconds"]
        print(f"    {workers} reading threads: {share:.1%} of an epoch of {seconds:.2f} s waits")
