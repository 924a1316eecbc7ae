"""Extraction that is killed, runs out of disk, or loses a worker: nothing half, nothing lost."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.zygote import Zygote
from wsizoo.errors import BackendError
from wsizoo.extraction.cohort import extract
from wsizoo.slides.store import check_content, read_bag
from wsizoo.slides.tiff import write_pyramid

KILLS = 30

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills by signal")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides of some 60 patches each."""
    folder = tmp_path_factory.mktemp("slides")
    for i in range(3):
        rng = np.random.default_rng(i)
        image = np.full((700, 800 + 70 * i, 3), 243, np.uint8)
        noise = rng.integers(-25, 25, (500, 600 + 70 * i, 1))
        image[100:-100, 100:-100] = np.array([185, 105, 160]) + noise
        write_pyramid(folder / f"S{i}.svs", image, 0.5, (1, 4))
    return folder


@pytest.fixture(scope="module")
def zygote():  # type: ignore[no-untyped-def]
    with Zygote() as made:
        yield made


def digests(out: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(out.glob("*.h5"))}


def done_cells(out: Path) -> int:
    """Patches that need not be encoded again."""
    finished = sum(len(read_bag(file)) for file in out.glob("*.h5"))
    ends = [
        max((int(part.stem.split("-")[1]) for part in folder.glob("*.npz")), default=0)
        for folder in out.glob(".*.partial")
        if not (out / folder.name[1:].removesuffix(".partial")).exists()
    ]
    return finished + sum(ends)


@pytest.fixture(scope="module")
def whole(slides: Path, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole")
    assert zygote.wait(zygote.start("extract_slowly", slides, out, 0)) == 0
    return digests(out)


def test_killed_at_thirty_random_moments_it_ends_with_the_same_bytes(
    slides: Path, zygote: Zygote, whole: dict[str, str], tmp_path: Path
) -> None:
    out, chance, kills, rounds, before = tmp_path / "0", random.Random(4), 0, 0, 0
    while kills < KILLS:
        pid = zygote.start("extract_slowly", slides, out, 0.02)
        end = time.monotonic() + chance.uniform(0.0, 0.5)
        while time.monotonic() < end and zygote.ended(pid) is None:
            time.sleep(0.005)
        if zygote.ended(pid) is None:
            zygote.kill(pid)
            kills += 1
            for file in out.glob("*.h5"):
                check_content(file)  # complete under its final name, whatever the moment
            assert done_cells(out) >= before  # nothing that was finished is lost
            before = done_cells(out)
            continue
        assert zygote.wait(pid) == 0
        assert digests(out) == whole
        rounds, before = rounds + 1, 0
        out = tmp_path / str(rounds)
    assert zygote.wait(zygote.start("extract_slowly", slides, out, 0)) == 0
    assert digests(out) == whole
    left = sorted(file.name for file in out.iterdir() if ".tmp-" not in file.name)
    assert left == ["S0.h5", "S1.h5", "S2.h5", "extract.csv", "extract.html"]


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from wsizoo.extraction.cohort import extract
for result in extract(sys.argv[1], "handcrafted-he", sys.argv[2]):
    print(result.slide_id, result.state, result.reason)
"""


@pytest.mark.parametrize("limit", [700, 3_000, 12_000])
def test_a_file_that_the_disk_does_not_take_fails_its_slide_with_the_reason(
    slides: Path, tmp_path: Path, limit: int
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(slides), str(tmp_path), str(limit)],
        check=False, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    told = run.stdout + run.stderr
    assert run.returncode in (0, 1), told  # never a crash
    assert "File too large" in told
    assert list(tmp_path.glob("*.h5")) == []
    assert list(tmp_path.glob("*.tmp-*")) == list(tmp_path.glob(".*.h5.*.tmp-*")) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a tmpfs")
def test_a_full_disk_fails_slides_and_room_lets_the_same_command_finish(
    slides: Path, zygote: Zygote, whole: dict[str, str], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=28k", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        assert zygote.wait(zygote.start("extract_slowly", slides, disk, 0)) == 1
        for file in disk.glob("*.h5"):
            check_content(file)
        assert digests(disk) != whole
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert zygote.wait(zygote.start("extract_slowly", slides, disk, 0)) == 0
        assert digests(disk) == whole
    finally:
        subprocess.run(["umount", str(disk)], check=True)


RUN = """
import sys
from tests.zygote import Slow
from wsizoo.extraction.cohort import extract
from wsizoo.slides import partial
from wsizoo.slides.extract import Request

if __name__ == "__main__":
    slides, out, seconds, engine = sys.argv[1:]
    for result in extract(
        slides, Slow(float(seconds)), out, request=Request(batch_size=8), workers=2, engine=engine
    ):
        print(result.slide_id, result.state, result.reason)
"""


def start(
    script: Path, slides: Path, out: Path, seconds: float, engine: str = "local"
) -> subprocess.Popen[str]:
    script.write_text(RUN)
    return subprocess.Popen(
        [sys.executable, str(script), str(slides), str(out), str(seconds), engine],
        stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip


def processes(holding: str) -> list[int]:
    listed = subprocess.check_output(["ps", "-ww", "-eo", "pid=,args="], text=True).splitlines()
    return [int(pid) for pid, args in (line.split(None, 1) for line in listed) if holding in args]


def wait_for_work(out: Path) -> None:
    last = time.monotonic() + 60
    while not list(out.glob(".*.partial")):
        assert time.monotonic() < last
        time.sleep(0.05)


def test_the_slide_of_a_worker_that_is_killed_is_done_by_another(
    slides: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = start(tmp_path / "run.py", slides, out, 0.3)
    wait_for_work(out)
    workers = set(processes("spawn_main(")) & set(children(run.pid))
    os.kill(min(workers), signal.SIGKILL)
    told, _ = run.communicate(timeout=120)
    assert (run.returncode, told) == (0, "S0 done \nS1 done \nS2 done \n")
    assert digests(out) == whole


def children(pid: int) -> list[int]:
    listed = subprocess.check_output(["ps", "-ww", "-eo", "ppid=,pid="], text=True).splitlines()
    return [int(child) for parent, child in map(str.split, listed) if int(parent) == pid]


def test_a_slide_that_kills_its_workers_fails_and_the_others_are_tried(
    slides: Path, tmp_path: Path
) -> None:
    run = start(tmp_path / "run.py", slides, tmp_path / "out", -1)
    told, _ = run.communicate(timeout=180)
    assert run.returncode == 0, told
    why = "failed its worker process was killed 2 times (exit code -9), for want of memory perhaps"
    assert all(f"{name} {why}" in told for name in ("S0", "S1", "S2"))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_cluster_without_gpus_says_so_at_once(slides: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(BackendError, match="this machine's Ray cluster has none"):
        extract(slides, "handcrafted-he", tmp_path, engine="ray", device="cuda", workers=1)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["ray::_run", "driver"])
def test_on_ray_a_task_or_a_driver_that_is_killed_costs_nothing(
    slides: Path, whole: dict[str, str], tmp_path: Path, victim: str
) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "out"
    run = start(tmp_path / "run.py", slides, out, 1.0, "ray")
    wait_for_work(out)
    if victim == "driver":
        run.kill()
        run.communicate()
        run = start(tmp_path / "run.py", slides, out, 0.0, "ray")
    else:
        os.kill(processes(victim)[0], signal.SIGKILL)
    told, _ = run.communicate(timeout=180)
    lines = [line for line in told.splitlines() if line.startswith("S")]  # Ray may add its own
    assert (run.returncode, lines) == (0, ["S0 done ", "S1 done ", "S2 done "])
    assert digests(out) == whole
