"""Which part of a cohort this job does, where several share it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from wsizoo.errors import DataError

T = TypeVar("T")
SLURM = "SLURM_ARRAY_TASK_"


@dataclass(frozen=True)
class Shard:
    """Every n-th slide, beginning with one that `index` chooses.

    Jobs may count from 0 to n - 1 or from 1 to n, as long as all count alike: n is taken as 0.
    """

    index: int
    n: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From `i/n`. Raises DataError."""
        match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        index, n = map(int, match.groups()) if match else (0, 0)
        if not n >= 1 or index > n:
            raise DataError(
                f"--shard '{text}': expected i/n, such as 3/16: the third of sixteen parts"
            )
        return cls(index, n)

    @classmethod
    def of_slurm(cls, environment: Mapping[str, str] | None = None) -> Shard | None:
        """From the variables of a SLURM array job; None outside of one.

        Raises:
            DataError: an array with holes, of which the place of this task is not known.
        """
        told = os.environ if environment is None else environment
        if f"{SLURM}ID" not in told:
            return None
        try:
            task, first, n, step = (
                int(told.get(f"{SLURM}{name}", otherwise))
                for name, otherwise in (("ID", ""), ("MIN", "0"), ("COUNT", ""), ("STEP", "1"))
            )
            index, rest = divmod(task - first, step)
        except (ValueError, ZeroDivisionError) as error:
            raise DataError(
                f"{SLURM}ID is '{told[f'{SLURM}ID']}', but {SLURM}COUNT or MIN is no number; say "
                "which part this job does: --shard i/n"
            ) from error
        if rest or not 0 <= index < n or (n == 1 and first > 1):
            raise DataError(
                f"task {task} of a SLURM array of {n} that begins with {first}: its place among "
                "all is not known, as the array has holes or is one task repeated. Say which part "
                "it does: --shard i/n, or 0/1 for all slides"
            )
        return cls(index, n)

    def of(self, items: Sequence[T]) -> list[T]:
        """This job's items: all shards together have each once."""
        return list(items[self.index % self.n :: self.n])

    def __str__(self) -> str:
        return f"{self.index}/{self.n}"
