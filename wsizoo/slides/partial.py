"""Features of a slide that is under way, kept in parts, so that an interruption costs seconds.

Beside `SLIDE.h5` lies the folder `.SLIDE.h5.partial` while the slide is encoded: what was asked
for, and a file a finished stretch of patches. A rerun that asks for the same goes on behind the
last stretch; one that asks for something else begins anew. No name of a part is ever that of a
feature file, so nobody takes half a slide for a whole one.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsizoo.errors import DataError, SlideError
from wsizoo.files import replacing, write_json

ASKED = "asked.json"
LOCK = "lock"
PART_BYTES = 2**26  # kept in memory at the most, but for one batch
PART_SECONDS = 20.0  # of work lost at the most


@dataclass(frozen=True)
class Stretch:
    """Finished cells [first, last) of a slide.

    Args:
        index: (n,) int64, rows of the cells that could be read. features: of those, in order.
    """

    first: int
    last: int
    index: NDArray[np.int64]
    features: Tensor


class Partial:
    """The stretches of one slide, in order; see `partial`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parts: list[Path] = []
        self._waiting: list[Stretch] = []
        self._saved = time.monotonic()
        self.done = 0
        for part in sorted(folder.glob("*.npz")):
            first, last = map(int, part.stem.split("-"))
            if first == self.done and _is_whole(part):
                self._parts.append(part)
                self.done = last
            else:  # a rerun with batches of another size may have left a stretch that overlaps
                part.unlink()

    def add(self, stretch: Stretch) -> None:
        """Take the next stretch; it is on the disk some seconds later at the latest."""
        assert stretch.first == self.done
        self._waiting.append(stretch)
        self.done = stretch.last
        size = sum(s.features.numel() * s.features.element_size() for s in self._waiting)
        if size >= PART_BYTES or time.monotonic() - self._saved >= PART_SECONDS:
            self.save()

    def save(self) -> None:
        """Write what is in memory."""
        if not self._waiting:
            return
        first, last = self._waiting[0].first, self._waiting[-1].last
        index = np.concatenate([s.index for s in self._waiting])
        features = torch.cat(list(self._in_memory()) or [torch.empty(0)])
        path = self.folder / f"{first:09d}-{last:09d}.npz"
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, index=index, features=_plain(features))
        self._parts.append(path)
        self._waiting, self._saved = [], time.monotonic()

    def index(self) -> NDArray[np.int64]:
        """(N,) rows of all cells that could be read, ascending."""
        rows = [_loaded(part, "index") for part in self._parts]
        return np.concatenate([np.empty(0, np.int64), *rows, *(s.index for s in self._waiting)])

    def features(self) -> Iterator[Tensor]:
        """Their features, stretch by stretch; those of which nothing could be read are left out."""
        for part in self._parts:
            if len(_loaded(part, "index")):
                yield torch.from_numpy(_loaded(part, "features"))
        yield from self._in_memory()

    def _in_memory(self) -> Iterator[Tensor]:
        return (stretch.features for stretch in self._waiting if len(stretch.index))


@contextlib.contextmanager
def partial(out: Path, asked: Mapping[str, Any]) -> Iterator[Partial]:
    """The parts of a feature file that is to be, for one process at a time.

    They go when the block ends well, or with a SlideError (another try would fail as well); any
    other exception leaves them for the next try.

    Args:
        out: the feature file. asked: what its features depend on, as JSON.

    Raises:
        DataError: another process is at work on it, or the disk does not take it.
    """
    folder = _folder_of(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _claimed(folder, out):
            _forget_others(folder, asked)
            parts = Partial(folder)
            keep = True
            try:
                yield parts
                keep = False
            except SlideError:
                keep = False
                raise
            finally:
                if keep:
                    with contextlib.suppress(OSError):
                        parts.save()
                if not (keep and parts.done):
                    shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise DataError(f"'{out}' cannot be written: {error}") from error


def tidy(out: Path) -> None:
    """Remove the parts of a finished file, whose process died before it could."""
    folder = _folder_of(out)
    if folder.is_dir():
        with contextlib.suppress(DataError, OSError), _claimed(folder, out):
            shutil.rmtree(folder, ignore_errors=True)


def _folder_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


@contextlib.contextmanager
def _claimed(folder: Path, out: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process whatever ends it."""
    try:
        import fcntl
    except ImportError:  # Windows: two processes on one slide do the work twice, no harm
        yield
        return
    with open(folder / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"'{out}' is being made by another process now; give each its own slides: --shard"
            ) from error
        except OSError:  # a file system without locks
            pass
        yield


def _forget_others(folder: Path, asked: Mapping[str, Any]) -> None:
    """Remove parts that answer another request, and what a killed process left half."""
    text = json.loads(json.dumps(asked))
    try:
        known = json.loads((folder / ASKED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = None
    for file in folder.iterdir():
        if file.name != LOCK and (known != text or file.name.startswith(".")):
            file.unlink()
    if known != text:
        write_json(folder / ASKED, text)


def _is_whole(part: Path) -> bool:
    try:
        with zipfile.ZipFile(part) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def _loaded(part: Path, name: str) -> NDArray[Any]:
    """One array of a part; the other is not read."""
    with np.load(part, allow_pickle=False) as file:
        array: NDArray[Any] = file[name]
        return array


def _plain(features: Tensor) -> NDArray[Any]:
    """As numpy; bfloat16, which it does not know, as the float32 that holds it exactly."""
    return (features.float() if features.dtype is torch.bfloat16 else features).numpy()
