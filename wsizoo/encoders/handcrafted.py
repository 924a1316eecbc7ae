"""The built-in encoder: 208 statistics of stain, texture and nuclei of an H&E patch.

It needs no download, no training and no random numbers, runs in plain torch, and gives the same
vector for a patch turned or mirrored in any of the 8 ways, alone or in any batch. Patches must be
at 0.5 um/px: at another scale the vectors are finite, and no better than a colour histogram.

Planes: optical density per channel is unmixed into haematoxylin, eosin and a residual (H, E, R) at
level 1 (1 um/px); levels 2, 3, 4 are repeated 2 x 2 means. Local binary patterns are taken on exact
integer sums. Every other feature is continuous in the pixels.

Source: stain vectors of Ruifrok and Johnston, Anal Quant Cytol Histol 23:291 (2001); uniform binary
    patterns of Ojala et al., IEEE TPAMI 24:971 (2002).
Differs: fixed white of 255, no stain normalisation; binary patterns use the 8 square neighbours and
    a margin.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from wsizoo.encoders._he_ops import (
    PATTERNS,
    binary_pattern_shares,
    blur,
    blur_times_16,
    differences,
    hessian_eigenvalues,
    mean_2x2,
    mean_blocks,
    mean_square,
    pad_edges,
    pad_to_multiple,
    soft_histogram,
    sum_2x2,
    sum_2x2_as_float,
    triangles,
    weighted_means,
)
from wsizoo.encoders._he_table import TABLE, VERSION
from wsizoo.encoders._threads import in_threads
from wsizoo.errors import DataError

__all__ = ["FEATURE_NAMES", "VERSION", "encode", "raw_features", "standardise", "table_digest"]

STAINS = "HER"
PAIRS = ("HE", "HR", "ER")
CHUNK_PIXELS = 32 * 224 * 224  # computed at a time: fewer cost more calls, more leave the cache
CLAMP = 6.0
TINY = 1e-12  # below the area of any soft mask
# Freeing one block of this size (never touched, so never backed by memory) tells glibc's allocator
# to keep what the planes give back, instead of returning it to the system after each chunk: page
# faults cost a third of the time. 32 MiB is the most that it learns from.
KEEP_BYTES = 31 * 2**20
BINS, JOINT = 8, 5
BIN_LOW, BIN_STEP = (0.0, 0.0, -0.15), (0.12, 0.10, 0.05)  # optical density, for H, E, R


BLOCKS = (
    *("stat", "hist1", "hist3", "joint", "band0", "level1", "level2", "level3", "level4"),
    *("nuc", "pale", "lbp1", "lbp2", "lbp3"),
)


def _unmixing() -> tuple[tuple[float, ...], ...]:
    """V (3, 3), stains = od @ V: inverse of the unit vectors H, E and their cross product."""
    rows = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]], dtype=torch.float64)
    rows = rows / rows.norm(dim=1, keepdim=True)
    residual = torch.linalg.cross(rows[0], rows[1])
    matrix = torch.cat([rows, (residual / residual.norm()).unsqueeze(0)])
    return tuple(tuple(row) for row in torch.linalg.inv(matrix).tolist())


UNMIX = _unmixing()


def _feature_names() -> tuple[str, ...]:
    names = [f"{kind}_{s}" for kind in ("mean", "std") for s in STAINS]
    names += [f"corr_{pair}" for pair in PAIRS] + [f"skew_{s}" for s in STAINS]
    names += [f"hist{k}_{s}_{i}" for k in (1, 3) for s in STAINS for i in range(BINS)]
    names += [f"joint_{i}{j}" for i in range(JOINT) for j in range(JOINT)]
    names += ["band0_abs_G", "band0_peak_G"]
    for level in (1, 2, 3, 4):
        names += [f"band{level}_{s}" for s in STAINS] + [f"cross{level}_{pair}" for pair in PAIRS]
        kinds = "blob hole ridge blobpeak coh cohw aniso grad" if level < 4 else ""
        names += [f"{kind}{level}_{s}" for kind in kinds.split() for s in "HE"]
    kinds = "area H E R Hstd edge clu8 clu16"
    names += [f"nuc_{w}_{kind}" for w in ("abs", "rel") for kind in kinds.split()]
    names += ["white_frac", "pale_frac", "dark_frac"]
    names += [f"lbp{level}_{k}" for level in (1, 2, 3) for k in range(PATTERNS)]
    return tuple(names)


FEATURE_NAMES: tuple[str, ...] = _feature_names()


def table_digest() -> str:
    """sha256 of version, feature names and standardisation table: what stands for its weights."""
    rows = zip(FEATURE_NAMES, TABLE, strict=True)
    lines = [f"{name} {centre:.3f} {scale:.3f}" for name, (centre, scale) in rows]
    text = "\n".join([f"handcrafted-he v{VERSION}", *lines])
    return hashlib.sha256(text.encode()).hexdigest()


def encode(patches: Tensor, chunk: int | None = None) -> Tensor:
    """Standardised features of patches at 0.5 um/px.

    Args:
        patches: (B, 3, H, W) uint8, RGB; nominally 224 px, any size from 1 px.
        chunk: patches computed at a time; None: 32 of 224 px. Changes the speed and the last
            float bit only; the number of torch's threads not even that.

    Returns:
        (B, 208) float32, within +-6, in the order of `FEATURE_NAMES`.

    Raises:
        DataError: the patches are not uint8 RGB.

    Cost: 0.8 to 3 ms per patch of 224 px on one core. On a CPU, chunks are shared out to as many
        threads as torch has; worker processes with one torch thread each scale best.
    """
    return standardise(raw_features(patches, chunk))


def standardise(raw: Tensor) -> Tensor:
    """(f - centre) / scale by the fixed table, clamped to +-6. (..., 208) -> (..., 208)."""
    table = torch.tensor(TABLE, dtype=raw.dtype, device=raw.device)
    return ((raw - table[:, 0]) / table[:, 1]).clamp_(-CLAMP, CLAMP)


def raw_features(patches: Tensor, chunk: int | None = None) -> Tensor:
    """Features before standardisation: patches (B, 3, H, W) uint8 -> (B, 208) float32."""
    _check_patches(patches)
    if patches.shape[0] == 0:
        return torch.empty(0, len(FEATURE_NAMES), device=patches.device)
    height, width = patches.shape[2:]
    chunks = torch.split(patches, chunk or max(1, CHUNK_PIXELS // (height * width)))
    if patches.device.type != "cpu":
        return torch.cat([_chunk_features(part) for part in chunks])
    torch.empty(KEEP_BYTES, dtype=torch.uint8)
    return torch.cat(in_threads(_chunk_features, chunks))


def _check_patches(patches: Tensor) -> None:
    shape = tuple(patches.shape)
    if patches.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or 0 in shape[2:]:
        raise DataError(
            f"handcrafted-he was given patches {shape} of {patches.dtype}; it reads uint8 RGB "
            "(B, 3, H, W). From an array (H, W, 3): torch.from_numpy(a).permute(2, 0, 1)[None]"
        )


def _chunk_features(patches: Tensor) -> Tensor:
    # Neither is inherited by a thread, and half precision is too coarse for sums over a plane.
    with torch.no_grad(), torch.autocast(patches.device.type, enabled=False):
        # One memory layout, so that sums run in one order whatever the strides of the input were.
        blocks = _fine_features(patches.contiguous())
        blocks |= _coarse_features(blocks.pop("stains at level 2"), blocks.pop("grey at level 2"))
        return torch.cat([blocks[name] for name in BLOCKS], 1)  # (B, 208)


def _fine_features(patches: Tensor) -> dict[str, Tensor]:
    """Blocks of features from levels 0 and 1, and the planes at level 2 for `_coarse_features`."""
    padded = pad_to_multiple(patches).to(torch.int16)
    sums = sum_2x2_as_float(padded)  # (B, 3, h/2, w/2), 0 .. 1020
    grey = _grey(sums).to(torch.int16)  # (B, h/2, w/2), 0 .. 3060
    density = sums.add_(4).div_(1024).log10_().neg_()
    stains = _unmix(density)
    mean, std, correlation, skewness = _stain_statistics(stains)
    return {
        "stat": torch.cat([mean, std, correlation, skewness], 1),
        "hist1": _colour_histogram(stains),
        "joint": _joint_histogram(stains),
        "band0": _finest_band(_grey(padded)),
        "level1": _level_features(stains, 1),
        "nuc": _nuclei(stains, mean[:, 0], std[:, 0]),
        "pale": _paleness(density),
        "lbp1": _patterns(grey, 1),
        "stains at level 2": mean_2x2(stains),
        "grey at level 2": sum_2x2(grey),
    }


def _coarse_features(stains: Tensor, grey: Tensor) -> dict[str, Tensor]:
    """Blocks of features from levels 2, 3 and 4."""
    blocks = {}
    for level in (2, 3, 4):
        blocks[f"level{level}"] = _level_features(stains, level)
        if level == 3:
            blocks["hist3"] = _colour_histogram(stains)
        if level < 4:
            blocks[f"lbp{level}"] = _patterns(grey, level)
            stains, grey = mean_2x2(stains), sum_2x2(grey.int())
    return blocks


def _grey(channels: Tensor) -> Tensor:
    """R + G + B, exact on integers. (B, 3, h, w) -> (B, h, w)."""
    return (channels[:, 0] + channels[:, 1]).add_(channels[:, 2])


def _unmix(density: Tensor) -> Tensor:
    """Optical density (B, 3, h, w) of R, G, B -> stains (B, 3, h, w) H, E, R."""
    out = torch.empty_like(density)
    for stain in range(3):
        torch.mul(density[:, 0], UNMIX[0][stain], out=out[:, stain])
        out[:, stain].add_(density[:, 1], alpha=UNMIX[1][stain])
        out[:, stain].add_(density[:, 2], alpha=UNMIX[2][stain])
    return out


def _mean(planes: Tensor) -> Tensor:
    return planes.mean((-2, -1))


def _log(share: Tensor) -> Tensor:
    return (share + 1e-3).log()


def _moments(planes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean products of three planes H, E, R: of HH, EE, RR and of HE, HR, ER; (B, 3) each."""
    flat = planes.flatten(2)
    gram = torch.bmm(flat, flat.transpose(1, 2)).flatten(1) / flat.shape[2]  # (B, 9)
    return gram[:, ::4], torch.stack([gram[:, 1], gram[:, 2], gram[:, 5]], 1)


def _pair_products(x: Tensor) -> Tensor:
    """(B, 3) of H, E, R -> (B, 3) of HE, HR, ER."""
    h, e, r = x.unbind(1)
    return torch.stack([h * e, h * r, e * r], 1)


def _stain_statistics(stains: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, standard deviation, correlation and skewness, (B, 3) each."""
    mean = _mean(stains)
    centred = stains - mean[..., None, None]
    variance, covariance = _moments(centred)
    std = (variance + 1e-6).sqrt()
    third = _mean((centred * centred).mul_(centred))
    skewness = (third / (std**3 + 1e-4)).clamp(-4, 4)
    return mean, std, covariance / (_pair_products(std) + 1e-3), skewness


def _colour_histogram(stains: Tensor) -> Tensor:
    low, step = stains.new_tensor(BIN_LOW), stains.new_tensor(BIN_STEP)
    return (soft_histogram(stains, low, step, BINS) + 1e-3).sqrt().flatten(1)  # (B, 24)


def _joint_histogram(stains: Tensor) -> Tensor:
    haematoxylin = triangles(stains[:, 0].clamp(0, 0.8).mul_(5), JOINT)
    eosin = triangles(stains[:, 1].clamp(-0.05, 0.55).add_(0.05).div_(0.15), JOINT)
    shares = torch.bmm(haematoxylin, eosin.transpose(1, 2)) / eosin.shape[2]
    return (shares + 1e-3).sqrt().flatten(1)  # (B, 25)


def _peakedness(mean: Tensor, mean_square: Tensor) -> Tensor:
    return mean / ((mean_square + 1e-8).sqrt() + 1e-3)


def _finest_band(grey: Tensor) -> Tensor:
    """Strength and evenness of the detail that a blur at full resolution removes, (B, 2)."""
    grey = grey.unsqueeze(1)
    blurred = blur_times_16(pad_edges(grey))  # still exact: at most 16 * 765 fits int16
    detail = blurred.sub_(grey, alpha=16).float().mul_(1 / (16 * 765))
    square = mean_square(detail)
    strength = _mean(detail.abs_())
    return torch.cat([_log(strength), _peakedness(strength, square)], 1)


def _level_features(planes: Tensor, level: int) -> Tensor:
    """Band energy and coupling of H, E, R; from H and E also blobs and oriented structure."""
    smooth = blur(planes)
    detail = planes - smooth
    squares, products = _moments(detail)
    coupling = products / ((_pair_products(squares) + 1e-12).sqrt() + 1e-4)
    features = [_log(_mean(detail.abs_())), coupling]
    if level < 4:
        two = smooth[:, :2]
        features += _blobs(two)
        features += _structure(two, edge=8 if level < 3 else 4)
    return torch.cat(features, 1)  # (B, 22), at level 4 (B, 6)


def _blobs(smooth: Tensor) -> list[Tensor]:
    """Dark blobs, holes and ridges by the signs of the Hessian; each (B, 2)."""
    small, large = hessian_eigenvalues(blur(smooth))  # twice the eigenvalues
    blob = large.clamp_(max=0)
    square = mean_square(blob) / 4
    mean = _mean(blob) / -2
    line = _mean(small.clamp(max=0)) / -2
    hole = _mean(small.clamp_(min=0)) / 2
    return [_log(mean), _log(hole), _log(line - mean), _peakedness(mean, square)]


def _structure(smooth: Tensor, edge: int) -> list[Tensor]:
    """Local and global alignment of gradients (structure tensor over blocks); each (B, 2)."""
    dx, dy = differences(smooth)  # twice the gradient
    twist = mean_blocks(dx * dy, edge) / 2
    dx.square_()
    dy.square_()
    along, across = mean_blocks(dx, edge) / 4, mean_blocks(dy, edge) / 4
    magnitude = _mean(dx.add_(dy).sqrt_()) / 2
    stretch, energy = along - across, along + across
    aligned = (stretch.square() + twist.square() + 1e-14).sqrt()
    overall = (_mean(stretch).square() + _mean(twist).square() + 1e-14).sqrt()
    total = _mean(energy) + 1e-5
    coherence = _mean(aligned / (energy + 1e-5))
    return [coherence, _mean(aligned) / total, overall / total, _log(magnitude)]


def _nuclei(stains: Tensor, mean_h: Tensor, std_h: Tensor) -> Tensor:
    """Colour and clustering under two soft nuclear masks: at a fixed threshold, at the patch's."""
    thresholds = torch.stack([torch.full_like(mean_h, 0.45), mean_h + 0.75 * std_h], 1)
    smooth = blur(stains[:, :1])
    weight = (smooth - thresholds[..., None, None]).mul_(20).sigmoid_()  # (B, 2, h, w)
    area = _mean(weight)
    whole = area + 0.02
    products = weighted_means(weight, stains)  # (B, 2, 3)
    means = products / whole.unsqueeze(2)
    # wm(H^2) - wm(H)^2 would lose its digits, so squares are taken around the mask's own mean; the
    # rest of that difference, which the 0.02 leaves, is a product of positive numbers.
    centre = products[..., 0] / area.clamp(min=TINY)
    squares = (stains[:, :1] - centre[..., None, None]).square_().mul_(weight)
    variance = (_mean(squares) + 0.02 * centre * means[..., 0]) / whole
    spread = (variance + 1e-6).sqrt()
    edge = 4 * (area - mean_square(weight)) / whole
    fine = mean_blocks(weight, 8)
    clusters = [_spread(fine), _spread(mean_2x2(fine))]
    columns = [(area + 0.01).log(), *means.unbind(2), spread, edge, *clusters]  # (B, 2) each
    return torch.stack(columns, 2).flatten(1)  # (B, 16)


def _spread(means: Tensor) -> Tensor:
    return (means.var((-2, -1), correction=0) + 1e-6).sqrt()


def _paleness(density: Tensor) -> Tensor:
    """Soft shares of glass, pale and dark pixels, (B, 3)."""
    depth = _grey(density).div_(3)  # (B, h, w)
    steps = ((-100.0, 0.05), (-50.0, 0.10), (20.0, 0.6))
    return torch.stack([_mean((depth - at).mul_(k).sigmoid_()) for k, at in steps], 1)


def _patterns(grey: Tensor, level: int) -> Tensor:
    """Binary pattern shares, (B, 10); the margin is one grey value of the mean of R, G and B."""
    return (binary_pattern_shares(grey, 4**level) + 1e-3).sqrt()
