"""Feature files: all rows and some, against the layout of one row a chunk."""

from pathlib import Path

import h5py
import numpy as np
import torch

import wsizoo
from benchmarks._measure import interleaved, report, report_speed

ROWS, DIM, SOME = 30_000, 1024, 2_048


def run(scratch: Path, rows: int = ROWS, dim: int = DIM, some: int = SOME, rounds: int = 7) -> None:
    ours, trident = scratch / "ours.h5", scratch / "trident.h5"
    generator = np.random.default_rng(0)
    features = generator.standard_normal((rows, dim), dtype=np.float32)
    coords = np.stack(np.divmod(np.arange(rows), 200), 1)[:, ::-1] * 512
    wsizoo.write_bag(wsizoo.Bag(torch.from_numpy(features), torch.from_numpy(coords.copy())), ours)
    with h5py.File(trident, "w") as file:  # as its IO.save_h5 does
        file.create_dataset("features", data=features, maxshape=(None, dim), chunks=(1, dim))
    chosen = np.sort(generator.choice(rows, some, replace=False))

    def everything(path: Path) -> None:
        with h5py.File(path) as file:
            file["features"][()]

    def random_rows(path: Path) -> None:
        with h5py.File(path) as file:
            file["features"][chosen]

    print(f"  feature file of {rows} x {dim} float32, {features.nbytes / 2**20:.0f} MiB, in memory")
    all_ours, all_theirs, some_ours, some_theirs, checked, hashed = interleaved(
        lambda: everything(ours),
        lambda: everything(trident),
        lambda: random_rows(ours),
        lambda: random_rows(trident),
        lambda: wsizoo.read_bag(ours),
        lambda: wsizoo.files.sha256_of(ours),
        rounds=rounds,
    )
    report_speed("all rows, h5py", all_ours, all_theirs, "chunks of one row", 8)
    report_speed(f"{some} random rows, h5py", some_ours, some_theirs, "chunks of one row", 20)
    report("read_bag, its digest checked", checked, all_theirs, "all of chunks of one row")
    report("read_bag, its digest checked", checked, hashed, "the sha256 of its bytes alone")
    ours.unlink()
    trident.unlink()
