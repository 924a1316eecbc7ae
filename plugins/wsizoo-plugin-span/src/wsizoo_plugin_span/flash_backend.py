"""Backend `flash` of the grid attention: flash attention of segments of different lengths.

Tokens of one group (`Neighbourhood.groups`) share all of their keys, so that a group is a segment
and its softmax is one softmax: the keys are gathered, nothing is merged. A bias by offset goes in
exactly, through further channels of a head: a query's are a one-hot of its place in the group's
square, a key's are the bias between it and each of these places. Gradients are autograd's.

Without dropout the kernel is torch's own; that one has no dropout, flash-attn has.
Source: https://docs.pytorch.org/docs/2.12/nn.attention.varlen.html, torch 2.13;
https://github.com/Dao-AILab/flash-attention, version 2.8, `flash_attn_varlen_func`.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wsizoo.ops import Neighbourhood, OffsetBias
from wsizoo.ops.grid_attention import check_attention
from wsizoo.ops.neighbourhoods import Groups

EXTRA = "pip install 'wsizoo-plugin-span[flash-attn]'"
DEVICE = "cuda"
DTYPES = (torch.bfloat16, torch.float16)
CAPABILITY = (8, 0)  # Ampere
WIDEST = 192  # channels of a head; the backward pass for more does not run on every GPU
ALIGNED = 8  # channels
MOST_GROUPS = 65_535  # of a call: segments are a CUDA grid's second axis
NEVER = 3e4  # a bias beyond it, an infinite one too, is this one, which float16 holds


def grid_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    neighbourhood: Neighbourhood,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """As `wsizoo.ops.grid_attention`."""
    check_attention(q, k, v, neighbourhood, bias)
    groups, dim = neighbourhood.groups, q.shape[-1]
    queries, out = q.index_select(0, groups.queries), torch.zeros_like(q)
    if not len(groups):
        return out.index_copy(0, groups.queries, queries)
    keys, width = _gather(k, groups.keys), _width(q, bias, groups.side)
    if bias is not None:
        further = _channels(bias, groups, neighbourhood.reach, q, width - dim)
        queries, keys = (torch.cat(both, -1) for both in zip((queries, keys), further, strict=True))
    values = _gather(_widened(v, width), groups.keys)
    queries, keys = _widened(queries, width), _widened(keys, width)
    attended = _by_calls(queries, keys, values, groups, 1 / math.sqrt(dim), dropout)
    return out.index_copy(0, groups.queries, attended[..., :dim])


def why_not(
    q: Tensor | None = None,
    k: Tensor | None = None,
    v: Tensor | None = None,
    neighbourhood: Neighbourhood | None = None,
    bias: Tensor | OffsetBias | None = None,
    dropout: float = 0.0,
) -> str | None:
    """It needs a CUDA device from Ampere on, half precision, and tokens that share their keys."""
    if q is None or k is None or v is None or neighbourhood is None:
        return _lacking()
    return _lacking() or _unfit(q, k, v, neighbourhood, bias) or _no_dropout(dropout)


def _lacking() -> str | None:
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    if (found := torch.cuda.get_device_capability()) < CAPABILITY:
        return f"the GPU has compute capability {found}, flash attention needs {CAPABILITY}"
    if not (_torch_has_it() or _flash_attn_is_there()):
        return f"torch {torch.__version__} has no varlen attention, flash-attn has: {EXTRA}"
    return None


def _unfit(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    neighbourhood: Neighbourhood,
    bias: Tensor | OffsetBias | None,
) -> str | None:
    side = neighbourhood.group_side
    if q.device.type != DEVICE:
        return f"q is on {q.device.type}"
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        kinds = ", ".join(str(x.dtype).removeprefix("torch.") for x in (q, k, v))
        return f"q, k, v are {kinds}; flash attention takes bfloat16 or float16 (try autocast)"
    if side is None:
        return f"tokens of {type(neighbourhood).__name__} do not share their keys"
    if bias is not None and not isinstance(bias, Tensor):
        return "the bias is a function, groups take a table"
    if (width := _width(q, bias, side)) > WIDEST:
        return f"a head and its bias take {width} channels, {WIDEST} is the most"
    return None


def _no_dropout(dropout: float) -> str | None:
    if dropout and not _flash_attn_is_there():
        return f"dropout is {dropout:g}, which torch's varlen attention has not: {EXTRA}"
    return None


@functools.cache
def _torch_has_it() -> bool:
    """Whether torch's varlen attention is there and takes a scale."""
    if not torch.backends.cuda.is_flash_attention_available():
        return False
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "scale" in inspect.signature(varlen_attn).parameters


def _flash_attn_is_there() -> bool:
    return importlib.util.find_spec("flash_attn_2_cuda") is not None  # what it compiles


def _width(q: Tensor, bias: Tensor | None, side: int) -> int:
    """Channels of a head with its bias, as many as the kernel likes."""
    channels: int = q.shape[-1] + (0 if bias is None else side**2 * _parts(bias, q))
    return -(-channels // ALIGNED) * ALIGNED


def _widened(x: Tensor, width: int) -> Tensor:
    """Zeros for the channels that it lacks."""
    return x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1]))


def _gather(x: Tensor, rows: Tensor) -> Tensor:
    """(T, H, D) -> (K, H, D). Its backward sums in float32, unlike that of `index_select`."""
    return F.embedding(rows, x.flatten(1)).view(-1, *x.shape[1:])


def _parts(bias: Tensor, q: Tensor) -> int:
    """How many numbers of q's precision add up to a bias: 2 where its own is higher."""
    return 1 if bias.dtype == q.dtype else 2


def _channels(
    bias: Tensor, groups: Groups, reach: int, q: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """(Q, H, width) of queries, (K, H, width) of keys; their products are bias times sqrt(D)."""
    side, parts, root = groups.side, _parts(bias, q), math.sqrt(q.shape[-1])
    power = 2.0 ** round(math.log2(root))  # where it is the root, no bias is rounded
    place = groups.inside[:, 0] * side + groups.inside[:, 1]  # (Q,)
    one_hot = F.one_hot(place, side**2).repeat(1, parts).to(q.dtype) * power
    of_queries = _widened(one_hot, width)[:, None].expand(-1, len(bias), -1)
    # the bias between each cell around a square, a key's, and each place in it
    inside = torch.arange(side, device=bias.device)
    cells = torch.arange(-reach, side + reach, device=bias.device)  # (A,)
    at = (cells[:, None] - inside).clamp(-reach, reach) + reach  # (A, side), no key beyond
    table = bias.clamp(-NEVER, NEVER)[:, at[:, None, :, None], at[:, None, :]]  # (H, A, A, ., .)
    table = table.flatten(3).flatten(1, 2).transpose(0, 1) * (root / power)  # (A^2, H, side^2)
    channels = table.to(q.dtype)
    if parts == 2:
        channels = torch.cat([channels, (table - channels).to(q.dtype)], -1)
    around = groups.around + reach
    rows = around[:, 0] * len(cells) + around[:, 1]  # (K,)
    return of_queries, _gather(_widened(channels, width), rows)


def _by_calls(
    q: Tensor, k: Tensor, v: Tensor, groups: Groups, scale: float, dropout: float
) -> Tensor:
    """(Q, H, D) attention in each group, in as few calls as CUDA allows."""
    bounds, most = (groups.query_bounds, groups.key_bounds), (groups.side**2, groups.most_keys)
    if len(groups) <= MOST_GROUPS:
        return _attend(q, k, v, bounds, most, scale, dropout)
    cuts = [*range(0, len(groups), MOST_GROUPS), len(groups)]
    found, sizes = [], [bound[cuts].diff().tolist() for bound in bounds]
    rows = (x.split_with_sizes(n) for x, n in zip((q, k, v), (*sizes, sizes[1]), strict=True))
    for (start, end), own_q, own_k, own_v in zip(itertools.pairwise(cuts), *rows, strict=True):
        own = tuple(bound[start : end + 1] - bound[start] for bound in bounds)
        found.append(_attend(own_q, own_k, own_v, own, most, scale, dropout))
    return torch.cat(found)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: tuple[Tensor, ...],
    most: tuple[int, int],
    scale: float,
    dropout: float,
) -> Tensor:
    """The kernel: attention in each segment of queries and keys."""
    attended: Tensor
    if dropout or not _torch_has_it():
        flash: Any = importlib.import_module("flash_attn")
        attended = flash.flash_attn_varlen_func(
            q, k, v, *bounds, *most, dropout_p=dropout, softmax_scale=scale
        )
    else:
        varlen: Any = importlib.import_module("torch.nn.attention.varlen")
        attended = varlen.varlen_attn(q, k, v, *bounds, *most, scale=scale)
    return attended
