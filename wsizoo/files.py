"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import platform
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsizoo.errors import DataError, WeightsError


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary name beside `path`; on success it is flushed to disk and renamed to it.

    The temporary name is one writer's alone, also on a shared disk, and ends in `.tmp-<pid>`; the
    file is removed when the block raises.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(folder: Path | str) -> Iterator[Path]:
    """The same for a folder: its new content replaces the old one, which is kept until then.

    Should the process die between the two renames, the old content lies beside it, as
    `.<name>.old.<random>.tmp-<pid>`.
    """
    folder = Path(folder).resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, retired = _beside(folder), _beside(folder, ".old")
    temporary.mkdir()
    try:
        yield temporary
        _flush(temporary)
        _swap(temporary, folder, retired)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path | str, patience: float = 10.0) -> Iterator[None]:
    """One process or thread at a time changes `path`, on any system: the one that made its lock.

    A lock whose holder was killed on this computer is taken away.

    Args:
        patience: s to wait for the others.

    Raises:
        DataError: the lock is still there after that; its holder may have died elsewhere.
    """
    lock = Path(f"{path}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    last = time.monotonic() + patience
    while not _made(lock):
        if _is_orphan(lock):
            lock.unlink(missing_ok=True)
            continue
        if time.monotonic() > last:
            raise DataError(
                f"{lock} is held by another process. If none is running, delete that file"
            )
        time.sleep(0.02)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _made(lock: Path) -> bool:
    try:
        file = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    except PermissionError:
        if os.name != "nt":  # there: one that is being deleted
            raise
        return False
    try:
        os.write(file, f"{os.getpid()} {platform.node()}".encode())
    except OSError:  # a full disk: the lock holds, but nobody will know whose it is
        pass
    finally:
        os.close(file)
    return True


def _is_orphan(lock: Path) -> bool:
    try:
        pid, _, node = lock.read_text(encoding="utf-8", errors="replace").partition(" ")
    except OSError:
        return False
    return pid.isdecimal() and node == platform.node() and not is_alive(int(pid))


def is_alive(pid: int) -> bool:
    """Whether a process of this computer is running; where that cannot be asked, it is."""
    if os.name != "posix":
        return True  # not to be asked there without ending the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _beside(path: Path, what: str = "") -> Path:
    return path.with_name(f".{path.name}{what}.{secrets.token_hex(4)}.tmp-{os.getpid()}")


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())


def _swap(new: Path, folder: Path, retired: Path) -> None:
    """Rename `new` to `folder`; what was there goes only when that has worked."""
    if not folder.exists():
        os.rename(new, folder)
        return
    os.rename(folder, retired)
    try:
        os.rename(new, folder)
    except BaseException:
        os.rename(retired, folder)
        raise
    shutil.rmtree(retired, ignore_errors=True)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text, complete or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write indented JSON, complete or not at all; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, sort_keys=False, allow_nan=False) + "\n")


def write_csv(path: Path | str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """One row a mapping; a missing value is an empty cell, an unknown column an error."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def sha256_of(path: Path | str) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_safetensors(path: Path | str) -> None:
    """Raise WeightsError unless a file is named as safetensors, the one format that is read."""
    if not str(path).endswith(".safetensors"):
        raise WeightsError(
            f"{path} is not safetensors, the only format of weights that wsizoo reads (others can "
            "hold code). Ask its publisher for model.safetensors"
        )
