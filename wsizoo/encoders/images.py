"""From patches to what a network reads: resize, cut, scale, normalise; on any device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from wsizoo.encoder_spec import ImageSpec
from wsizoo.errors import DataError


def prepare(patches: Tensor, image: ImageSpec) -> Tensor:
    """Patches (B, 3, H, W) uint8 -> images (B, 3, size, size) float32.

    Resized to whole grey levels, as the encoders' own transforms do with Pillow: within 1 or 2
    levels of it in less than 1 % of the pixels, on a CPU and bilinear mostly equal to it.

    Raises:
        DataError: the patches are not uint8 RGB.
    """
    shape = tuple(patches.shape)
    if patches.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or 0 in shape[2:]:
        raise DataError(
            f"an encoder was given patches {shape} of {patches.dtype}; it reads uint8 RGB "
            "(B, 3, H, W). From an array (H, W, 3): torch.from_numpy(a).permute(2, 0, 1)[None]"
        )
    pixels = _cut(_resized(patches, image), image.size).float().contiguous()
    mean, std = (
        torch.tensor(values, device=pixels.device)[:, None, None]
        for values in (image.mean, image.std)
    )
    return pixels.div_(255).sub_(mean).div_(std)


def describe_preparation(image: ImageSpec) -> str:
    """One line that changes whenever `prepare` gives other numbers, for the fingerprint."""
    edge = image.resize or image.size
    mean, std = (" ".join(f"{value:.9g}" for value in row) for row in (image.mean, image.std))
    return (
        f"uint8 RGB; shorter edge to {edge} px, {image.interpolation}, antialiased, rounded; "
        f"centre {image.size} px; /255; mean {mean}; std {std}"
    )


def _resized(patches: Tensor, image: ImageSpec) -> Tensor:
    """The shorter edge as `image` says, the other in proportion; 0 to 255, whole numbers."""
    h, w = patches.shape[2:]
    edge, short = image.resize or image.size, min(h, w)
    if short == edge:
        return patches
    size = (edge * h // short, edge * w // short)
    if patches.device.type == "cpu":
        return interpolate(patches, size, mode=image.interpolation, antialias=True)
    return resized_in_floats(patches, size, image.interpolation)


def resized_in_floats(patches: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """For devices on which torch resizes no uint8: one edge after the other, as Pillow rounds."""
    pixels = patches.float()
    for step in ((patches.shape[2], size[1]), size):
        pixels = interpolate(pixels, step, mode=mode, antialias=True)
        pixels = pixels.add_(0.5).floor_().clamp_(0, 255)  # bicubic overshoots
    return pixels


def _cut(pixels: Tensor, size: int) -> Tensor:
    h, w = pixels.shape[2:]
    top, left = round((h - size) / 2), round((w - size) / 2)
    return pixels[..., top : top + size, left : left + size]  # (B, 3, size, size)
