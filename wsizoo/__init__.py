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
    "Part": "wsizoo.interfaces",
    "Prediction": "wsizoo.interfaces",
    "ScoredSelector": "wsizoo.selection",
    "Selected": "wsizoo.interfaces",
    "Selector": "wsizoo.interfaces",
    "SlideModel": "wsizoo.model",
    "SlideOutput": "wsizoo.interfaces",
    "SoftSelector": "wsizoo.selection",
    "WeightFormat": "wsizoo.hookspecs",
    "WeightLayout": "wsizoo.weight_formats",
    "WholeModel": "wsizoo.interfaces",
    "WsizooError": "wsizoo.errors",
    "adapt": "wsizoo.zoo",
    "build": "wsizoo.zoo",
    "extract": "wsizoo.extraction.cohort",
    "hookimpl": "wsizoo.hookspecs",
    "list_models": "wsizoo.catalogue",
    "load": "wsizoo.zoo",
    "load_encoder": "wsizoo.encoders.loading",
    "open_slide": "wsizoo.slides.reader",
    "pin": "wsizoo.pins",
    "predict": "wsizoo.inference",
    "push": "wsizoo.publish",
    "read_bag": "wsizoo.formats.read",
    "read_classes": "wsizoo.viz.classes",
    "read_weights": "wsizoo.conversion",
    "save": "wsizoo.publish",
    "show": "wsizoo.catalogue",
    "use_backend": "wsizoo.ops",
    "verify": "wsizoo.publish",
    "write_bag": "wsizoo.slides.store",
    "write_weights": "wsizoo.conversion",
}

if TYPE_CHECKING:
    from wsizoo.bag import Bag as Bag
    from wsizoo.bag import BagBatch as BagBatch
    from wsizoo.catalogue import list_models as list_models
    from wsizoo.catalogue import show as show
    from wsizoo.conversion import read_weights as read_weights
    from wsizoo.conversion import write_weights as write_weights
    from wsizoo.encoders.loading import load_encoder as load_encoder
    from wsizoo.errors import WsizooError as WsizooError
    from wsizoo.extraction.cohort import extract as extract
    from wsizoo.fingerprint import Fingerprint as Fingerprint
    from wsizoo.formats.read import read_bag as read_bag
    from wsizoo.hookspecs import Component as Component
    from wsizoo.hookspecs import OpBackend as OpBackend
    from wsizoo.hookspecs import WeightFormat as WeightFormat
    from wsizoo.hookspecs import hookimpl as hookimpl
    from wsizoo.inference import predict as predict
    from wsizoo.interfaces import Aggregated as Aggregated
    from wsizoo.interfaces import Aggregator as Aggregator
    from wsizoo.interfaces import Encoder as Encoder
    from wsizoo.interfaces import Head as Head
    from wsizoo.interfaces import Part as Part
    from wsizoo.interfaces import Prediction as Prediction
    from wsizoo.interfaces import Selected as Selected
    from wsizoo.interfaces import Selector as Selector
    from wsizoo.interfaces import SlideOutput as SlideOutput
    from wsizoo.interfaces import WholeModel as WholeModel
    from wsizoo.model import SlideModel as SlideModel
    from wsizoo.ops import use_backend as use_backend
    from wsizoo.pins import pin as pin
    from wsizoo.publish import push as push
    from wsizoo.publish import save as save
    from wsizoo.publish import verify as verify
    from wsizoo.selection import ScoredSelector as ScoredSelector
    from wsizoo.selection import SoftSelector as SoftSelector
    from wsizoo.slides.reader import open_slide as open_slide
    from wsizoo.slides.store import write_bag as write_bag
    from wsizoo.viz.classes import read_classes as read_classes
    from wsizoo.weight_formats import WeightLayout as WeightLayout
    from wsizoo.zoo import adapt as adapt
    from wsizoo.zoo import build as build
    from wsizoo.zoo import load as load


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'wsizoo' has no attribute '{name}'")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


__all__ = sorted({*_PUBLIC, "__version__"})  # noqa: PLE0605
