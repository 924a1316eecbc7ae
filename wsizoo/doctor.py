"""What works on this machine: devices, readers, encoders, op backends, extras, plugins, the Hub."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass

from wsizoo.errors import WsizooError
from wsizoo.registry import Registry, default

CORE = (
    "torch",
    "numpy",
    "scipy",
    "h5py",
    "openslide",
    "tifffile",
    "PIL",
    "safetensors",
    "huggingface_hub",
)
EXTRAS = {
    "encoders": ("timm", "transformers"),
    "tiff": ("imagecodecs",),
    "train": ("lightning_fabric", "sklearn", "lifelines"),
    "report": ("matplotlib",),
}


@dataclass(frozen=True)
class Finding:
    """One thing that works or does not.

    Args:
        area: heading. needed: the core does not work without it. remedy: what to type.
    """

    area: str
    name: str
    works: bool
    detail: str = ""
    remedy: str = ""
    needed: bool = False


def diagnose(access: bool = False, registry: Registry | None = None) -> list[Finding]:
    """Look at everything; never raises for what it finds.

    Args:
        access: also ask the Hub about each gated repository (network).
    """
    registry = registry or default()
    findings = [*_core(), *_devices(), *_extras(), *_encoders(registry), *_backends()]
    return [
        *findings,
        *_plugins(registry),
        *_weights(registry),
        *(_access(registry) if access else ()),
    ]


def _core() -> Iterator[Finding]:
    yield Finding("Python", platform.python_version(), True, platform.platform())
    for module in CORE:
        try:
            importlib.import_module(module)
        except Exception as error:
            yield Finding(
                "Core",
                module,
                False,
                str(error),
                "pip install --force-reinstall wsizoo",
                needed=True,
            )
        else:
            yield Finding("Core", module, True, _version(module), needed=True)


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding(
        "Devices", "cpu", True, f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    )
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield Finding("Devices", f"cuda:{index}", True, torch.cuda.get_device_name(index))
    else:
        built = torch.version.cuda
        why = "no CUDA device" if built else "this torch is built for the CPU only"
        yield Finding("Devices", "cuda", False, f"{why}; everything runs on the CPU")


def _extras() -> Iterator[Finding]:
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        detail = f"missing {', '.join(missing)}" if missing else ", ".join(modules)
        remedy = f'pip install "wsizoo[{extra}]"' if missing else ""
        yield Finding("Extras", extra, not missing, detail, remedy)


def _encoders(registry: Registry) -> Iterator[Finding]:
    from wsizoo.zoo import load_encoder

    for name, entry in sorted(registry.encoders.items()):
        if not entry.record.get("component"):
            yield Finding("Encoders", name, False, "its features can be read, not computed, here")
            continue
        try:
            encoder = load_encoder(name, registry)
        except WsizooError as error:
            yield Finding("Encoders", name, False, str(error))
        else:
            scale = f"{encoder.dim} features, {encoder.patch_size} px at {encoder.mpp} um/px"
            yield Finding("Encoders", name, True, scale)


def _backends() -> Iterator[Finding]:
    from wsizoo.ops import ops

    for op in ops().values():
        yield Finding("Op backends", f"{op.name}: reference", True, "plain torch, any device")
        for backend in op.backends():
            try:
                reason = op.why_not(backend)
            except Exception as error:
                reason = str(error)
            yield Finding("Op backends", f"{op.name}: {backend.name}", reason is None, reason or "")


def _plugins(registry: Registry) -> Iterator[Finding]:
    for plugin in registry.plugins.all:
        detail = plugin.reason or f"{len(plugin.components)} parts"
        yield Finding("Plugins", plugin.distribution, plugin.works, detail)


def _weights(registry: Registry) -> Iterator[Finding]:
    from huggingface_hub import constants, get_token

    offline = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
    yield Finding("Hub", "endpoint", True, constants.ENDPOINT + offline)
    yield Finding("Hub", "cache", True, str(constants.HF_HUB_CACHE))
    token = get_token() is not None
    yield Finding(
        "Hub",
        "token",
        token,
        "found" if token else "none",
        "" if token else "hf auth login (gated weights)",
    )


def _access(registry: Registry) -> Iterator[Finding]:
    from wsizoo.hub import hub_access

    gated = {
        e.record["repo"]: name for name, e in registry.encoders.items() if e.record.get("gated")
    }
    for repo, name in sorted(gated.items()):
        try:
            hub_access(repo)
        except WsizooError as error:
            yield Finding("Access", name, False, str(error))
        else:
            yield Finding("Access", name, True, repo)


def _version(module: str) -> str:
    names = {"openslide": "openslide-python", "PIL": "pillow"}
    try:
        return importlib.metadata.version(names.get(module, module))
    except importlib.metadata.PackageNotFoundError:
        return ""
