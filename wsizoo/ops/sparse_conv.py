"""Convolutions, patch merging and pixel shuffle over the occupied cells of a grid.

A cell that is not there counts as zeros. All of them read a `Rulebook`, which is built once for a
grid. Sums are taken in float32 at least; the result has the dtype of x, under autocast too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.names import suggest
from wsizoo.ops._dispatch import op
from wsizoo.ops.rulebook import Pairs, Rulebook

EDGES = ("none", "count", "partial")


@op
def sparse_conv2d(
    x: Tensor,
    weight: Tensor,
    rulebook: Rulebook,
    bias: Tensor | None = None,
    edge: str = "none",
    edge_eps: float = 1e-6,
    bias_after_edge: bool = False,
) -> Tensor:
    """Strided convolution over occupied cells, at the output cells of the rulebook.

    `patch_merge` followed by a Linear is this convolution too: see its weight (C_out, k^2 C) as
    (C_out, k, k, C), permute it to (C_out, C, k, k), and add the bias after the edge.

    Args:
        x: (T, C_in), rows as `rulebook.cells`.
        weight: (C_out, C_in / groups, k, k), as of a dense convolution. bias: (C_out,).
        edge: what makes up for missing cells. "none": nothing. "count": the sum is divided by the
            number of cells under the kernel. "partial": each output channel is divided by the sum
            of its |weight| over the cells under the kernel, at least by `edge_eps`.
        bias_after_edge: the bias is added to the quotient; else it is divided with the sum.

    Returns:
        (T_out, C_out), rows as `rulebook.out_cells`.

    Raises:
        DataError: shapes that do not fit together, an unknown edge mode.

    Source: SPAN (2026), Section 3; edge modes and the default order of its published code.
    """
    taps = conv_taps(x, weight, rulebook, bias)
    total = _spread(x, taps, rulebook.pairs, len(rulebook.out_cells))
    total = make_up(total, weight, rulebook, bias, edge, edge_eps, bias_after_edge)
    return total.to(x.dtype)


@op
def sparse_conv_transpose2d(
    x: Tensor, weight: Tensor, rulebook: Rulebook, bias: Tensor | None = None, groups: int = 1
) -> Tensor:
    """Transposed convolution from the rulebook's output cells to its input cells, and to no others.

    Args:
        x: (T_out, C_in), rows as `rulebook.out_cells`.
        weight: (C_in, C_out / groups, k, k), as of a dense transposed one. bias: (C_out,).

    Returns:
        (T, C_out), rows as `rulebook.cells`; the bias alone where no kernel reaches.

    Raises:
        DataError: shapes that do not fit together.

    Source: SPAN (2026), Section 3.
    """
    taps = transpose_taps(x, weight, rulebook, bias, groups)
    total = _spread(x, taps, swapped(rulebook.pairs), len(rulebook.cells))
    return (total if bias is None else total + bias).to(x.dtype)


@op
def patch_merge(x: Tensor, rulebook: Rulebook, edge: str = "none") -> Tensor:
    """The cells under each kernel side by side, missing ones as zeros.

    Args:
        x: (T, C), rows as `rulebook.cells`.
        edge: "none"; any other mode divides by the number of cells under the kernel.

    Returns:
        (T_out, k^2 C), channel p C + c is channel c at kernel position p.

    Raises:
        DataError: rows that do not fit the rulebook, an unknown edge mode.

    Source: Swin Transformer (https://arxiv.org/abs/2103.14030), Section 3.1, on a sparse grid.
    """
    _check_rows("patch_merge", x, len(rulebook.cells))
    _check_edge(edge)
    places = len(rulebook.pairs)
    rows = torch.cat([inputs for inputs, _ in rulebook.pairs])
    slots = torch.cat([outputs * places + p for p, (_, outputs) in enumerate(rulebook.pairs)])
    merged = x.new_zeros(len(rulebook.out_cells) * places, x.shape[1])
    merged = merged.index_copy(0, slots, x.index_select(0, rows))
    merged = merged.view(-1, places * x.shape[1])
    return merged if edge == "none" else merged / _counts(rulebook, merged)


@op
def pixel_shuffle(x: Tensor, rulebook: Rulebook) -> Tensor:
    """Each input cell of the rulebook takes its own share of its parent's channels.

    Args:
        x: (T_out, C s^2), rows as `rulebook.out_cells`; channel c s^2 + p is channel c of the cell
            at position p = (a % s) s + b % s of its parent.
        rulebook: kernel = stride = s, dilation 1. To expand cells in full:
            `transpose_rulebook(cells, children(cells, s), s, s)`.

    Returns:
        (T, C), rows as `rulebook.cells`; zeros for a cell without a parent.

    Raises:
        DataError: channels that are no multiple of s^2, rows or a rulebook that do not fit.

    Source: Shi et al. 2016 (https://arxiv.org/abs/1609.05158), on a sparse grid.
    """
    _check_rows("pixel_shuffle", x, len(rulebook.out_cells))
    places = _shuffled(x.shape[1], rulebook)
    of_places = x.reshape(len(x), x.shape[1] // places, places)  # (T_out, C, s^2)
    shares = [of_places[outputs, :, p] for p, (_, outputs) in enumerate(rulebook.pairs)]
    rows = torch.cat([inputs for inputs, _ in rulebook.pairs])
    fine = x.new_zeros(len(rulebook.cells), of_places.shape[1])
    return fine.index_copy(0, rows, torch.cat(shares))


@op
def pixel_shuffle_linear(
    x: Tensor, weight: Tensor, rulebook: Rulebook, bias: Tensor | None = None
) -> Tensor:
    """`pixel_shuffle(linear(x, weight, bias), rulebook)`; backends skip what no cell takes.

    Args:
        x: (T_out, C_in). weight: (C s^2, C_in). bias: (C s^2,).

    Returns:
        (T, C).

    Raises:
        DataError: as `pixel_shuffle`; a weight or bias of another width.
    """
    shuffle_taps(x, weight, rulebook, bias)
    with torch.autocast(x.device.type, enabled=False):
        wide = torch.promote_types(x.dtype, torch.float32)
        full = F.linear(x.to(wide), weight.to(wide), None if bias is None else bias.to(wide))
    fine: Tensor = pixel_shuffle.reference(full, rulebook)
    return fine.to(x.dtype)


def _spread(x: Tensor, taps: Tensor, pairs: Pairs, n: int) -> Tensor:
    """Rows of x times the tap of each kernel position, summed where the position puts them.

    Args:
        x: (N, C_in). taps: (k^2, groups, C_in / groups, C_out / groups).
        pairs: for each position rows of x, and rows of the result.

    Returns:
        (n, C_out), float32 at least.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    x, taps = x.to(wide), taps.to(wide)
    total = x.new_zeros(n, taps.shape[1] * taps.shape[3])
    with torch.autocast(x.device.type, enabled=False):
        for tap, (sources, targets) in zip(taps, pairs, strict=True):
            rows = x[sources].view(len(sources), *tap.shape[:2])  # (m, groups, C_in / groups)
            total = total.index_add(0, targets, torch.einsum("mgi,gio->mgo", rows, tap).flatten(1))
    return total


def swapped(pairs: Pairs) -> Pairs:
    """The pairs seen from the other side."""
    return tuple((outputs, inputs) for inputs, outputs in pairs)


def make_up(
    total: Tensor,
    weight: Tensor,
    rulebook: Rulebook,
    bias: Tensor | None,
    edge: str,
    edge_eps: float,
    bias_after_edge: bool,
) -> Tensor:
    """The sums of a convolution with bias, and made up for missing cells."""
    _check_edge(edge)
    if bias is not None and not bias_after_edge:
        total = total + bias
    if edge == "count":
        total = total / _counts(rulebook, total)
    elif edge == "partial":
        sizes = weight.abs().sum(1, dtype=total.dtype).flatten(1)  # (C_out, k^2)
        with torch.autocast(total.device.type, enabled=False):
            present = rulebook.occupied.to(total.dtype) @ sizes.T  # (T_out, C_out)
        total = total / present.clamp(min=edge_eps)
    return total + bias if bias is not None and bias_after_edge else total


def conv_taps(x: Tensor, weight: Tensor, rulebook: Rulebook, bias: Tensor | None) -> Tensor:
    """Checked weight of `sparse_conv2d` -> (k^2, groups, C_in / groups, C_out / groups)."""
    _check_rows("sparse_conv2d", x, len(rulebook.cells))
    _check_kernel("sparse_conv2d", weight, rulebook)
    out_dim, share = weight.shape[:2]
    groups = x.shape[1] // max(share, 1)
    if groups * share != x.shape[1] or not groups or out_dim % groups:
        raise DataError(
            f"sparse_conv2d got x of width {x.shape[1]} and weight {tuple(weight.shape)}, expected "
            "(C_out, width / groups, k, k) with groups that divide the width and C_out"
        )
    _check_bias("sparse_conv2d", bias, out_dim)
    return weight.reshape(groups, -1, share, rulebook.kernel**2).permute(3, 0, 2, 1)


def transpose_taps(
    x: Tensor, weight: Tensor, rulebook: Rulebook, bias: Tensor | None, groups: int
) -> Tensor:
    """Checked weight of the transposed one -> (k^2, groups, C_in / groups, C_out / groups)."""
    _check_rows("sparse_conv_transpose2d", x, len(rulebook.out_cells))
    _check_kernel("sparse_conv_transpose2d", weight, rulebook)
    if len(weight) != x.shape[1] or groups < 1 or x.shape[1] % groups:
        raise DataError(
            f"sparse_conv_transpose2d got x of width {x.shape[1]}, weight {tuple(weight.shape)}, "
            f"{groups} groups; expected (width, C_out / groups, k, k) and groups that divide width"
        )
    _check_bias("sparse_conv_transpose2d", bias, weight.shape[1] * groups)
    return weight.reshape(groups, -1, weight.shape[1], rulebook.kernel**2).permute(3, 0, 1, 2)


def shuffle_taps(x: Tensor, weight: Tensor, rulebook: Rulebook, bias: Tensor | None) -> Tensor:
    """Checked weight of `pixel_shuffle_linear` -> (s^2, 1, C_in, C)."""
    _check_rows("pixel_shuffle_linear", x, len(rulebook.out_cells))
    if weight.ndim != 2 or weight.shape[1] != x.shape[1]:
        raise DataError(
            f"pixel_shuffle_linear got x of width {x.shape[1]} and weight {tuple(weight.shape)}, "
            "expected (C s^2, width)"
        )
    _check_bias("pixel_shuffle_linear", bias, len(weight))
    places = _shuffled(len(weight), rulebook)
    return weight.reshape(-1, places, x.shape[1]).permute(1, 2, 0)[:, None]


def _counts(rulebook: Rulebook, like: Tensor) -> Tensor:
    """(T_out, 1) cells under the kernel; 1 where there is none, and nothing to divide."""
    return rulebook.counts.clamp(min=1).to(like.dtype)[:, None]


def _shuffled(width: int, rulebook: Rulebook) -> int:
    """s^2, if a pixel shuffle of this many channels can follow the rulebook."""
    rulebook.check_one_parent()
    places = len(rulebook.pairs)
    if width % places:
        raise DataError(
            f"{width} channels cannot be shuffled into {rulebook.stride} x {rulebook.stride} "
            f"cells, expected a multiple of {places}"
        )
    return places


def _check_edge(edge: str) -> None:
    if edge not in EDGES:
        raise DataError(f"edge is '{edge}'. {suggest(edge, EDGES, 'Known: ')}")


def _check_rows(name: str, x: Tensor, n: int) -> None:
    if x.ndim != 2 or len(x) != n:
        raise DataError(f"{name} got x {tuple(x.shape)} for {n} cells, expected ({n}, width)")


def _check_kernel(name: str, weight: Tensor, rulebook: Rulebook) -> None:
    k = rulebook.kernel
    if weight.ndim != 4 or weight.shape[2:] != (k, k):
        raise DataError(
            f"{name} got weight {tuple(weight.shape)}, expected four dimensions, of which the last "
            f"two are the rulebook's kernel ({k}, {k})"
        )


def _check_bias(name: str, bias: Tensor | None, width: int) -> None:
    if bias is not None and bias.shape != (width,):
        raise DataError(f"{name} got bias {tuple(bias.shape)}, expected ({width},)")
