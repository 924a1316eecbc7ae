"""What of a SlideVLM learns, what is kept of it, and modes that are put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn


@contextlib.contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Their parameters take no gradients inside; gradients pass through them.

    Their modes stay: transformers computes again what it did not keep in training mode alone.
    """
    learning = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def in_eval(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; every module's mode is then as it was."""
    training = [each for each in module.modules() if each.training]
    module.eval()
    try:
        yield
    finally:
        for each in training:
            each.training = True


def compute_again(lm: Any) -> None:
    """Let a language model, in training mode, keep less for the backward, and compute it again."""
    named = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # newer, older
    next(getattr(lm, name) for name in named if hasattr(lm, name))()


def leave_base_out(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """A hook of `state_dict`: of the language model only what learns is kept, that is, LoRA."""
    for name in _base(module):
        state.pop(f"{prefix}lm.{name}", None)


def base_is_there(module: nn.Module, keys: Any) -> None:
    """A hook of `load_state_dict`: what `leave_base_out` leaves out is not missing."""
    base = _base(module)
    keys.missing_keys[:] = [key for key in keys.missing_keys if key.partition("lm.")[2] not in base]


def _base(module: nn.Module) -> set[str]:
    """Names of the language model's tensors that do not learn."""
    lm = module.get_submodule("lm")
    named = lm.named_parameters(remove_duplicate=False)
    buffers = {name for name, _ in lm.named_buffers(remove_duplicate=False)}
    return buffers | {name for name, p in named if not p.requires_grad}
