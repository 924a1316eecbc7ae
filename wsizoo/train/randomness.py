"""Random numbers that depend on the epoch and the slide alone, not on what was drawn before.

So nothing random has to be kept for a training that goes on after a kill, and neither the number of
processes nor that of reading threads changes a number.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from enum import IntEnum

import numpy as np
import torch


class For(IntEnum):
    """What random numbers are for; each has its own."""

    START = 0
    ORDER = 1
    READING = 2
    PASS = 3
    AFTER_STEP = 4


def seed_for(seed: int, what: For, *where: int) -> int:
    """32 bits out of the run's seed and a place in it.

    Source: numpy.random.SeedSequence, which hashes its words so that near ones are not alike.
    """
    return int(np.random.SeedSequence([seed, what, *where]).generate_state(1)[0])


def generator_for(seed: int, what: For, *where: int) -> torch.Generator:
    """A generator of its own, on the CPU."""
    return torch.Generator().manual_seed(seed_for(seed, what, *where))


def seed_all(seed: int, what: For, *where: int) -> None:
    """Seed the global generators of torch (all devices), numpy and Python."""
    value = seed_for(seed, what, *where)
    random.seed(value)
    np.random.seed(value)
    # not torch.manual_seed: where no GPU is in use it formats a stack trace, which takes 0.5 ms
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(value)


@contextlib.contextmanager
def random_states_kept() -> Iterator[None]:
    """What happens inside leaves the global generators as they were."""
    python, numbers = random.getstate(), np.random.get_state()
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if used else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
