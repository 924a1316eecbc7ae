"""A benchmark that is interrupted or killed, and one on Ray: nothing finished is run twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.benchmark_cells import calls, pretend
from tests.test_benchmark_run import content, run, states, write_features
from wsizoo.benchmark.run import run_benchmark

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills by signal")
PROGRAM = """
import json, sys
from tests import benchmark_cells
from wsizoo.benchmark.run import run_benchmark
if __name__ == "__main__":
    asked, out, how = sys.argv[1:]
    try:
        run_benchmark(json.loads(asked), out, run_one=getattr(benchmark_cells, how), jobs=2)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_features(folder / "he", "handcrafted-he", 208)
    lines = [f"S{i},{('normal', 'tumour')[i % 2]}" for i in range(16)]
    (folder / "slides.csv").write_text("\n".join(["slide,label", *lines]) + "\n")
    return folder


def start(folder: Path, asked: dict[str, object]) -> subprocess.Popen[bytes]:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    root = str(Path(__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    command = [
        sys.executable,
        str(program),
        json.dumps(asked),
        str(folder / "out"),
        "pretend_slowly",
    ]
    return subprocess.Popen(command, env=env)


def children(pid: int) -> list[int]:
    """Processes that come from this one, and theirs."""
    listed = subprocess.check_output(["ps", "-ww", "-eo", "ppid=,pid="], text=True).splitlines()
    own = [int(child) for parent, child in map(str.split, listed) if int(parent) == pid]
    return own + [below for child in own for below in children(child)]


def is_running(pid: int) -> bool:
    """Zombies, whom nobody has waited for, are not."""
    told = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return told.stdout.strip()[:1] not in ("", "Z")


def wait_until(true, seconds: float = 120) -> None:  # type: ignore[no-untyped-def]
    last = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < last, "it hangs"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "kind", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_what_is_finished_survives_and_no_process_does(
    data: Path, tmp_path: Path, kind: signal.Signals
) -> None:
    asked = content(data, seeds=[0, 1, 2, 3])
    out = tmp_path / "out"
    process = start(tmp_path, asked)
    wait_until(lambda: len(list(out.glob("cells/*/cell.json"))) >= 2)
    workers = children(process.pid)
    process.send_signal(kind)
    assert process.wait(60) == (130 if kind == signal.SIGINT else -signal.SIGKILL)
    assert workers
    wait_until(lambda: not any(is_running(pid) for pid in workers))
    finished = {file.parent.name for file in out.glob("cells/*/cell.json")}
    assert 2 <= len(finished) < 8
    done = run_benchmark(asked, out, run_one=pretend)
    again = {outcome.cell.folder for outcome in done.outcomes if outcome.state == "done"}
    assert len(done.outcomes) == 8
    assert not again & finished
    assert again | finished == {outcome.cell.folder for outcome in done.outcomes}


@pytest.mark.slow
def test_on_ray_the_results_are_the_same(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    run(data, tmp_path / "here")
    done = run(data, tmp_path / "ray", jobs=2, engine="ray")
    assert states(done) == ["done"] * 4
    assert len(calls(tmp_path / "ray")) == 4
    for name in ("table.csv", "results.csv", "benchmark.html"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    assert states(run(data, tmp_path / "ray", engine="ray")) == ["kept"] * 4


@pytest.mark.slow
def test_on_ray_a_cell_that_fails_or_dies_leaves_the_others(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from tests.benchmark_cells import fail_for_max

    tmp_path.joinpath("broken").touch()
    done = run(data, tmp_path, run_one=fail_for_max, jobs=2, engine="ray", seeds=[0])
    assert states(done) == ["done", "failed"]
    assert done.failed[0].reason == "ValueError: no luck"
