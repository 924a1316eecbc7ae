"""A folder of images by class, cut, mirrored and erased at random as a pre-training wants them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wsizoo.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
RATIO = (3 / 4, 4 / 3)  # of a crop's edges
ERASED, ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)  # share of the area; ratio of the edges
TRIES = 10
AHEAD = 16  # images a thread may have read before they are wanted
T = TypeVar("T")
DEEP = ("I", "F")  # Pillow's modes of 16 and 32 bits, which it would clip to 255


@dataclass(frozen=True)
class ImageFolder:
    """Images in a folder a class.

    Args:
        files: sorted. labels: index of each one's class. classes: names, sorted.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path) -> ImageFolder:
        """Raises DataError: fewer than two classes, or one without an image."""
        inner = sorted(path for path in folder.glob("*") if path.is_dir())
        if len(inner) < 2:
            raise DataError(
                f"'{folder}' holds {len(inner)} folders, expected one a class, 2 or more"
            )
        files: list[Path] = []
        labels: list[int] = []
        for label, each in enumerate(inner):
            own = sorted(f for f in each.rglob("*") if f.suffix.lower() in SUFFIXES)
            if not own:
                raise DataError(f"'{each}' holds no image ({', '.join(sorted(SUFFIXES))})")
            files += own
            labels += [label] * len(own)
        return cls(tuple(files), tuple(labels), tuple(path.name for path in inner))

    def __len__(self) -> int:
        return len(self.files)

    def open(self, i: int) -> Image.Image:
        """An image as RGB. Raises DataError: it cannot be decoded, or has more than 8 bits."""
        try:
            with Image.open(self.files[i]) as image:
                if image.mode.startswith(DEEP):
                    raise DataError(
                        f"'{self.files[i]}' is of Pillow's mode {image.mode}, grey of more than 8 "
                        "bits, expected 8 bits: scale its values to 0 to 255 first"
                    )
                return image.convert("RGB")
        except OSError as error:
            raise DataError(f"'{self.files[i]}' cannot be decoded: {error}") from error


def random_crop(image: Image.Image, edge: int, least: float, rng: np.random.Generator) -> Tensor:
    """A random part of an image, at random mirrored, as (3, edge, edge) uint8.

    Args:
        least: smallest share of the area that is cut out.
    """
    width, height = image.size
    for _ in range(TRIES):
        area = width * height * rng.uniform(least, 1)
        ratio = math.exp(rng.uniform(*map(math.log, RATIO)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        w = h = min(width, height)
    x, y = rng.integers(width - w + 1), rng.integers(height - h + 1)
    cut = image.resize((edge, edge), Image.Resampling.BICUBIC, (x, y, x + w, y + h))
    cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cut
    return _tensor(cut)


def centre_crop(image: Image.Image, edge: int) -> Tensor:
    """The middle seven eighths of an image's shorter edge, as (3, edge, edge) uint8."""
    side = min(image.size) * 0.875
    left, top = ((length - side) / 2 for length in image.size)
    box = (left, top, left + side, top + side)
    return _tensor(image.resize((edge, edge), Image.Resampling.BICUBIC, box))


def erase(images: Tensor, share: float, rngs: Sequence[np.random.Generator]) -> Tensor:
    """Normalised images (B, 3, h, w), a rectangle of a `share` of them filled with noise.

    Args:
        rngs: one an image.
    """
    images = images.clone()
    height, width = images.shape[2:]
    for image, rng in zip(images, rngs, strict=True):
        if rng.random() >= share:
            continue
        area = height * width * rng.uniform(*ERASED)
        ratio = math.exp(rng.uniform(*map(math.log, ERASED_RATIO)))
        w, h = min(width, round((area * ratio) ** 0.5)), min(height, round((area / ratio) ** 0.5))
        x, y = rng.integers(width - w + 1), rng.integers(height - h + 1)
        noise = rng.standard_normal((3, h, w), dtype=np.float32)
        image[:, y : y + h, x : x + w] = torch.from_numpy(noise).to(image)
    return images


def ahead(read: Callable[[int], T], order: Sequence[int], workers: int) -> Generator[T]:
    """`read` of each of `order`, in order, by threads that are at most `AHEAD` each ahead.

    Decoding and resizing release the interpreter, so threads are enough. 0 workers: when wanted.
    """
    if not workers:
        yield from map(read, order)
        return
    pool = ThreadPoolExecutor(workers, "images")
    waiting: deque[Future[T]] = deque()
    try:
        for i in order:
            if len(waiting) == AHEAD * workers:
                yield waiting.popleft().result()
            waiting.append(pool.submit(read, i))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
