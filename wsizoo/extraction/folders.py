"""What must hold before the first slide: a folder to write into, a device."""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from wsizoo.errors import BackendError, DataError
from wsizoo.files import is_alive

if TYPE_CHECKING:
    import torch

TEMPORARY = re.compile(r"^\..+\.tmp-(\d+)$")
STALE_AFTER = 3600.0  # s; for files of another computer, whose processes are not seen


def check_device(device: torch.device | str | None) -> None:
    """Raise BackendError unless tensors can be made on it; None: on the default one."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise BackendError(
            f"device '{device}' cannot be used here: {first} See: wsizoo doctor"
        ) from error


def check_writable(folder: Path) -> None:
    """Make a folder, and clear it of what killed processes left.

    Raises:
        DataError: it cannot be made, or not written into.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"The output folder '{folder}' cannot be made: {error}") from error
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(
            f"The output folder '{folder}' cannot be written into ({error.strerror}); choose "
            "another with -o"
        ) from error
    remove_stale(folder)


def remove_stale(folder: Path) -> list[Path]:
    """Remove temporary files of processes that are gone, an hour after they were last written.

    Returns:
        What was removed.
    """
    removed = []
    for file in folder.iterdir():
        match = TEMPORARY.match(file.name)
        if not match or is_alive(int(match[1])):
            continue
        with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):
            if time.time() - file.stat().st_mtime > STALE_AFTER:
                file.unlink()
                removed.append(file)
    return removed
