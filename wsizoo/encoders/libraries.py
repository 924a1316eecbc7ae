"""timm and transformers, imported where they are needed; both are the extra `encoders`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

import torch

from wsizoo.errors import NotFoundError, PluginError
from wsizoo.names import describe

OPERATORS = {  # of the operators that it looks up while it is imported
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def import_library(name: str) -> Any:
    """Import timm, transformers or torchvision.

    Raises:
        NotFoundError: it is not installed. PluginError: it is, and cannot be imported.
    """
    mend_torchvision()
    try:
        return importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise NotFoundError(
                f'{name} is not installed. Install it: pip install "wsizoo[encoders]"'
            ) from error
        raise PluginError(
            f"{name} is installed but cannot be imported ({describe(error)}). Install it anew: "
            'pip install --upgrade "wsizoo[encoders]"'
        ) from error


def mend_torchvision() -> None:
    """Let torchvision be imported beside a torch that its compiled part was not built for.

    pip pairs a CPU build of torch with a CUDA build of torchvision. Its operators are then missing,
    and so `import torchvision` fails, and with it that of timm, which uses none of them. Declared
    without an implementation they let the import pass; calling one is an error.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            return  # whoever needs it meets this error again
        for operator, schema in OPERATORS.items():
            if not hasattr(torch.ops.torchvision, operator):
                torch.library.define(f"torchvision::{operator}", schema)
