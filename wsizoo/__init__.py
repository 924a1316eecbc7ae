"""wsizoo: a zoo of whole-slide pathology models.

Every model is a named composition encoder -> selector -> aggregator -> head. Public names resolve
on first use: importing wsizoo imports neither torch nor any plugin.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "Aggregated": "wsizoo.interfaces",
    "Aggregator": "wsizoo.interfaces",
    "Bag": "wsizoo.bag",
    "BagBatch": "wsizoo.bag",
    "Component": "wsizoo.hookspecs",
    "Encoder": "wsizoo.interfaces",
    "Fingerprint": "wsizoo.fingerprint",
    "Head": "wsizoo.interfaces",
    "OpBackend": "wsizoo.hookspecs",
    "Prediction": "wsizoo.interfaces",
    "Selected": "wsizoo.interfaces",
    "Selector": "wsizoo.interfaces",
    "SlideModel": "wsizoo.model",
    "SlideOutput": "wsizoo.interfaces",
    "WsizooError": "wsizoo.errors",
    "adapt": "wsizoo.zoo",
    "build": "wsizoo.zoo",
    "extract": "wsizoo.extraction",
    "hookimpl": "wsizoo.hookspecs",
    "list_models": "wsizoo.catalogue",
    "load": "wsizoo.zoo",
    "load_encoder": "wsizoo.zoo",
    "open_slide": "wsizoo.slides.reader",
    "pin": "wsizoo.pins",
    "predict": "wsizoo.inference",
    "push": "wsizoo.publish",
    "read_bag": "wsizoo.slides.store",
    "save": "wsizoo.publish",
    "show": "wsizoo.catalogue",
    "use_backend": "wsizoo.ops",
    "verify": "wsizoo.publish",
    "write_bag": "wsizoo.slides.store",
}

if TYPE_CHECKING:
    from wsizoo.bag import Bag, BagBatch
    from wsizoo.catalogue import list_models, show
    from wsizoo.errors import WsizooError
    from wsizoo.extraction import extract
    from wsizoo.fingerprint import Fingerprint
    from wsizoo.hookspecs import Component, OpBackend, hookimpl
    from wsizoo.inference import predict
    from wsizoo.interfaces import (
        Aggregated,
        Aggregator,
        Encoder,
        Head,
        Prediction,
        Selected,
        Selector,
        SlideOutput,
    )
    from wsizoo.model import SlideModel
    from wsizoo.ops import use_backend
    from wsizoo.pins import pin
    from wsizoo.publish import push, save, verify
    from wsizoo.slides.reader import open_slide
    from wsizoo.slides.store import read_bag, write_bag
    from wsizoo.zoo import adapt, build, load, load_encoder


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'wsizoo' has no attribute '{name}'")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


__all__ = [
    "Aggregated",
    "Aggregator",
    "Bag",
    "BagBatch",
    "Component",
    "Encoder",
    "Fingerprint",
    "Head",
    "OpBackend",
    "Prediction",
    "Selected",
    "Selector",
    "SlideModel",
    "SlideOutput",
    "WsizooError",
    "__version__",
    "adapt",
    "build",
    "extract",
    "hookimpl",
    "list_models",
    "load",
    "load_encoder",
    "open_slide",
    "pin",
    "predict",
    "push",
    "read_bag",
    "save",
    "show",
    "use_backend",
    "verify",
    "write_bag",
]
