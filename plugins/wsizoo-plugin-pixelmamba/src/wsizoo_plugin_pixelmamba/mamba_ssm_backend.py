"""Backend `mamba-ssm` of the scan and of the convolution before it: the published CUDA kernels.

Theirs take (batch, channels, steps) and walk forwards. Neighbouring sequences of one length are a
batch, so a call; reversed sequences are flipped. Gradients are theirs.
Source: https://github.com/state-spaces/mamba, version 2.2, `selective_scan_fn`;
https://github.com/Dao-AILab/causal-conv1d, version 1.4, `causal_conv1d_fn`.
"""

# ruff: noqa: N803 (A, B, C, D as in the paper)

from __future__ import annotations

import importlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from wsizoo.ops.causal_conv1d import check_conv
from wsizoo.ops.selective_scan import check_scan, sequence_bounds

EXTRA = "pip install 'wsizoo-plugin-pixelmamba[mamba-ssm]'"
DEVICE = "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_STATES = 256
TAPS = (2, 3, 4)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    offsets: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """As `wsizoo.ops.selective_scan`."""
    scan: Any = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    bounds = check_scan(u, delta, A, B, C, D, z, delta_bias, offsets)
    a, d, bias = (x if x is None else x.float() for x in (A, D, delta_bias))
    last = u.new_zeros(len(bounds) - 1, *A.shape, dtype=torch.float32)
    found = []
    for sequences, batch in _batches(bounds, reverse):
        own_u, own_delta, b, c = (batch(x) for x in (u, delta, B, C))
        gate = None if z is None else batch(z)
        with torch.autocast(u.device.type, enabled=False):
            y, state = scan.selective_scan_fn(
                own_u, own_delta, a, b, c, d, gate, bias, delta_softplus, return_last_state=True
            )
        found.append(_rows(y, reverse))
        last[sequences] = state.detach().float()
    return (torch.cat(found) if found else u * 0), last


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "silu",
    offsets: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    """As `wsizoo.ops.causal_conv1d`."""
    conv: Any = importlib.import_module("causal_conv1d")
    check_conv(x, weight, bias, activation, offsets)
    bounds = sequence_bounds("causal_conv1d", offsets, len(x))
    act = "silu" if activation == "silu" else None
    found = []
    for _, batch in _batches(bounds, reverse):
        y = conv.causal_conv1d_fn(batch(x), weight, bias, activation=act)
        found.append(_rows(y, reverse))
    return torch.cat(found) if found else x * 0


def why_not_scan(*args: Any, **kwargs: Any) -> str | None:
    """It needs mamba-ssm, CUDA, and rows of one dtype."""
    lacking = _lacking("mamba_ssm")
    if lacking or not (args or kwargs):
        return lacking
    given = dict(zip(("u", "delta", "A", "B", "C", "D", "z"), args, strict=False)) | kwargs
    u, a = given["u"], given["A"]
    rows = [given.get(name) for name in ("delta", "B", "C", "z")]
    if any(x is not None and x.dtype != u.dtype for x in rows):
        return "u, delta, B, C and z are not of one dtype"
    if a.ndim == 2 and a.shape[1] > MOST_STATES:
        return f"there are {a.shape[1]} states, mamba-ssm takes {MOST_STATES}"
    return _unfit(u)


def why_not_conv(
    x: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> str | None:
    """It needs causal-conv1d, CUDA, and 2 to 4 taps."""
    lacking = _lacking("causal_conv1d")
    if lacking or x is None or weight is None:
        return lacking
    if weight.ndim == 2 and weight.shape[1] not in TAPS:
        return f"there are {weight.shape[1]} taps, causal-conv1d takes 2 to 4"
    if bias is not None and bias.dtype != weight.dtype:
        return "weight and bias are not of one dtype"
    return _unfit(x) or _unfit(weight)


def _lacking(module: str) -> str | None:
    if importlib.util.find_spec(module) is None:
        return f"{module.replace('_', '-')} is not installed: {EXTRA}"
    return None if torch.cuda.is_available() else "there is no CUDA device"


def _unfit(x: Tensor) -> str | None:
    if x.device.type != DEVICE:
        return f"tensors are on {x.device.type}"
    if x.dtype not in DTYPES:
        return f"tensors are {str(x.dtype).removeprefix('torch.')}, the kernels compute in float32"
    return None


def _batches(
    bounds: list[int], reverse: bool
) -> Iterator[tuple[slice, Callable[[Tensor], Tensor]]]:
    """Neighbours of one length: which sequences, and what takes their rows (T, W) to (S, W, L)."""
    lengths = [end - start for start, end in itertools.pairwise(bounds)]
    first = 0
    for length, some in itertools.groupby(lengths):
        behind = first + len(list(some))
        if length:
            rows = slice(bounds[first], bounds[behind])

            def batch(x: Tensor, rows: slice = rows, length: int = length) -> Tensor:
                x = x[rows].unflatten(0, (-1, length))
                return (x.flip(1) if reverse else x).transpose(1, 2).contiguous()

            yield slice(first, behind), batch
        first = behind


def _rows(x: Tensor, reverse: bool) -> Tensor:
    """(S, W, L) -> (T, W)."""
    x = x.transpose(1, 2)
    return (x.flip(1) if reverse else x).flatten(0, 1)
