"""What works on this machine: devices, readers, encoders, op backends, extras, plugins, the Hub."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wsizoo.catalogue import why_not_here
from wsizoo.errors import SpecError, WsizooError
from wsizoo.names import describe
from wsizoo.registry import Registry, default

if TYPE_CHECKING:
    from wsizoo.model import SlideModel

IMPORTED_AS = {  # distributions whose module has another name
    "openslide-python": "openslide",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}
NOT_FOR_USERS = ("all", "dev")  # extras: the others together, and this project's own tools


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
    areas: dict[str, Callable[[], Iterator[Finding]]] = {
        "Core": _core,
        "Devices": _devices,
        "Extras": _extras,
        "Encoders": lambda: _encoders(registry),
        "Op backends": _backends,
        "Plugins": lambda: _plugins(registry),
        "Hub": _hub,
    }
    if access:
        areas["Access"] = lambda: _access(registry)
    return [finding for area, look in areas.items() for finding in _guarded(area, look)]


@dataclass(frozen=True)
class Plan:
    """Bytes that a process holds at most with one slide.

    Args:
        patches, patch_size: of the slide; px. forward, training: bytes, of a step of training.
    """

    patches: int
    patch_size: int
    forward: int
    training: int


def plan(name: str, slide: int | Path, *overrides: str, registry: Registry | None = None) -> Plan:
    """What memory one slide takes, before it runs.

    What this process holds with the model built (on Linux), and what the slide adds: known of
    models whose aggregator (or whole model) has `peak_bytes(patches, patch_size, training)`.

    Args:
        name, overrides: as `wsizoo.build`, without its head; or the folder of a model or run, as
            `wsizoo.load`. slide: how many patches it has; or itself, its patches counted as
            `predict` takes them; or its feature file.

    Raises:
        SpecError: the model does not say, or there are no patches. FingerprintError: a file that
        the model would refuse. Others: as `build`; of a slide as `extract`.
    """
    from wsizoo.zoo import build, load

    if isinstance(slide, int) and slide < 1:
        raise SpecError(f"a slide of {slide} patches, expected 1 or more: --patches 300")
    registry = registry or default()
    record = registry.models[name].record if name in registry.models else {}
    headless = ["head=null"] if record.get("head") else []
    if name not in registry.models and Path(name).is_dir():
        model = load(name, *overrides, registry=registry)
    else:
        model = build(name, *headless, *overrides, registry=registry)
    peak = getattr(model.aggregator or model.whole, "peak_bytes", None)
    if peak is None:
        raise SpecError(f"'{name}' does not say what memory it takes; models of pixel-mamba do")
    held = system_bytes("self/status", "VmRSS") or 0
    patches, edge = (slide, None) if isinstance(slide, int) else _patches(model, slide)
    edge = model.requires.patch_size or edge or 224
    forward, training = (held + peak(patches, edge, mode) for mode in (False, True))
    return Plan(patches, edge, forward, training)


def _patches(model: SlideModel, file: Path) -> tuple[int, int | None]:
    """How many patches a slide or a feature file has for a model, and their edge in px."""
    from wsizoo.slides.extract import Request
    from wsizoo.slides.manifest import SlideEntry
    from wsizoo.slides.store import read_header
    from wsizoo.sources import FeatureSource, Needs, is_features

    if is_features(file):
        header = read_header(file)
        names = f"'{model.name}'", f"slide '{header.facts.slide_id}'"
        model.requires.check_accepts(header.fingerprint, *names)
        return header.n, header.fingerprint.patch_size
    encoder = FeatureSource(model, file.parent, Needs(Request())).encoder()
    return encoder.count(SlideEntry(file)), encoder.patch_size


def system_bytes(file: str, key: str) -> int | None:
    """A figure of Linux's /proc, such as "meminfo", "MemAvailable"; None on other systems."""
    try:
        lines = Path("/proc", file).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), None)


def _guarded(area: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What was found until something failed, and that failure as the last finding."""
    try:
        yield from look()
    except Exception as error:
        yield Finding(area, "looking further", False, describe(error))


def _core() -> Iterator[Finding]:
    yield Finding("Python", platform.python_version(), True, platform.platform())
    for distribution in _required()[""]:
        module = _module(distribution)
        try:
            importlib.import_module(module)
        except Exception as error:
            yield Finding(
                "Core",
                module,
                False,
                describe(error),
                "pip install --force-reinstall wsizoo",
                needed=True,
            )
        else:
            version = importlib.metadata.version(distribution)
            yield Finding("Core", module, True, version, needed=True)


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
    for extra, distributions in _required().items():
        if extra in ("", *NOT_FOR_USERS):
            continue
        modules = [_module(distribution) for distribution in distributions]
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        detail = f"missing {', '.join(missing)}" if missing else ", ".join(modules)
        remedy = f'pip install "wsizoo[{extra}]"' if missing else ""
        yield Finding("Extras", extra, not missing, detail, remedy)


def _encoders(registry: Registry) -> Iterator[Finding]:
    from wsizoo.encoders.loading import why_not

    for name, entry in sorted(registry.encoders.items()):
        reason = why_not_here(entry, registry)
        if reason is None:
            try:
                reason = why_not(name, registry)
            except Exception as error:
                reason = describe(error)
        facts = entry.record
        scale = f"{facts.get('dim') or 'no'} features"
        scale += f", {facts.get('patch_size')} px at {facts.get('mpp')} um/px"
        yield Finding("Encoders", name, reason is None, reason or scale)


def _backends() -> Iterator[Finding]:
    from wsizoo.ops import ops

    for op in ops().values():
        yield Finding("Op backends", f"{op.name}: reference", True, "plain torch, any device")
        for backend in op.backends():
            try:
                reason = op.why_not(backend)
            except Exception as error:
                reason = describe(error)
            yield Finding("Op backends", f"{op.name}: {backend.name}", reason is None, reason or "")


def _plugins(registry: Registry) -> Iterator[Finding]:
    for plugin in registry.plugins.all:
        n = len(plugin.components)
        detail = plugin.reason or f"{n} part{'' if n == 1 else 's'}"
        yield Finding("Plugins", plugin.distribution, plugin.works, detail)


def _hub() -> Iterator[Finding]:
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
        e.record["repo"]: name
        for name, e in registry.encoders.items()
        if e.record.get("gated") and e.record.get("repo")
    }
    for repo, name in sorted(gated.items()):
        try:
            hub_access(repo)
        except WsizooError as error:
            yield Finding("Access", name, False, str(error))
        else:
            yield Finding("Access", name, True, repo)


def _required() -> dict[str, list[str]]:
    """Distributions that wsizoo needs by extra, as it was installed; "" is the core."""
    by_extra: dict[str, list[str]] = {"": []}
    for line in importlib.metadata.requires("wsizoo") or ():
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra == ['\"]([\w-]+)", line)
        if name and name[0] != "wsizoo":
            by_extra.setdefault(extra[1] if extra else "", []).append(name[0].lower())
    return by_extra


def _module(distribution: str) -> str:
    return IMPORTED_AS.get(distribution, distribution.replace("-", "_"))
