"""Backend `spconv` of the sparse convolutions: its native algorithm on the pairs of our rulebook.

Differs from spconv's own layers: coordinates are ours, so that there is no hash table, no int32 key
of a cell, and output cells come in raster order.
Source: https://github.com/traveller59/spconv, version 2.3.8, `spconv.pytorch.functional`.
"""

from __future__ import annotations

import importlib.util
import weakref
from typing import Any

import torch
from torch import Tensor

from wsizoo.ops import Rulebook
from wsizoo.ops.sparse_conv import conv_taps, make_up, transpose_taps

EXTRA = "pip install 'wsizoo-plugin-span[spconv-cu124]' (or -cu126, -cu120)"
DEVICE = "cuda"
DTYPES = (torch.float32, torch.float16)
_known: weakref.WeakKeyDictionary[Rulebook, tuple[Tensor, Tensor]] = weakref.WeakKeyDictionary()


def sparse_conv2d(
    x: Tensor,
    weight: Tensor,
    rulebook: Rulebook,
    bias: Tensor | None = None,
    edge: str = "none",
    edge_eps: float = 1e-6,
    bias_after_edge: bool = False,
) -> Tensor:
    """As `wsizoo.ops.sparse_conv2d`."""
    from spconv.pytorch.functional import indice_conv

    taps = conv_taps(x, weight, rulebook, bias)
    total = _run(indice_conv, x, taps, rulebook, len(rulebook.out_cells))
    total = make_up(total, weight, rulebook, bias, edge, edge_eps, bias_after_edge)
    return total.to(x.dtype)


def sparse_conv_transpose2d(
    x: Tensor, weight: Tensor, rulebook: Rulebook, bias: Tensor | None = None, groups: int = 1
) -> Tensor:
    """As `wsizoo.ops.sparse_conv_transpose2d`."""
    from spconv.pytorch.functional import indice_inverse_conv

    taps = transpose_taps(x, weight, rulebook, bias, groups)
    total = _run(indice_inverse_conv, x, taps, rulebook, len(rulebook.cells))
    return (total if bias is None else total + bias).to(x.dtype)


def why_not_conv(
    x: Tensor | None = None,
    weight: Tensor | None = None,
    rulebook: Rulebook | None = None,
    *_: Any,
    **__: Any,
) -> str | None:
    """It needs spconv, a CUDA device, and all channels in one group."""
    if x is None or weight is None or rulebook is None:
        return _lacking()
    groups = 1 if weight.shape[1:2] == x.shape[1:] else 2
    return _lacking() or _unfit(x, rulebook, groups)


def why_not_transpose(
    x: Tensor | None = None,
    weight: Tensor | None = None,
    rulebook: Rulebook | None = None,
    bias: Tensor | None = None,
    groups: int = 1,
) -> str | None:
    """As `why_not_conv`."""
    if x is None or rulebook is None:
        return _lacking()
    return _lacking() or _unfit(x, rulebook, groups)


def _lacking() -> str | None:
    if importlib.util.find_spec("spconv") is None:
        return f"spconv is not installed: {EXTRA}"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    from spconv.cppconstants import CPU_ONLY_BUILD

    return f"spconv is its build for CPUs: {EXTRA}" if CPU_ONLY_BUILD else None


def _unfit(x: Tensor, rulebook: Rulebook, groups: int) -> str | None:
    if x.device.type != DEVICE:
        return f"x is on {x.device.type}"
    if x.dtype not in DTYPES:
        return f"x is {str(x.dtype).removeprefix('torch.')}, spconv takes float32 and float16"
    if groups != 1:
        return "spconv has no groups"
    if not any(len(inputs) for inputs, _ in rulebook.pairs):
        return "no cell lies under a kernel"
    return None


def _run(convolve: Any, x: Tensor, taps: Tensor, rulebook: Rulebook, n: int) -> Tensor:
    """(N, C_in), (k^2, 1, C_in, C_out) -> (n, C_out)."""
    from spconv.core import ConvAlgo

    filters = taps.permute(3, 0, 1, 2).contiguous().to(x.dtype)  # (C_out, k^2, 1, C_in)
    with torch.autocast(x.device.type, enabled=False):
        total: Tensor = convolve(x, filters, *_indices(rulebook), n, ConvAlgo.Native)
    return total


def _indices(rulebook: Rulebook) -> tuple[Tensor, Tensor]:
    """The pairs in the layout of spconv: (2, k^2, most) int32, then -1; and (k^2,) how many."""
    if rulebook not in _known:
        sizes = [len(inputs) for inputs, _ in rulebook.pairs]
        shape = 2, len(sizes), max(sizes)
        indices = torch.full(shape, -1, dtype=torch.int32, device=rulebook.cells.device)
        for p, (inputs, outputs) in enumerate(rulebook.pairs):
            indices[0, p, : sizes[p]], indices[1, p, : sizes[p]] = inputs, outputs
        numbers = torch.tensor(sizes, dtype=torch.int32, device=indices.device)
        _known[rulebook] = indices, numbers
    return _known[rulebook]
