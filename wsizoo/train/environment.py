"""What a run was made with, and what it took."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from typing import Any

import torch

import wsizoo
from wsizoo.registry import Registry

LIBRARIES = ("torch", "numpy", "scipy", "h5py", "lightning-fabric", "scikit-learn", "lifelines")
MB = 1024 * 1024


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


def peaks() -> dict[str, float]:
    """Most memory that this process has held so far: `peak_mb`, and `gpu_peak_mb` where used; MiB.

    `peak_mb` is missing where the system does not tell (Windows).
    """
    found = {}
    if sys.platform != "win32":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["peak_mb"] = peak / MB if sys.platform == "darwin" else peak / 1024
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        found["gpu_peak_mb"] = torch.cuda.max_memory_allocated() / MB
    return {name: round(value, 1) for name, value in found.items()}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
