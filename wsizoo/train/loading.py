"""Slides read ahead by threads, in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from wsizoo.bag import Bag

Augment = Callable[[Bag, torch.Generator, float], Bag]


class Slides(Protocol):
    """Slides with their targets, read when asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Bag: ...
