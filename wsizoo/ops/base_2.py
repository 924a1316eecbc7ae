"""What the two engines of `grid_attention` share: a softmax in base 2, in parts, and its dropout.

On a CPU `exp2` is several times faster than `exp`, so scores are log2(e) times as large, and what
is kept of a token's weights is the log2 of the sum of exp2 of its scores.

Two engines stay because neither can do the other's work:

- `blocked` runs equal small blocks, all places of a window, many in one batched product. A cell
  holds one token, and places where nobody is are computed too, which is little in a window. A disk
  is no union of such blocks, and its tokens may share a cell.
- `striped` runs one product after another, of many queries with a slice of keys that is as long as
  needed. In windows most of a slice would be of others' windows, computed for nothing.

Their softmax is put together differently too: `blocked` meets a token's further keys after its rows
of output are written, so it merges finished parts by their log-sum-exp; `striped` meets all of them
in a row, so it merges sums and divides once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from wsizoo.ops.draws import Draws
from wsizoo.ops.grid_attention import OffsetBias, check_attention
from wsizoo.ops.memory import scratch
from wsizoo.ops.neighbourhoods import Neighbourhood

LOG2_E, LN_2 = math.log2(math.e), math.log(2)
NEVER = -1e30  # a score that no other comes near; exp2 is slow on -inf
NOBODY = -1e29  # a log-sum-exp below it: no key at all


def run(
    function: type[torch.autograd.Function],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    neighbourhood: Neighbourhood,
    bias: Tensor | OffsetBias | None,
    dropout: float,
) -> Tensor:
    """`grid_attention` by a function of these arguments, in the dtype of q, k and v."""
    check_attention(q, k, v, neighbourhood, bias)
    apply: Any = function.apply
    with torch.autocast(q.device.type, enabled=False):
        attended: Tensor = apply(q, k, v, neighbourhood, bias, dropout)
    return attended


def wide(values: Tensor) -> Tensor:
    """At least float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def keep_mask(like: Tensor, dropout: float, generator: torch.Generator | None = None) -> Tensor:
    """A bool mask of this shape, False with probability `dropout` to 1.5e-5."""
    kept = scratch(*like.shape, like=like.new_empty(0, dtype=torch.bool))
    return Draws(dropout, generator).into(kept)
