"""Runs that are killed: the same command goes on, and ends with the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.toy_cohort import read_table, write_cohort, write_config
from tests.zygote import Zygote

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills by signal")

KILLS = 6
ROOT = Path(__file__).parents[1]
SAME = ("predictions.csv", "predictions_patients.csv", "metrics.json", "epochs.csv", "split.csv")


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote("wsizoo.train.run", "lightning_fabric", "sklearn.metrics") as made:
        yield made


def bytes_of(run: Path) -> dict[str, bytes]:
    """What must not differ, of every run in a folder."""
    return {
        str(file.relative_to(run)): file.read_bytes()
        for name in SAME
        for file in sorted(run.rglob(name))
    }


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    zygote: Zygote, tmp_path: Path
) -> None:
    write_cohort(tmp_path)
    config = write_config(tmp_path, train={"epochs": 4}, seeds=[0, 1], augment={"drop": 0.2})
    start = time.monotonic()
    whole = tmp_path / "whole"
    assert zygote.wait(zygote.start("train_run", config, whole)) == 0
    seconds, chance = time.monotonic() - start, random.Random(6)
    out, kills, rounds = tmp_path / "run-0", 0, 0
    while kills < KILLS:
        pid = zygote.start("train_run", config, out)
        end = time.monotonic() + chance.uniform(0.0, 0.7 * seconds)
        while time.monotonic() < end and zygote.ended(pid) is None:
            time.sleep(0.01)
        if zygote.ended(pid) is None:
            zygote.kill(pid)
            kills += 1
            continue
        assert zygote.wait(pid) == 0
        assert bytes_of(out) == bytes_of(whole)
        rounds += 1
        out = tmp_path / f"run-{rounds}"
    assert zygote.wait(zygote.start("train_run", config, out)) == 0
    assert bytes_of(out) == bytes_of(whole)
    assert set(bytes_of(whole)) >= {f"fold0-seed{s}/{n}" for s in (0, 1) for n in SAME}
    assert not (out / ".run.lock").exists()


def test_the_command_itself_goes_on_after_kill_9(tmp_path: Path) -> None:
    write_cohort(tmp_path)
    config = write_config(tmp_path, train={"epochs": 40})
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "wsizoo", "train", str(config), "-o"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=env, capture_output=True)
    run = tmp_path / "run"
    process = subprocess.Popen([*command, str(run)], env=env, stdout=subprocess.DEVNULL)
    last = time.monotonic() + 120
    while not (run / "epochs.csv").exists() or len(read_table(run / "epochs.csv")) < 2:
        assert time.monotonic() < last and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "predictions.csv").exists()
    told = subprocess.check_output([*command, str(run)], env=env, text=True)
    assert "goes on after epoch" in told
    assert bytes_of(run) == bytes_of(tmp_path / "whole")


def test_interrupted_it_says_that_the_same_command_goes_on(tmp_path: Path) -> None:
    write_cohort(tmp_path)
    config = write_config(tmp_path, train={"epochs": 5000})
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "wsizoo", "train", str(config), "-o", str(run)],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    last = time.monotonic() + 120
    while not (run / "epochs.csv").exists():
        assert time.monotonic() < last and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "What was finished is kept; the same command goes on." in told


@pytest.mark.slow
def test_started_by_torchrun_one_process_writes_and_the_run_is_whole(tmp_path: Path) -> None:
    write_cohort(tmp_path)
    config = write_config(tmp_path, seeds=[0, 1])
    run = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, "-m", "wsizoo", "train", str(config), "-o", str(run)],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Open ") == 1
    assert len(read_table(run / "fold0-seed1" / "predictions.csv")) == 8
    assert (run / "report.html").is_file()
