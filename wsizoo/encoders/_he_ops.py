"""Operations on image planes that the built-in encoder is made of.

Every function takes planes (..., h, w) and treats the leading dimensions as a batch. Shifted and
strided slices are used instead of torch's pooling and convolution: on a CPU, with one to three
channels, they are several times faster.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

PATTERNS = 10  # uniform binary patterns of 8 neighbours by number of ones, 0 .. 8, and the rest
PAD_MULTIPLE = 32  # four halvings, then blocks of 8 px at level 2 and 4 px at level 3


def pad_to_multiple(patches: Tensor) -> Tensor:
    """Extend both sides to the next multiple of 32, as evenly as integers allow.

    Mirrors the content (without repeating the edge) where a side has at least 32 px, else repeats
    the edge.
    """
    for dim in (-2, -1):
        index = _pad_index(patches.shape[dim])
        if index is not None:
            patches = patches.index_select(dim, index.to(patches.device))
    return patches.contiguous()


def _pad_index(size: int) -> Tensor | None:
    extra = -size % PAD_MULTIPLE
    if extra == 0:
        return None
    index = torch.arange(size + extra) - extra // 2
    if size >= PAD_MULTIPLE:
        index = index.abs()  # mirror before the start, then after the end
        return (size - 1) - ((size - 1) - index).abs()
    return index.clamp_(0, size - 1)


def sum_2x2(planes: Tensor) -> Tensor:
    """Sums over non-overlapping 2 x 2 blocks, in the type of the planes. (..., h/2, w/2)."""
    rows = planes[..., ::2, :] + planes[..., 1::2, :]
    return rows[..., ::2] + rows[..., 1::2]


def sum_2x2_as_float(planes: Tensor) -> Tensor:
    """As `sum_2x2`, float32: strided sums of floats are faster than those of int16."""
    rows = (planes[..., ::2, :] + planes[..., 1::2, :]).float()
    return rows[..., ::2] + rows[..., 1::2]


def mean_2x2(planes: Tensor) -> Tensor:
    """Means over non-overlapping 2 x 2 blocks of float planes. (..., h/2, w/2)."""
    return sum_2x2(planes).mul_(0.25)


def mean_blocks(planes: Tensor, edge: int) -> Tensor:
    """Means over non-overlapping edge x edge blocks. (..., h/edge, w/edge)."""
    *lead, height, width = planes.shape
    rows = planes.view(*lead, height // edge, edge, width).sum(-2)
    return rows.view(*lead, height // edge, width // edge, edge).sum(-1).div_(edge * edge)


def mean_square(planes: Tensor) -> Tensor:
    """Mean of the squares of each plane. (B, C, h, w) float -> (B, C)."""
    norm: Tensor = torch.linalg.vector_norm(planes.flatten(2), dim=-1)
    return norm.square() / planes[0, 0].numel()


def weighted_means(weight: Tensor, planes: Tensor) -> Tensor:
    """Mean of weight times plane for each pair. (B, M, h, w), (B, C, h, w) -> (B, M, C)."""
    flat = planes.flatten(2)
    return torch.bmm(weight.flatten(2), flat.transpose(1, 2)) / flat.shape[2]


def pad_edges(planes: Tensor) -> Tensor:
    """Repeat the border once on every side. (B, C, h, w) -> (B, C, h + 2, w + 2)."""
    if planes.is_floating_point():
        return functional.pad(planes, (1, 1, 1, 1), mode="replicate")
    tall = torch.cat([planes[..., :1, :], planes, planes[..., -1:, :]], -2)
    return torch.cat([tall[..., :1], tall, tall[..., -1:]], -1)


def blur_times_16(padded: Tensor) -> Tensor:
    """Separable [1, 2, 1], not divided by 16, of planes with a border of one. (..., h, w)."""
    # [1, 2, 1] is [1, 1] twice: four sums instead of three products and two sums per direction.
    for _ in range(2):
        padded = padded[..., 1:, :] + padded[..., :-1, :]
    for _ in range(2):
        padded = padded[..., 1:] + padded[..., :-1]
    return padded


def blur(planes: Tensor) -> Tensor:
    """Separable [1, 2, 1] / 4 with a repeated border. (B, C, h, w)."""
    return blur_times_16(pad_edges(planes)).mul_(1 / 16)


def differences(planes: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences along x and y, twice the gradient, repeated border; each (B, C, h, w)."""
    padded = pad_edges(planes)
    gx = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    gy = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    return gx, gy


def hessian_eigenvalues(planes: Tensor) -> tuple[Tensor, Tensor]:
    """Twice the eigenvalues of the Hessian, the smaller first; each (B, C, h, w)."""
    padded = pad_edges(planes)
    sides = padded[..., 1:-1, 2:] + padded[..., 1:-1, :-2]
    ends = padded[..., 2:, 1:-1] + padded[..., :-2, 1:-1]
    root = (sides - ends).square_()  # (dxx - dyy)^2
    across = padded[..., 2:] - padded[..., :-2]
    cross = across[..., 2:, :] - across[..., :-2, :]  # 4 dxy
    root.addcmul_(cross, cross, value=0.25).add_(1e-12).sqrt_()
    trace = sides.add_(ends).sub_(planes, alpha=4)
    return trace - root, trace.add_(root)


def soft_histogram(planes: Tensor, low: Tensor, step: Tensor, bins: int) -> Tensor:
    """Share of each bin when a value is split linearly between its two nearest bin centres.

    Args:
        planes: (B, C, h, w) float.
        low, step: (C,) centre of the first bin and distance between centres; values outside are
            clamped.

    Returns:
        (B, C, bins), rows sum to 1.
    """
    position = (planes - low.view(-1, 1, 1)).div_(step.view(-1, 1, 1))
    # A triangle is the difference of two unit ramps: one clamp per gap, not four steps per bin.
    ramps = [position.new_ones(position.shape[:2])]
    buffer = torch.empty_like(position)
    for _ in range(bins - 1):
        ramps.append(torch.clamp(position, 0, 1, out=buffer).mean((-2, -1)))
        position.sub_(1)  # not wider clamps: a sum of large values loses the digits of rare bins
    ramps.append(torch.zeros_like(ramps[0]))
    edges = torch.stack(ramps, -1)  # (B, C, bins + 1)
    return (edges[..., :-1] - edges[..., 1:]).clamp_(min=0)


def triangles(plane: Tensor, count: int) -> Tensor:
    """Weights max(0, 1 - |x - i|), i = 0 .. n - 1, of values in 0 .. n - 1. (B, n, h * w)."""
    flat = plane.flatten(1)
    ramps = flat.new_empty(flat.shape[0], count - 1, flat.shape[1])
    for start in range(count - 1):
        torch.sub(flat, start, out=ramps[:, start])
    ramps.clamp_(0, 1)
    out = flat.new_empty(flat.shape[0], count, flat.shape[1])
    out[:, 0] = 1 - ramps[:, 0]
    torch.sub(ramps[:, :-1], ramps[:, 1:], out=out[:, 1:-1])
    out[:, -1] = ramps[:, -1]
    return out


def binary_pattern_shares(grey: Tensor, margin: int) -> Tensor:
    """Shares of the 10 rotation-invariant uniform local binary patterns over interior pixels.

    A bit is set where one of the 8 square neighbours is at least centre + margin; no interpolation,
    so the counts are exactly the same for all 8 orientations of the image.

    Args:
        grey: (B, h, w) integers.

    Returns:
        (B, 10) float32, rows sum to 1.
    """
    batch, height, width = grey.shape
    threshold = grey[:, 1:-1, 1:-1] + margin
    sign = torch.iinfo(grey.dtype).bits - 1
    codes = torch.full_like(threshold, 255)
    for bit, (dy, dx) in enumerate(_CIRCLE):
        neighbour = grey[:, 1 + dy : height - 1 + dy, 1 + dx : width - 1 + dx]
        # Shifting the sign down gives -1 where the neighbour is below: faster than a comparison.
        below = (neighbour - threshold).bitwise_right_shift_(sign)
        codes.add_(below, alpha=1 << bit)
    first = 256 * torch.arange(batch, device=grey.device, dtype=torch.int32)
    keys = codes.flatten(1) + first.unsqueeze(1)  # int32: half the bytes that bincount reads
    counts = torch.bincount(keys.flatten(), minlength=256 * batch).view(batch, 256)
    patterns = torch.zeros(batch, PATTERNS, dtype=counts.dtype, device=grey.device)
    patterns.index_add_(1, _PATTERN_OF_CODE.to(grey.device), counts)
    return patterns.float().div_((height - 2) * (width - 2))


_CIRCLE = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


def _pattern_of(code: int) -> int:
    turned = (code >> 1) | ((code & 1) << 7)
    transitions = (code ^ turned).bit_count()
    return code.bit_count() if transitions <= 2 else PATTERNS - 1


_PATTERN_OF_CODE = torch.tensor([_pattern_of(code) for code in range(256)])
