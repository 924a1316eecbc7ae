"""Trainings with a selector: killed and resumed, by two processes, in two runs; from the shell."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import wsizoo
from wsizoo.errors import DataError, SpecError
from wsizoo.train.checkpointing import read_checkpoint
from wsizoo.train.config import load_config
from wsizoo.train.run import run_training

pytest.importorskip("lightning_fabric")
PROGRAM = Path(__file__).parent / "program.py"
program = SimpleNamespace(**runpy.run_path(str(PROGRAM)))
SELECTORS = ("sparselearn", "gumbel-topk", "random", "abmil-score")


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def content(folder, name):
    """A checkpoint without the times of its epochs."""
    found = read_checkpoint(folder / "checkpoints" / name)
    for row in found.get("history", []):
        del row["seconds"], row["waited"]
    return found


def check_same_end(whole, again, folder):
    assert same(dict(again.state_dict()), dict(whole.state_dict()))
    for name in ("last.ckpt", "best.ckpt"):
        assert same(content(folder / "cut", name), content(folder / "whole", name))
    csv = [(folder / run / "epochs.csv").read_bytes() for run in ("whole", "cut")]
    assert csv[0] == csv[1]


def test_killed_it_ends_with_the_same_bytes(tmp_path):
    whole, again = program.model_of(), program.model_of()
    program.train(tmp_path / "whole", whole)
    command = [sys.executable, PROGRAM, "die", tmp_path / "cut", "17"]  # of 7 an epoch
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    program.train(tmp_path / "cut", again)
    check_same_end(whole, again, tmp_path)


@pytest.mark.parametrize("read", [5, 12, 20, 26])  # of 7 an epoch, a phase each
@pytest.mark.parametrize("selector", SELECTORS)
def test_stopped_anywhere_it_ends_with_the_same_bytes(selector, read, tmp_path):
    whole, cut, again = (program.model_of(selector) for _ in range(3))
    program.train(tmp_path / "whole", whole)
    with pytest.raises(DataError, match="a read failed"):
        program.train(tmp_path / "cut", cut, die=read, stop=program.fail)
    program.train(tmp_path / "cut", again)
    check_same_end(whole, again, tmp_path)


def test_two_processes_equal_one_that_accumulates_two(tmp_path):
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*run, PROGRAM, "share", tmp_path], capture_output=True, text=True, check=False,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    alone = program.model_of()
    settings = type(program.SHARED)(**{**vars(program.SHARED), "accumulate": 2})
    program.train(tmp_path / "alone", alone, settings=settings)
    for rank in (0, 1):
        shared = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, tensor in alone.state_dict().items():
            torch.testing.assert_close(shared[name], tensor, rtol=1e-4, atol=1e-5)


def test_checkpoints_hold_what_a_published_model_leaves_out(tmp_path):
    program.train(tmp_path, model := program.model_of())
    held = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["stepper"]["model"]
    assert set(model.state_dict()) == set(held)
    assert any("denoiser" in name for name in held)
    assert not any("denoiser" in name for name in model.inference_state())


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    """A table, features and a config of a run, where the commands are typed."""
    monkeypatch.chdir(tmp_path)
    rows = ["slide,label,part"]
    for i in range(12):
        bag = program.Slides(12)[i]
        coords = torch.stack([torch.arange(len(bag)), torch.zeros(len(bag))], 1).long() * 224
        wsizoo.write_bag(
            bag.replace(coords=coords, spacing=224.0, mpp=0.5, footprint=224.0),
            tmp_path / "features" / f"s{i}.h5",
        )
        part = ("train", "train", "train", "train", "val", "test")[i // 2]
        rows.append(f"s{i},{'ab'[i % 2]},{part}")
    (tmp_path / "slides.csv").write_text("\n".join(rows) + "\n")
    config = {
        "model": "abmil-uni",
        "data": {"table": "slides.csv", "features": "features"},
        "split": {"kind": "column", "column": "part"},
        "overrides": [f"encoder.dim={program.DIM}", "aggregator.dim=5", "aggregator.attention=4"],
        "train": {"epochs": 2, "workers": 0, "device": "cpu"},
        "selection": {"checkpoint": "last"},
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config))
    return config


def run(cohort, out, *overrides, **changes):
    content = {**cohort, "overrides": list(overrides) or cohort["overrides"], **changes}
    run_training(load_config(content), out)


def test_a_command_names_a_selector(cohort):
    base = ", ".join(cohort["overrides"])
    text = f"overrides=[{base}, selector=sparselearn, selector.k=3]"
    given = [sys.executable, "-m", "wsizoo", "train", "train.yaml", "-o", "one", text]
    done = subprocess.run(given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert wsizoo.load("one").spec.selector == {"name": "sparselearn", "k": 3}


def test_a_second_run_adds_a_selector_to_the_first(cohort):
    added = "selector=sparselearn", "selector.k=3", "selector.warm_up=0"
    run(cohort, "full")
    run(cohort, "two", *added, init="full")
    full, two = wsizoo.load("full").state_dict(), wsizoo.load("two").state_dict()
    assert all(torch.equal(full[name], two[name]) for name in full)  # frozen, head included
    assert "selector.scorer.score.weight" in two
    bag = wsizoo.read_bag("features/s11.h5")
    assert len(wsizoo.load("two")(bag).kept) == 3


def test_an_untrained_selector_goes_before_a_trained_model(cohort):
    run(cohort, "full")
    bag = wsizoo.read_bag("features/s11.h5")
    norm = wsizoo.load("full", "selector=norm", "selector.k=3")
    assert len(norm(bag).kept) == 3
    with pytest.raises(SpecError, match="missing: selector"):
        wsizoo.load("full", "selector=sparselearn")


def test_an_attention_that_was_trained_chooses_in_a_second_run(cohort):
    run(cohort, "full")
    widths = ("selector.abmil=full", "selector.embedding=[5]", "selector.hidden=4", "selector.k=3")
    run(cohort, "scored", "selector=abmil-score", *widths, init="full")
    full, bag = wsizoo.load("full"), wsizoo.read_bag("features/s11.h5")
    logits = full.aggregator.attend(bag.features)[1]
    torch.testing.assert_close(wsizoo.load("scored").selector.score(bag), logits)
    start = ("selector=sparselearn", *widths, "selector.scorer=gated", "selector.warm_up=0")
    run(cohort, "warm", *start, init="full", optimiser={"lr": 1e-9})
    torch.testing.assert_close(wsizoo.load("warm").selector.score(bag), logits)
