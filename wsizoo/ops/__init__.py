"""Ops that several methods share: a plain torch reference each, and faster backends as data."""

from wsizoo.ops._dispatch import (
    Op,
    listening,
    ops,
    under_torch_func,
    use_backend,
    wished_backend,
)
from wsizoo.ops.attention import attention
from wsizoo.ops.attention_scores import attention_scores
from wsizoo.ops.causal_conv1d import causal_conv1d
from wsizoo.ops.disks import Disk, Everywhere
from wsizoo.ops.dropout import Dropout
from wsizoo.ops.grid_attention import OffsetBias, attention_weights, grid_attention
from wsizoo.ops.hard_topk import hard_topk
from wsizoo.ops.memory import scratch, side_by_side
from wsizoo.ops.neighbourhoods import Neighbourhood, Windows
from wsizoo.ops.positions import ROTARY_BASE, Turns, alibi_slopes, rotary_turns, rotate
from wsizoo.ops.products import chunks, outer, product, stacked
from wsizoo.ops.rows import RowLinear, RowSequential, map_rows, observed, row_linear, row_relu
from wsizoo.ops.rulebook import Grids, Rulebook, children, rulebook, transpose_rulebook
from wsizoo.ops.segment import (
    segment_max,
    segment_mean,
    segment_pool,
    segment_softmax,
    segment_sum,
)
from wsizoo.ops.selective_scan import selective_scan
from wsizoo.ops.soft_topk import SoftTopk, soft_topk
from wsizoo.ops.sparse_conv import (
    patch_merge,
    pixel_shuffle,
    pixel_shuffle_linear,
    sparse_conv2d,
    sparse_conv_transpose2d,
)

__all__ = [
    "ROTARY_BASE",
    "Disk",
    "Dropout",
    "Everywhere",
    "Grids",
    "Neighbourhood",
    "OffsetBias",
    "Op",
    "RowLinear",
    "RowSequential",
    "Rulebook",
    "SoftTopk",
    "Turns",
    "Windows",
    "alibi_slopes",
    "attention",
    "attention_scores",
    "attention_weights",
    "causal_conv1d",
    "children",
    "chunks",
    "grid_attention",
    "hard_topk",
    "listening",
    "map_rows",
    "observed",
    "ops",
    "outer",
    "patch_merge",
    "pixel_shuffle",
    "pixel_shuffle_linear",
    "product",
    "rotary_turns",
    "rotate",
    "row_linear",
    "row_relu",
    "rulebook",
    "scratch",
    "segment_max",
    "segment_mean",
    "segment_pool",
    "segment_softmax",
    "segment_sum",
    "selective_scan",
    "side_by_side",
    "soft_topk",
    "sparse_conv2d",
    "sparse_conv_transpose2d",
    "stacked",
    "transpose_rulebook",
    "under_torch_func",
    "use_backend",
    "wished_backend",
]
