"""Weights: save and load of 1 GB against plain safetensors."""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import wsizoo
from benchmarks._measure import interleaved, report
from wsizoo.bag import Bag

GIGABYTE = 2**30


def run() -> None:
    dim = 16_000
    width = GIGABYTE // 4 // (dim + 3)  # the embedding layer holds nearly everything
    model = wsizoo.build(
        "mean-uni",
        "head.classes=[a,b]",
        "encoder.name=made-up",
        f"encoder.dim={dim}",
        f"aggregator.dim={width}",
    )
    model.trained = True  # as far as the benchmark is concerned
    state = model.inference_state()
    size = sum(t.numel() * t.element_size() for t in state.values())
    bag = Bag(torch.zeros(1, dim))
    with tempfile.TemporaryDirectory() as scratch:
        folder, plain = Path(scratch) / "model", Path(scratch) / "plain.safetensors"
        saved, saved_plain = interleaved(
            lambda: wsizoo.save(model, folder, golden=bag, overwrite=True),
            lambda: save_file(state, plain),
            rounds=3,
        )
        loaded, loaded_plain, digested = interleaved(
            lambda: wsizoo.load(str(folder)),
            lambda: model.load_state_dict(load_file(plain)),
            lambda: wsizoo.files.sha256_of(plain),
            rounds=3,
        )
    print(f"  {size / GIGABYTE:.2f} GiB of float32")
    report("save (digest, golden bag, fsync)", saved, saved_plain, "save_file")
    report("load (digest checked, strict)", loaded, loaded_plain, "load_file + load_state_dict")
    report("load", loaded, digested, "the sha256 of its bytes alone")
    report("of which sha256", digested, loaded_plain, "load_file + load_state_dict")
