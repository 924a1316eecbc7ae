"""What a run was made with, and what it took."""

from __future__ import annotations

import contextlib
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import wsizoo
from wsizoo.registry import Registry

LIBRARIES = ("torch", "numpy", "scipy", "h5py", "lightning-fabric", "scikit-learn", "lifelines")
MB = 1024 * 1024
PROCESS = Path("/proc/self")  # Linux


def environment(registry: Registry) -> dict[str, Any]:
    """Versions, plugins and machine, as environment.json holds them."""
    plugins = {found.distribution: found.version for found in registry.plugins.working()}
    return {
        "python": platform.python_version(),
        "wsizoo": wsizoo.__version__,
        "libraries": {name: _version(name) for name in LIBRARIES},
        "plugins": {name: version for name, version in plugins.items() if name != "wsizoo"},
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def forget_peaks() -> None:
    """Begin anew with `peaks`: of what this process did before it then tells nothing.

    Source: proc(5), "Writing 5 ... resets the peak resident set size", of /proc/pid/clear_refs.
    """
    with contextlib.suppress(OSError):  # not on Linux, or not allowed: the whole process counts
        (PROCESS / "clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peaks() -> dict[str, float]:
    """Most memory that this process held since `forget_peaks`, MiB.

    `peak_mb`: since its start where the system cannot forget (macOS), missing where it does not
    tell (Windows). `gpu_peak_mb` where a GPU was used.
    """
    found = {}
    if (PROCESS / "status").exists():
        told = dict(line.split(":", 1) for line in (PROCESS / "status").read_text().splitlines())
        found["peak_mb"] = int(told["VmHWM"].split()[0]) / 1024  # kB
    elif sys.platform == "darwin":
        import resource

        found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB  # bytes
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        found["gpu_peak_mb"] = torch.cuda.max_memory_allocated() / MB
    return {name: round(value, 1) for name, value in found.items()}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
