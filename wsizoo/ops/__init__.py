"""Ops that several methods share: a plain torch reference each, and faster backends as data."""

from wsizoo.ops._dispatch import Op, ops, use_backend
from wsizoo.ops.grid_attention import grid_attention
from wsizoo.ops.memory import scratch
from wsizoo.ops.neighbourhoods import Neighbourhood, Windows
from wsizoo.ops.segment import segment_max, segment_mean, segment_softmax, segment_sum

__all__ = [
    "Neighbourhood",
    "Op",
    "Windows",
    "grid_attention",
    "ops",
    "scratch",
    "segment_max",
    "segment_mean",
    "segment_softmax",
    "segment_sum",
    "use_backend",
]
