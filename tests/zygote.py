"""A process that imports wsizoo once and forks for each call, so that calls can be killed cheaply.

`Zygote.start("name", argument, ...)` runs a function of this file in a fork and gives its pid.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from torch import Tensor

from wsizoo.interfaces import Encoder


class Zygote:
    """Use with `with`.

    Args:
        warm: modules that it imports before it forks.
    """

    def __init__(self, *warm: str) -> None:
        self.warm = warm or ("wsizoo.extraction.cohort",)

    def __enter__(self) -> "Zygote":
        root = Path(__file__).parents[1]
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), *self.warm],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def start(self, function: str, *arguments: object) -> int:
        """The pid of a fork that runs it."""
        return int(self._ask([function, *map(str, arguments)]))

    def ended(self, pid: int) -> int | None:
        """Exit status as of `os.waitstatus_to_exitcode`, or None while it runs."""
        told = self._ask(["ended?", str(pid)])
        return None if told == "no" else int(told)

    def wait(self, pid: int, seconds: float = 120) -> int:
        """Its exit status."""
        last = time.monotonic() + seconds
        while (code := self.ended(pid)) is None:
            assert time.monotonic() < last, "it hangs"
            time.sleep(0.01)
        return code

    def kill(self, pid: int) -> None:
        """Kill it outright; waits until it is gone."""
        os.kill(pid, signal.SIGKILL)
        self.wait(pid)

    def _ask(self, call: list[str]) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(call) + "\n")
        answer = self.process.stdout.readline().strip()
        assert answer, "the zygote died"
        return answer


def answer(told: object) -> None:
    sys.stdout.write(f"{told}\n")
    sys.stdout.flush()


def serve() -> None:
    for module in sys.argv[1:]:
        importlib.import_module(module)
    codes: dict[int, int] = {}
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        if name == "ended?":
            pid = int(arguments[0])
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            answer(codes.get(pid, "no"))
        elif pid := os.fork():
            answer(pid)
        else:
            sys.stdin.close()
            os.dup2(2, 1)
            globals()[name](*arguments)
            os._exit(0)


class Slow(Encoder):
    """Mean colours, after some seconds; or the death of its process, where they are negative."""

    name, dim, mpp, patch_size, preprocessing = "slow", 3, 0.5, 64, "mean"

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, patches: Tensor) -> Tensor:
        if self.seconds < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        return patches.float().mean((2, 3))


def extract_slowly(slides: str, out: str, seconds: str, workers: str = "1") -> None:
    """Features of mean colours, `seconds` a batch, every stretch saved at once."""
    from wsizoo.extraction.cohort import extract
    from wsizoo.slides import partial
    from wsizoo.slides.extract import Request

    partial.PART_SECONDS = 0.0
    request = Request(batch_size=8)
    results = extract(slides, Slow(float(seconds)), out, request=request, workers=int(workers))
    os._exit(1 if any(result.state == "failed" for result in results) else 0)


def train_run(config: str, out: str) -> None:
    """A run of a config, on one thread."""
    import torch

    from wsizoo.train.config import load_config
    from wsizoo.train.run import run_training

    torch.set_num_threads(1)
    run_training(load_config(config), out)


def hold(out: str, flag: str) -> None:
    """Hold the parts of a feature file until killed."""
    from wsizoo.slides.partial import partial

    with partial(Path(out), {"mpp": 0.5, "cells": [1, 2]}):
        Path(flag).write_text("held")
        time.sleep(60)


def report_five(out: str, job: str) -> None:
    """Five reports of a slide each."""
    from wsizoo.extraction.job import Extracted
    from wsizoo.extraction.report import write_report

    for i in range(5):
        name = f"{job}-{i}"
        write_report(Path(out), [Extracted(name, Path(name), Path(name), "done", 9)])


if __name__ == "__main__":
    serve()
